"""The reader of a tree of modules: what each computes in evaluation mode, or a TypeError that names it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from torch import Tensor, nn

from vggfast.graph import layers
from vggfast.graph.guard import check, is_frozen_batch_norm, kind_of, know, known_class, tensor_of, unknown
from vggfast.graph.layers import Found, Quantised
from vggfast.layers import BatchNorm2d, Conv1x1, Conv3x3, Linear, LocalResponseNorm, MaxPool2x2

_NOTHING = (nn.Dropout, nn.Dropout2d, nn.AlphaDropout, nn.FeatureAlphaDropout, nn.Identity)
_BATCH_NORM = (nn.BatchNorm2d, nn.SyncBatchNorm)  # one in evaluation mode
_ELEMENTWISE = (nn.ELU, nn.GELU, nn.Hardswish, nn.LeakyReLU, nn.ReLU6, nn.Sigmoid, nn.SiLU, nn.Softplus, nn.Tanh)
for _kind in (
    nn.Sequential, nn.Conv2d, *_BATCH_NORM, nn.ReLU, nn.MaxPool2d, nn.AdaptiveAvgPool2d, nn.LocalResponseNorm,
    nn.Linear, nn.Flatten, Conv3x3, Conv1x1, MaxPool2x2, BatchNorm2d, Linear, LocalResponseNorm, *_NOTHING,
    *_ELEMENTWISE,
):  # fmt: skip
    know(_kind)


@dataclass(frozen=True)
class Node:
    """A module, where it is in its tree, and what it computes."""

    path: str  # "features.3"
    module: nn.Module
    layer: Found | Quantised


def recognise(sequence: nn.Module, path: str = "model") -> list[Node]:
    """The layers of an ``nn.Sequential`` in order, those of nested ones in their places.

    Args:
        sequence: the modules.
        path: its own name, with which those of its layers begin.

    Raises:
        TypeError: a module whose code or settings are not known; the text names it and what is not known about it.
    """
    if not isinstance(sequence, nn.Sequential):
        raise TypeError(f"{path} must be an nn.Sequential, got {kind_of(sequence)}")
    check(path, sequence)
    nodes = []
    for name, module in sequence._modules.items():  # named_children() leaves out a module that comes again
        at = f"{path}.{name}"
        if isinstance(module, nn.Sequential):
            nodes += recognise(module, at)
        else:
            nodes.append(recognise_one(module, at))
    return nodes


def recognise_one(module: nn.Module | None, path: str, hooks: bool = True) -> Node:
    """A single layer; with `hooks` False whatever hooks it has. Raises as :func:`recognise`."""
    if not isinstance(module, nn.Module):
        raise TypeError(f"{path} must be a module, got {kind_of(module)}")
    trusted = known_class(module) or type(module)  # of several classes that it is of, the one whose code it runs
    for kinds, read in _READERS.items():
        if issubclass(trusted, kinds):
            check(path, module, hooks=hooks)
            return Node(path, module, read(path, module))
    if any(map(is_frozen_batch_norm, trusted.__mro__)):
        check(path, module, hooks=hooks)  # a class of that name alone is not known there
        return Node(path, module, _frozen_batch_norm(path, module))
    raise unknown(path, module, "a layer must be one that a VGG has")


def square(size: object) -> int | None:
    """The one number that a square size is given as, or None."""
    if isinstance(size, tuple | list):
        return square(size[0]) if len(set(size)) == 1 else None
    return int(size) if isinstance(size, Integral) else None  # NumPy's too


def _demand(path: str, module: nn.Module, **allowed: object) -> None:
    """Raises TypeError where a setting is another; squares are written as one number."""
    for name, value in allowed.items():
        found = getattr(module, name)
        same = square(found) if isinstance(value, int) and not isinstance(value, bool) else found
        if same != value:
            raise unknown(path, module, f"its {name} must be {value!r}, got {found!r}")


def _weight_and_bias(path: str, module: nn.Module, axes: int) -> tuple[Tensor, Tensor | None]:
    """(outputs, inputs, ...) and (outputs,), or a TypeError."""
    weight, bias = tensor_of(path, module, "weight"), tensor_of(path, module, "bias")
    if weight is None or weight.dim() != axes:
        found = None if weight is None else tuple(weight.shape)
        raise unknown(path, module, f"its weight must have {axes} axes, got {found}")
    _check_shape(path, module, "bias", bias, weight.shape[:1])
    return weight, bias


def _check_shape(path: str, module: nn.Module, name: str, tensor: Tensor | None, shape: Sequence[int]) -> None:
    if tensor is not None and tensor.shape != shape:
        raise unknown(path, module, f"its {name} must have shape {tuple(shape)}, got {tuple(tensor.shape)}")


def _conv(path: str, module: nn.Conv2d) -> layers.Conv | layers.WindowConv:
    weight, bias = _weight_and_bias(path, module, 4)
    _demand(path, module, stride=1, dilation=1, groups=1, padding_mode="zeros")
    extent = square(tuple(weight.shape[2:]))
    named = {"same": (extent or 0) // 2, "valid": 0}
    padding = named.get(module.padding) if isinstance(module.padding, str) else square(module.padding)
    if extent in (1, 3) and padding == extent // 2:
        return layers.Conv(weight, bias)
    if extent is not None and padding == 0:
        return layers.WindowConv(weight, bias)
    raise unknown(path, module, "a convolution must be 3x3 or 1x1 and keep the size, or be square without padding")


def _batch_norm(path: str, module: Any) -> layers.BatchNorm:
    mean, var = tensor_of(path, module, "running_mean"), tensor_of(path, module, "running_var")
    if mean is None or var is None:
        raise unknown(path, module, "a batch norm must track running statistics, got None")
    weight, bias = tensor_of(path, module, "weight"), tensor_of(path, module, "bias")
    for name, value in {"running_mean": mean, "running_var": var, "weight": weight, "bias": bias}.items():
        _check_shape(path, module, name, value, (mean.numel(),))
    return layers.BatchNorm(mean, var, weight, bias, module.eps)


def _frozen_batch_norm(path: str, module: nn.Module) -> layers.BatchNorm:
    norm = _batch_norm(path, module)
    if norm.weight is None or norm.bias is None:
        raise unknown(path, module, "a frozen batch norm must have a weight and a bias, got None")
    return norm


def _max_pool(path: str, module: nn.MaxPool2d) -> layers.MaxPool:
    _demand(path, module, kernel_size=2, stride=2, padding=0, dilation=1, return_indices=False)
    return layers.MaxPool(module.ceil_mode)


def _average(path: str, module: nn.AdaptiveAvgPool2d) -> layers.AveragePool:
    size = square(module.output_size)
    if size is None or size < 1:
        raise unknown(path, module, f"its output_size must be square, of at least 1, got {module.output_size}")
    return layers.AveragePool(size)


def _linear(path: str, module: nn.Linear) -> layers.Linear:
    return layers.Linear(*_weight_and_bias(path, module, 2))


def _flatten(path: str, module: nn.Flatten) -> layers.Rows:
    _demand(path, module, start_dim=1, end_dim=-1)
    return layers.Rows()


_READERS: dict[type | tuple[type, ...], Callable[..., Found]] = {
    nn.Conv2d: _conv,
    _BATCH_NORM: _batch_norm,
    nn.ReLU: lambda path, module: layers.Relu(),
    nn.MaxPool2d: _max_pool,
    nn.LocalResponseNorm: lambda path, module: layers.Lrn(module.size, module.alpha, module.beta, module.k),
    nn.AdaptiveAvgPool2d: _average,
    nn.Linear: _linear,
    nn.Flatten: _flatten,
    _NOTHING: lambda path, module: None,
    _ELEMENTWISE: lambda path, module: layers.Elementwise(),
}
