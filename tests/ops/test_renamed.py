"""Names of ops that have changed: the old ones work, with a warning that says the new one."""

import pytest

from vggfast import ops


def test_class_scores_is_mean_posteriors():
    with pytest.warns(DeprecationWarning, match=r"vggfast.ops.class_scores is now vggfast.ops.mean_posteriors"):
        assert ops.class_scores is ops.mean_posteriors


def test_other_names_are_not_there():
    with pytest.raises(AttributeError, match="has no attribute 'posterior'"):
        _ = ops.posterior
