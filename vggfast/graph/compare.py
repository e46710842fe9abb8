"""Two networks side by side: what makes one compute something else that no tensor says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from vggfast.graph.guard import check, known_class
from vggfast.graph.recognise import square

_OF_NO_ACCOUNT = ("training", "inplace")


def differences(model: nn.Module, expected: nn.Module) -> Iterator[str]:
    """Each layer of `model` that is another than in `expected`, in words: its class, a setting, or code of its own."""
    ours, theirs = (dict(each.named_modules(remove_duplicate=False)) for each in (model, expected))
    for path in sorted(ours.keys() ^ theirs.keys()):
        yield f"there must be no {path}" if path in ours else f"{path} is missing"
    for path, found in ours.items():
        if path in theirs:
            yield from _differ(path, found, theirs[path])


def _differ(path: str, found: nn.Module, twin: nn.Module) -> Iterator[str]:
    if not issubclass(known_class(found) or type(found), _torchs(twin)):
        yield f"{path} must be {type(twin).__name__}, got {type(found).__name__}"
        return
    try:
        check(path or "model", found)
    except TypeError as error:
        yield str(error)
    for name in (*found._parameters, *found._buffers, *found._modules):
        if hasattr(type(found), name) or name in vars(found):  # a property, or another put before it
            yield f"{name} of {path or 'model'} is hidden by an attribute of {type(found).__name__}"
    if not path:
        return  # the model itself has no settings but its arguments, and names its parts
    order, expected = (list(each._modules) for each in (found, twin))
    if order != expected and set(order) == set(expected):
        yield f"the layers of {path} must be in the order {', '.join(expected)}, got {', '.join(order)}"
    for name, value in vars(twin).items():
        mine = getattr(found, name, None)
        if name[0] != "_" and name not in _OF_NO_ACCOUNT and _plain(mine) != _plain(value):
            yield f"{name} of {path} must be {value!r}, got {mine!r}"


def _torchs(module: nn.Module) -> type:
    """The class of torch's that a module's is, or is a subclass of."""
    return next(kind for kind in type(module).__mro__ if kind.__module__.startswith("torch."))


def _plain(setting: Any) -> Any:
    """A square size as one number."""
    return setting if square(setting) is None else square(setting)
