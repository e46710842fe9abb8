"""What :mod:`vggfast.evaluate` had of features works there for one more release, with a warning."""

import pytest

from vggfast import evaluate, features


@pytest.mark.parametrize("name", ["extract", "caltech_protocol"])
def test_moved_from_evaluate(name):
    with pytest.warns(DeprecationWarning, match=f"vggfast.evaluate.{name} is now vggfast.features.{name}"):
        assert getattr(evaluate, name) is getattr(features, name)


def test_other_names_are_not_there():
    with pytest.raises(AttributeError, match=r"module 'vggfast.evaluate' has no attribute 'extracts'"):
        _ = evaluate.extracts
