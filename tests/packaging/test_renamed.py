"""Public names that have moved: the old ones still work, and say the new ones."""

import importlib

import pytest

_MOVED = [
    ("vggfast.report", "environment", "vggfast.environment", "environment"),
    ("vggfast.distributed", "World", "vggfast.distributed", "DistributedContext"),
    ("vggfast.console", "Live", "vggfast.console", "ProgressBar"),
    ("vggfast.training.finish", "finish", "vggfast.tasks", "final_eval"),
]


@pytest.mark.parametrize(("module", "name", "where", "new"), _MOVED, ids=[f"{m}.{n}" for m, n, _, _ in _MOVED])
def test_the_old_name_says_the_new_one(module, name, where, new):
    with pytest.warns(DeprecationWarning, match=rf"{module}\.{name} is now {where}\.{new}$"):
        found = getattr(importlib.import_module(module), name)
    assert found is getattr(importlib.import_module(where), new)


@pytest.mark.parametrize("module", sorted({module for module, *_ in _MOVED}))
def test_a_name_that_never_was_is_an_error(module):
    with pytest.raises(AttributeError, match=f"module '{module}' has no attribute 'nothing'"):
        importlib.import_module(module).nothing  # noqa: B018
