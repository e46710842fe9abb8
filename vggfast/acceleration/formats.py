"""One conversion into NHWC and one out of it for a whole model, whatever is between its layers.

Layers of ours keep the memory format of their input, so that each convolution of a residual network would convert it
to NHWC and back. Within a call of a model that has the two hooks below, they give NHWC instead, which torch's own
layers keep, and what the model returns is converted once.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import CodeType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.utils._pytree import tree_leaves, tree_map_only

from vggfast.acceleration.choice import modules_of
from vggfast.layers import within
from vggfast.nn import Conv1x1, Conv3x3, FusedSequential, LocalResponseNorm, MaxPool2x2
from vggfast.ops import _library as lib

_OF_MAPS = (Conv3x3, Conv1x1, MaxPool2x2, LocalResponseNorm, FusedSequential)
_NEED_NCHW = {"view", "view_as", "as_strided"}  # they fail on other strides, or mean something else
_KNOWN = ("torch", "torchvision", "vggfast")  # their code runs on channels_last maps


def hand_on(model: nn.Module) -> None:
    """Has the layers of `model` hand maps on as NHWC, where there are several and no code around them forbids it."""
    model = unwrapped(model)
    parts = [module for _, module in modules_of(model)]
    fused = {child for part in parts if isinstance(part, FusedSequential) for child in part.children()}
    alone = [part for part in parts if isinstance(part, _OF_MAPS) and part not in fused]
    if len(alone) > 1 and _enter not in model._forward_pre_hooks.values() and not needs_nchw(parts):
        model.register_forward_pre_hook(_enter, prepend=True)
        model.register_forward_hook(_leave, prepend=True, with_kwargs=True, always_call=True)


def stop(module: nn.Module) -> None:
    """Undoes :func:`hand_on` of this very module."""
    for hooks, ours in ((module._forward_pre_hooks, _enter), (module._forward_hooks, _leave)):
        for key in [key for key, hook in hooks.items() if hook is ours]:
            del hooks[key]
            module._forward_hooks_with_kwargs.pop(key, None)
            module._forward_hooks_always_called.pop(key, None)


def unwrapped(model: nn.Module) -> nn.Module:
    while isinstance(model, DataParallel | DistributedDataParallel):
        model = model.module
    return model


def needs_nchw(modules: list[nn.Module]) -> bool:
    """Whether code of a module names a function that takes contiguous maps alone, such as ``Tensor.view``."""
    classes = {kind for module in modules for kind in type(module).__mro__ if not _is_known(kind.__module__)}
    classes |= {type(module) for module in modules if isinstance(module, GraphModule)}  # made in torch, of others' code
    found = [value for kind in classes for value in vars(kind).values()]
    found += [value for module in modules for value in vars(module).values() if isinstance(value, FunctionType)]
    return any(not _NEED_NCHW.isdisjoint(code.co_names) for value in found for code in _code_of(value))


def _is_known(room: str | None) -> bool:
    return (room or "").partition(".")[0] in (*_KNOWN, "builtins")


def _code_of(value: Any) -> Iterator[CodeType]:
    """The code of a function, or of a member of a class, and of all functions within."""
    value = getattr(value, "__func__", getattr(value, "fget", value))
    if isinstance(value, FunctionType) and not _is_known(value.__module__):
        yield from _nested(value.__code__)


def _nested(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _nested(constant)


def _enter(model: nn.Module, args: Any) -> None:
    if not torch.compiler.is_compiling():
        _drop(model)  # of a call that was interrupted
        within.models.append(id(model))


def _leave(model: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
    if torch.compiler.is_compiling():
        return None
    _drop(model)
    if within.models or any(map(_is_nhwc, tree_leaves((args, kwargs)))) or not any(map(_is_nhwc, tree_leaves(output))):
        return None
    return tree_map_only(Tensor, lambda t: lib.contiguous(t) if _is_nhwc(t) else t, output)


def _drop(model: nn.Module) -> None:
    if id(model) in within.models:
        del within.models[within.models.index(id(model)) :]


def _is_nhwc(value: Any) -> bool:
    dense = isinstance(value, Tensor) and value.layout is torch.strided and not value.is_nested and value.dim() == 4
    return dense and value.is_contiguous(memory_format=torch.channels_last) and not value.is_contiguous()
