"""Which modules run code of others, and whether that code takes contiguous maps alone."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterable, Iterator
from types import CodeType, FunctionType, ModuleType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.fx import GraphModule

from vggfast.graph.guard import is_bare

_NEED_NCHW = {"view", "view_as", "view_as_complex", "as_strided"}  # they fail on other strides, or mean something else
_KNOWN = {"torch", "torchvision", "vggfast"}  # their code runs on channels_last maps
_NO_MAPS = {"numpy", *sys.stdlib_module_names}
_found: WeakKeyDictionary[type, bool] = WeakKeyDictionary()  # of classes that were asked for, as they are asked often


def is_known_code(module: nn.Module) -> bool:
    """Whether a module and all within it run code of torch's, torchvision's and ours alone, and nobody watches them."""
    return all(is_bare(each) and _is_known(type(each).__module__) and not _is_made(each) for each in module.modules())


def needs_nchw(modules: Iterable[nn.Module]) -> bool:
    """Whether code of a module names a function that takes contiguous maps alone, such as ``Tensor.view``; the same of
    functions and classes that this code names, and of what torch.jit compiled, where nobody can look."""
    return any(
        isinstance(module, torch.jit.ScriptModule)
        or _has_such_code(type(module), _is_made(module))
        or _name_such(value for value in vars(module).values() if callable(value))
        for module in modules
    )


def _has_such_code(kind: type, made: bool) -> bool:
    if kind not in _found:
        above = [each for each in kind.__mro__ if (made and each is kind) or not _is_known(each.__module__)]
        _found[kind] = _name_such(value for each in above for value in vars(each).values())
    return _found[kind]


def _name_such(values: Iterable[Any]) -> bool:
    return any(not _NEED_NCHW.isdisjoint(code.co_names) for code in _code_of(values))


def _is_made(module: nn.Module) -> bool:
    """Whether torch made a module's class, of others' code."""
    return isinstance(module, GraphModule | torch.jit.ScriptModule)


def _is_known(room: str | None) -> bool:
    return (room or "").partition(".")[0] in _KNOWN


def _code_of(values: Iterable[Any]) -> Iterator[CodeType]:
    """The code of the functions among `values`, of those within them, and of those that they name."""
    waiting, seen = list(values), set()
    while waiting:
        value = _unwrapped(waiting.pop())
        if not isinstance(value, FunctionType | type) or value in seen or not _is_of_others(value.__module__):
            continue
        seen.add(value)
        if isinstance(value, type):
            waiting += vars(value).values()
            continue
        codes = list(_nested(value.__code__))
        yield from codes
        names = {name for code in codes for name in code.co_names}
        waiting += (cell.cell_contents for cell in value.__closure__ or () if _is_filled(cell))
        waiting += _named(names, value.__globals__)


def _unwrapped(value: Any) -> Any:
    """The function of a method, a property or a partial call."""
    while isinstance(value, functools.partial):
        value = value.func
    return getattr(value, "__func__", getattr(value, "fget", value))


def _is_of_others(room: str | None) -> bool:
    return not _is_known(room) and (room or "").partition(".")[0] not in _NO_MAPS


def _is_filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:  # a variable that has no value yet
        return False


def _named(names: set[str], scope: dict[str, Any]) -> Iterator[Any]:
    """What `names` are in a module, and in the modules that they name there."""
    for value in (scope[name] for name in names & scope.keys()):
        yield value
        if isinstance(value, ModuleType) and _is_of_others(value.__name__):
            yield from (vars(value)[name] for name in names & vars(value).keys())


def _nested(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _nested(constant)
