"""Copies of trees of modules that share the tensors."""

from __future__ import annotations

import functools
import weakref
from collections import deque
from types import MethodType
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.modules.module import _WrappedHook

Module = TypeVar("Module", bound=nn.Module)


def shared_copy(module: Module) -> Module:
    """A copy that shares parameters, buffers and hooks, but not the training mode, nor what is added later.

    Wherever the tree refers to one of its own modules, the copy refers to its own: a module that comes twice is copied
    once, and so is what attributes, Python's own containers, weak references, and methods of modules as hooks hold.
    Whatever else holds a module, such as a function's closure, still holds the given one. A ScriptModule is shared.
    """
    copies: dict[int, Any] = {}
    for each in module.modules():
        if not isinstance(each, torch.jit.ScriptModule):
            copies[id(each)] = object.__new__(type(each))
    for each in list(module.modules()):
        if id(each) in copies:
            state = {name: _shared(value, copies) for name, value in vars(each).items()}
            state["_compiled_call_impl"] = None  # of the module itself
            vars(copies[id(each)]).update(state)
    return copies.get(id(module), module)


def _shared(value: Any, copies: dict[int, Any]) -> Any:
    """`value` with copies of the modules that it holds. `copies` has those, and each container once it is copied."""
    if id(value) in copies:
        return copies[id(value)]
    if isinstance(value, MethodType) and isinstance(value.__self__, nn.Module):
        return MethodType(value.__func__, copies.get(id(value.__self__), value.__self__))
    if type(value) is weakref.ref:
        return weakref.ref(copies[id(value())], value.__callback__) if id(value()) in copies else value
    if type(value) is _WrappedHook:
        return _WrappedHook(_shared(value.hook, copies), _shared(value.module(), copies) if value.with_module else None)
    if type(value) is functools.partial:
        parts = [_shared(part, copies) for part in (value.func, value.args, value.keywords)]
        return functools.partial(parts[0], *parts[1], **parts[2])
    if isinstance(value, dict) and type(value).__module__ in ("builtins", "collections"):
        copies[id(value)] = copied = value.copy()
        copied.clear()
        for key, each in value.items():  # not update(), which a Counter has for counting
            copied[_shared(key, copies)] = _shared(each, copies)
        return copied
    if type(value) in (list, deque):
        copies[id(value)] = items = value.copy()  # a deque has a maximum
        items.clear()
        items.extend(_shared(each, copies) for each in value)
        return items
    if type(value) in (set, frozenset):
        return type(value)(_shared(each, copies) for each in value)
    if isinstance(value, tuple) and hasattr(value, "_make"):  # a named one
        return value._make(_shared(each, copies) for each in value)
    return tuple(_shared(each, copies) for each in value) if type(value) is tuple else value
