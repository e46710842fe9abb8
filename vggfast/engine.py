"""Inference of a whole network in one native call: weights packed once, one arena, batch norm folded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vggfast import _native
from vggfast._native import view

_PRECISIONS = ("fp32", "bf16")


def _precision(name: str, value: str) -> bool:
    if value not in _PRECISIONS:
        raise ValueError(f"{name} is {value!r}: one of {', '.join(map(repr, _PRECISIONS))} is wanted")
    return value == "bf16"


class Engine:
    """A network ready for fast inference on the CPU.

    A snapshot of the model as ``model.eval()`` computes it: batch norm folded into the convolutions, dropout gone.
    Build it again after the weights or :func:`vggfast.set_exact` change. It keeps its own packed weights, so the model
    may be deleted; any number of threads may share it, and they take turns. After the first call of a shape nothing is
    allocated but the results.

    Args:
        model: one of ours with any head, any of torchvision's VGGs, or an ``nn.Sequential`` of their layers (such as
            ``vgg16().features[:23]``), float32, on the CPU.
        dtype: of the activations between layers, "fp32" or "bf16"; the arithmetic is float32 either way. "bf16" keeps
            the weights of the FC layers in bfloat16 too.
        weights: of the FC layers as they are kept, "fp32" or "bf16": half the memory to read.
        threads: of each call; None takes what torch is set to then.
        batch, size: of the images to expect, ``size`` x ``size`` pixels each: the algorithms and the packed weights
            are chosen for them. Any others will do, only not as fast; a larger batch asks for more memory.

    Raises:
        ValueError, TypeError: an argument does not fit, or a layer has no counterpart here; the text names it.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        dtype: str = "fp32",
        weights: str = "fp32",
        threads: int | None = None,
        batch: int = 1,
        size: int = 224,
    ) -> None:
        if threads is not None and threads < 1:
            raise ValueError(f"threads is {threads}: 1 or more is wanted")
        bf16 = _precision("dtype", dtype)
        self._threads = threads
        self._core = _native.load().Engine(
            bf16=bf16,
            bf16_weights=_precision("weights", weights) or bf16,
            threads=self.threads,
            batch=batch,
            size=size,
        )
        self._names: dict[str, int] = {}  # of features: the number of the layer that ends it
        trunk = model if isinstance(model, nn.Sequential) else getattr(model, "features", None)
        if not isinstance(trunk, nn.Sequential):
            raise TypeError(f"model is {type(model).__name__}: a VGG, or an nn.Sequential of its layers, is wanted")
        with torch.no_grad():
            self._add_trunk(trunk)
            self._last_feature = self._core.layers() - 1
            if model is not trunk and getattr(model, "classifier", None) is not None:
                self._add_head(model)

    @property
    def threads(self) -> int:
        """Threads of the next call."""
        return self._threads or _native.threads()

    @property
    def taps(self) -> tuple[str, ...]:
        """The names that :meth:`features` takes, in the order of the layers."""
        return tuple(self._names)

    @property
    def bytes(self) -> int:
        """Memory that the engine holds: packed weights and arena."""
        return self._core.bytes()

    def __call__(self, x: Tensor) -> Tensor:
        """What the model computes in eval mode.

        Args:
            x: (N, C, H, W), float32, of any memory format.

        Returns:
            (N, classes) logits; without a head, as :meth:`features`.

        Raises:
            ValueError, TypeError: x does not fit; the text says how.
        """
        return self._run(x, [self._core.layers() - 1])[0]

    def features(self, x: Tensor, taps: Sequence[str] | None = None) -> Tensor | dict[str, Tensor]:
        """The convolutional layers' output, or the outputs of the layers named.

        Args:
            x: (N, C, H, W), float32, of any memory format.
            taps: names as "conv1_2", "relu4_3" or "pool5" (see :attr:`taps`).

        Returns:
            (N, channels, h, w), float32, channels_last; with `taps`, a dict of such tensors. No layer after the last
            one named is computed.

        Raises:
            ValueError, TypeError: x or a name does not fit; the text says how.
        """
        if taps is None:
            return self._run(x, [self._last_feature])[0]
        for tap in taps:
            if tap not in self._names:
                raise ValueError(f"taps has {tap!r}: names among {', '.join(self._names)} are wanted")
        layers = sorted({self._names[tap] for tap in taps})
        if not layers:
            raise ValueError("taps is empty: at least one name is wanted")
        outputs = dict(zip(layers, self._run(x, layers), strict=True))
        return {tap: outputs[self._names[tap]] for tap in taps}

    def _run(self, x: Tensor, layers: list[int]) -> list[Tensor]:
        if x.dim() != 4:
            raise ValueError(f"x has shape {tuple(x.shape)}: 4 axes (N, C, H, W) are wanted")
        if x.dtype != torch.float32 or x.device.type != "cpu":
            raise TypeError(f"x is {x.dtype} on {x.device}: torch.float32 on cpu is wanted")
        if x.requires_grad and torch.is_grad_enabled():
            raise ValueError("x requires a gradient, and an engine computes none: use the model, or torch.no_grad()")
        outputs = []
        for layer in layers:
            shape = self._core.output_shape(layer, *x.shape)
            memory_format = torch.channels_last if len(shape) == 4 else torch.contiguous_format
            outputs.append(_native.empty(shape, torch.float32, memory_format))
        self._core.run(view(x), list(zip(layers, map(view, outputs), strict=True)), self.threads)
        return outputs

    # ---- from modules to layers ---------------------------------------------------------------------------------

    def _add_trunk(self, trunk: nn.Sequential) -> None:
        stage, index = 1, 0
        for name, module, norm in _with_batch_norm(trunk):
            if isinstance(module, nn.Conv2d):
                self._add_conv(name, module, norm)
                index += 1
                self._name(f"conv{stage}_{index}")
            elif isinstance(module, nn.ReLU):
                self._core.add_relu()
                self._name(f"relu{stage}_{index}")
            elif isinstance(module, nn.LocalResponseNorm):
                self._core.add_lrn(module.size, module.alpha, module.beta, module.k)
                self._name(f"norm{stage}_{index}")
            elif isinstance(module, nn.MaxPool2d) and _is_pool2x2(module):
                self._core.add_max_pool(module.ceil_mode)
                self._name(f"pool{stage}")
                stage, index = stage + 1, 0
            elif not isinstance(module, nn.Dropout | nn.Identity):
                raise _unknown(name, module)
        if not self._names:
            raise ValueError("model has no layers to run")

    def _name(self, tap: str) -> None:
        self._names[tap] = self._core.layers() - 1

    def _add_conv(self, name: str, conv: nn.Conv2d, norm: nn.BatchNorm2d | None) -> None:
        same = conv.padding in ("same", tuple(k // 2 for k in conv.kernel_size))
        if conv.kernel_size not in ((1, 1), (3, 3)) or not same or not _is_plain(conv):
            raise _unknown(name, conv)
        weight, bias = _folded(conv, norm)
        self._core.add_conv(view(weight), None if bias is None else view(bias))

    def _add_head(self, model: nn.Module) -> None:
        avgpool, classifier = getattr(model, "avgpool", None), model.classifier
        layers: list[Any] = list(classifier) if isinstance(classifier, nn.Sequential) else [classifier]
        if not layers:
            raise ValueError("classifier has no layers: remove it, or run the layers of model.features")
        dense = isinstance(layers[0], nn.Conv2d)
        if dense and isinstance(avgpool, nn.Identity | None):
            self._core.add_windows(layers[0].kernel_size[0])
        elif not dense and isinstance(avgpool, nn.AdaptiveAvgPool2d) and (size := _square(avgpool.output_size)):
            self._core.add_flatten(size)
        else:
            raise _unknown("avgpool", avgpool)
        for i, layer in enumerate(layers):
            if isinstance(layer, nn.Linear) or _is_dense(layer, first=i == 0):
                _checked(f"classifier[{i}]", layer)
                weight, bias = layer.weight.detach().flatten(1), layer.bias
                self._core.add_linear(view(weight), None if bias is None else view(bias.detach().contiguous()))
            elif isinstance(layer, nn.ReLU):
                self._core.add_relu()
            elif not isinstance(layer, nn.Dropout | nn.Identity):
                raise _unknown(f"classifier[{i}]", layer)
        if dense:
            self._core.add_row_mean()


def _unknown(name: str, module: object) -> ValueError:
    text = " ".join(str(module).split())
    return ValueError(f"{name} is {text}: a layer of a VGG (3x3 or 1x1 convolution, ...) is wanted")


def _checked(name: str, module: nn.Module) -> None:
    for parameter in module.parameters(recurse=False):
        if parameter.dtype != torch.float32 or parameter.device.type != "cpu":
            raise TypeError(f"{name} is {parameter.dtype} on {parameter.device}: torch.float32 on cpu is wanted")


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


def _with_batch_norm(trunk: nn.Sequential) -> Iterator[tuple[str, nn.Module, nn.BatchNorm2d | None]]:
    """(name, module, the batch norm after it): a batch norm comes with its convolution."""
    children = list(trunk._modules.items())  # named_children() leaves out a module that comes again
    for i, (name, module) in enumerate(children):
        _checked(f"features[{name}]", module)
        if isinstance(module, nn.BatchNorm2d) and i > 0 and isinstance(children[i - 1][1], nn.Conv2d):
            continue
        norm = children[i + 1][1] if i + 1 < len(children) else None
        yield f"features[{name}]", module, norm if isinstance(norm, nn.BatchNorm2d) else None


def _folded(conv: nn.Conv2d, norm: nn.BatchNorm2d | None) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of the convolution with its batch norm, computed in float64."""
    if norm is None:
        return conv.weight.detach(), None if conv.bias is None else conv.bias.detach().contiguous()
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
