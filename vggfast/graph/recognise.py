"""From modules to layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from vggfast.graph.layers import Conv, Flatten, Layer, Linear, Lrn, MaxPool, Relu, RowMean, Windows

Check = Callable[[str, nn.Module], None]  # raises TypeError where a module's parameters are not an engine's


def trunk_of(model: nn.Module) -> nn.Sequential:
    """The convolutional layers of a model."""
    trunk = model if isinstance(model, nn.Sequential) else getattr(model, "features", None)
    if not isinstance(trunk, nn.Sequential):
        raise TypeError(f"model must be a VGG, or an nn.Sequential of its layers, got {type(model).__name__}")
    return trunk


def trunk_layers(trunk: nn.Sequential, check: Check) -> Iterator[tuple[Layer, str]]:
    """Each layer of a trunk with the name of its output, as "conv1_2", "relu4_3" or "pool5"."""
    stage, index = 1, 0
    for name, module, norm in _with_batch_norm(trunk, check):
        if isinstance(module, nn.Conv2d):
            index += 1
            yield _conv(name, module, norm), f"conv{stage}_{index}"
        elif isinstance(module, nn.ReLU):
            yield Relu(), f"relu{stage}_{index}"
        elif isinstance(module, nn.LocalResponseNorm):
            yield Lrn(module.size, module.alpha, module.beta, module.k), f"norm{stage}_{index}"
        elif isinstance(module, nn.MaxPool2d) and _is_pool2x2(module):
            yield MaxPool(module.ceil_mode), f"pool{stage}"
            stage, index = stage + 1, 0
        elif not isinstance(module, nn.Dropout | nn.Identity):
            raise _unknown(name, module)


def head_layers(model: nn.Module, check: Check) -> Iterator[Layer]:
    """The layers after the trunk: none where the model has no head."""
    avgpool, classifier = getattr(model, "avgpool", None), getattr(model, "classifier", None)
    if classifier is None:
        return
    layers: list[Any] = list(classifier) if isinstance(classifier, nn.Sequential) else [classifier]
    if not layers:
        raise ValueError("classifier has no layers: remove it, or run the layers of model.features")
    dense = isinstance(layers[0], nn.Conv2d)
    if dense and isinstance(avgpool, nn.Identity | None):
        yield Windows(layers[0].kernel_size[0])
    elif not dense and isinstance(avgpool, nn.AdaptiveAvgPool2d) and (size := _square(avgpool.output_size)):
        yield Flatten(size)
    else:
        raise _unknown("avgpool", avgpool)
    for i, layer in enumerate(layers):
        if isinstance(layer, nn.Linear) or _is_dense(layer, first=i == 0):
            check(f"classifier[{i}]", layer)
            yield Linear(layer.weight.detach().flatten(1), None if layer.bias is None else layer.bias.detach())
        elif isinstance(layer, nn.ReLU):
            yield Relu()
        elif not isinstance(layer, nn.Dropout | nn.Identity):
            raise _unknown(f"classifier[{i}]", layer)
    if dense:
        yield RowMean()


def _unknown(name: str, module: object) -> ValueError:
    text = " ".join(str(module).split())
    return ValueError(f"{name} is {text}, which is no layer of a VGG (3x3 or 1x1 convolution, ...)")


def _conv(name: str, conv: nn.Conv2d, norm: nn.BatchNorm2d | None) -> Conv:
    same = conv.padding in ("same", tuple(k // 2 for k in conv.kernel_size))
    if conv.kernel_size not in ((1, 1), (3, 3)) or not same or not _is_plain(conv):
        raise _unknown(name, conv)
    return Conv(*_folded(conv, norm))


def _is_plain(conv: nn.Conv2d) -> bool:
    return conv.stride == conv.dilation == (1, 1) and conv.groups == 1 and conv.padding_mode == "zeros"


def _is_dense(layer: nn.Module, first: bool) -> bool:
    """Whether this is a linear layer written as a convolution; the first one alone may have a window."""
    if not isinstance(layer, nn.Conv2d):
        return False
    window = _square(layer.kernel_size)
    return window is not None and (first or window == 1) and layer.padding in ((0, 0), "valid") and _is_plain(layer)


def _square(size: object) -> int | None:
    """The one number that a square size is given as, or None."""
    if isinstance(size, tuple):
        return size[0] if size[0] == size[1] else None
    return size if isinstance(size, int) else None


def _is_pool2x2(pool: nn.MaxPool2d) -> bool:
    return (
        _square(pool.kernel_size) == _square(pool.stride) == 2
        and _square(pool.padding) == 0
        and _square(pool.dilation) == 1
        and not pool.return_indices
    )


def _with_batch_norm(trunk: nn.Sequential, check: Check) -> Iterator[tuple[str, nn.Module, nn.BatchNorm2d | None]]:
    """(name, module, the batch norm after it): a batch norm comes with its convolution."""
    children = list(trunk._modules.items())  # named_children() leaves out a module that comes again
    for i, (name, module) in enumerate(children):
        check(f"features[{name}]", module)
        if isinstance(module, nn.BatchNorm2d) and i > 0 and isinstance(children[i - 1][1], nn.Conv2d):
            continue
        norm = children[i + 1][1] if i + 1 < len(children) else None
        yield f"features[{name}]", module, norm if isinstance(norm, nn.BatchNorm2d) else None


def _folded(conv: nn.Conv2d, norm: nn.BatchNorm2d | None) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of the convolution with its batch norm, computed in float64."""
    if norm is None:
        return conv.weight.detach(), None if conv.bias is None else conv.bias.detach()
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError(f"{norm} tracks no running statistics: a batch norm without them cannot be folded")
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    bias = torch.zeros_like(scale) if conv.bias is None else conv.bias.double()
    bias = (bias - norm.running_mean.double()) * scale
    if norm.bias is not None:
        bias = bias + norm.bias.double()
    return (conv.weight.double() * scale[:, None, None, None]).float(), bias.float()
