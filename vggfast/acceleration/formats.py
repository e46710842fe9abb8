"""One conversion into NHWC and one out of it for a whole model, whatever is between its layers.

Layers of ours keep the memory format of their input, so that each convolution of a residual network would convert it
to NHWC and back. Within a call of a model that has the first two hooks below, they give NHWC instead, which torch's own
layers keep, and what the model returns is converted once. torch's convolutions have the third, for one that came first
would keep the format of the model's input, and so would all behind it, up to a layer of ours.
"""

from __future__ import annotations

import copy
import functools
import sys
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.utils._pytree import tree_leaves, tree_map

from vggfast.acceleration.choice import class_of, modules_of
from vggfast.graph import needs_nchw
from vggfast.layers import takes_nhwc, within
from vggfast.nn import Conv1x1, Conv3x3, FusedSequential, LocalResponseNorm, MaxPool2x2
from vggfast.ops import _library as lib

_OF_MAPS = (Conv3x3, Conv1x1, MaxPool2x2, LocalResponseNorm, FusedSequential)


def hand_on(model: nn.Module) -> None:
    """Has the layers of `model` hand maps on as NHWC, where there are several and no code around them forbids it."""
    model = unwrapped(model)
    parts = [module for _, module in modules_of(model)]
    fused = {child for part in parts if isinstance(part, FusedSequential) for child in part.children()}
    alone = [part for part in parts if isinstance(part, _OF_MAPS) and part not in fused]
    if len(alone) > 1 and _enter not in model._forward_pre_hooks.values() and not needs_nchw(parts):
        model.register_forward_pre_hook(_enter, prepend=True)
        model.register_forward_hook(_leave, prepend=True, with_kwargs=True, always_call=True)
        for part in parts:
            if class_of(part) is nn.Conv2d and _take not in part._forward_pre_hooks.values():
                part.register_forward_pre_hook(_take)


def stop(module: nn.Module) -> None:
    """Takes the hooks of :func:`hand_on` from this very module."""
    for hooks in (module._forward_pre_hooks, module._forward_hooks):
        for key in [key for key, hook in hooks.items() if hook in (_enter, _leave, _take)]:
            del hooks[key]
            module._forward_hooks_with_kwargs.pop(key, None)
            module._forward_hooks_always_called.pop(key, None)


def unwrapped(model: nn.Module) -> nn.Module:
    while isinstance(model, DataParallel | DistributedDataParallel):
        model = model.module
    return model


def _enter(model: nn.Module, args: Any) -> None:
    if not torch.compiler.is_compiling():
        within.enter(sys._getframe(1))


def _leave(model: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
    if torch.compiler.is_compiling():
        return None
    within.leave(sys._getframe(1))
    if within.a_model() or _has_nhwc((args, kwargs)) or not _has_nhwc(output):
        return None
    return tree_map(functools.partial(_contiguous, done={}), output)


def _take(convolution: nn.Module, args: Any) -> Any:
    if not args or not takes_nhwc(args[0]):
        return None
    return (args[0].contiguous(memory_format=torch.channels_last), *args[1:])


def _contiguous(value: Any, done: dict[int, Any]) -> Any:
    """`value` with contiguous maps in the place of NHWC ones; a copy where it is an object that holds some."""
    if _is_nhwc(value):
        return lib.contiguous(value)
    if id(value) in done or not _has_nhwc(value):
        return done.get(id(value), value)
    done[id(value)] = copied = copy.copy(value)
    for name, member in _members(value).items():
        changed = tree_map(functools.partial(_contiguous, done=done), member)
        if isinstance(copied, dict | list):
            copied[name] = changed
        else:
            object.__setattr__(copied, name, changed)  # a frozen one too
    return copied


def _has_nhwc(value: Any) -> bool:
    """Whether there are NHWC maps among what a module takes or returns."""
    waiting, seen = tree_leaves(value), set()
    while waiting:
        each = waiting.pop()
        if _is_nhwc(each):
            return True
        if id(each) not in seen and (members := _members(each)):
            seen.add(id(each))
            waiting += tree_leaves(list(members.values()))
    return False


def _members(value: Any) -> dict[Any, Any]:
    """By name, what a dataclass, or a subclass of dict or list, holds: torch's trees end there."""
    if isinstance(value, dict):
        return dict(value.items())
    if isinstance(value, list):
        return dict(enumerate(value))
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in fields(value) if hasattr(value, field.name)}
    return {}


def _is_nhwc(value: Any) -> bool:
    dense = isinstance(value, Tensor) and value.layout is torch.strided and not value.is_nested and value.dim() == 4
    return dense and value.is_contiguous(memory_format=torch.channels_last) and not value.is_contiguous()
