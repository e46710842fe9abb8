"""Modules on our ops that stand in for torch's: the same classes by inheritance, the same attributes and state.

Each checks its own settings when it runs: one that was changed to something our kernels do not compute (a stride of 2,
say) runs torch's op instead, so that rewriting a network keeps its meaning.
"""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.utils import _pair
from torch.nn.utils.parametrize import is_parametrized

from vggfast import _registries, ops
from vggfast._checks import PLAIN, check_dense, check_memory, check_tensors, is_recorded
from vggfast._deprecated import renamed_argument
from vggfast.ops import fc
from vggfast.ops._backends import WIDE
from vggfast.ops._library import check_same, exports_onnx, in_forward_mode, is_channels_last, needs_grad
from vggfast.ops.conv import conv_nhwc
from vggfast.ops.lrn import lrn
from vggfast.ops.norm import batch_norm_nhwc, fits
from vggfast.ops.pool import max_pool

_CONV_FORWARD = nn.Conv2d._conv_forward  # somebody may put another into the class, or into a module
LEAST_MAPS = 1 << 21  # values from which on memory of our pool makes up for what a call of ours costs beside its work
_NAMED_PADDINGS = {3: ("same",), 1: ("same", "valid")}  # of a kernel's extent: those that keep the size


class _Within(threading.local):
    """The calls of models that this thread is in whose layers hand maps on as NHWC (vggfast.acceleration).

    Each is known by the frame that runs it. After an interrupt, for which torch calls no hook, that frame runs no more,
    and the call is forgotten.
    """

    def __init__(self) -> None:
        self.calls: list[FrameType] = []  # outermost first

    def enter(self, call: FrameType) -> None:
        self.a_model()
        self.calls.append(call)

    def leave(self, call: FrameType) -> None:
        if self.calls and self.calls[-1] is call:
            self.calls.pop()

    def a_model(self) -> bool:
        """Whether one of the calls still runs."""
        while self.calls and not _runs(self.calls[-1]):
            self.calls.pop()
        return bool(self.calls)


def _runs(frame: FrameType) -> bool:
    now: FrameType | None = sys._getframe(1)
    while now is not None and now is not frame:
        now = now.f_back
    return now is frame


within = _Within()


def hands_on() -> bool:
    """Whether layers give NHWC whatever they take, since the model around them converts what it gives itself."""
    return not torch.compiler.is_compiling() and within.a_model() and not exports_onnx()


def takes_nhwc(x: Any) -> bool:
    """Whether a layer takes this input as NHWC, and gives NHWC: it is of the kind that kernels read as it is."""
    return type(x) in PLAIN and hands_on() and x.dim() == 4 and x.layout is torch.strided and not x.is_nested


def _batched(run: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """run(x), where torch's modules also take one image without N; what torch.fx has in its place stands for N."""
    check_dense(x, "x")
    return run(x[None])[0] if isinstance(x, Tensor) and x.dim() == 3 else run(x)


def _is_quantised_later(x: Any) -> bool:
    """Whether `x` stands in torch.fx for a tensor in a graph whose layers torch.ao looks for and quantises: it knows
    torch's functions alone."""
    return not isinstance(x, Tensor) and type(getattr(x, "tracer", None)).__name__ == "QuantizationTracer"


def _is_whole(x: Any) -> bool:
    """Whether `x` has whole numbers, quantised ones too: torch has kernels of some layers for them, we have none."""
    if not isinstance(x, Tensor):
        return False
    return not (x.dtype.is_floating_point or x.dtype.is_complex or x.dtype == torch.bool)


class _InPlaceOfTorchs(nn.Module):
    """What our classes do for tools that look a layer up by its exact class."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        _registries.announce(type(self))

    def apply(self, fn: Callable[[nn.Module], Any]):
        _registries.announce(type(self))  # a counter of multiply-adds goes this way
        return super().apply(fn)

    @property
    def qconfig(self) -> Any:
        """What torch.ao's quantisation of modules sets in each."""
        if "qconfig" not in vars(self):
            raise AttributeError("qconfig")
        return vars(self)["qconfig"]

    @qconfig.setter
    def qconfig(self, value: Any) -> None:
        vars(self)["qconfig"] = value
        name = type(self).__name__
        text = (
            f"torch.ao.quantization leaves {name} of vggfast in float, for it looks for torch's own classes: quantise "
        )
        warnings.warn(text + "vggfast.accelerate.restore(model) in its place", stacklevel=2)

    @qconfig.deleter
    def qconfig(self) -> None:
        vars(self).pop("qconfig", None)


class _Conv(_InPlaceOfTorchs, nn.Conv2d):
    _kernel: int
    _padding: int
    _exact: bool | None = None  # whether its sums are direct, or the process's setting (vggfast.accelerate)

    def __init__(self, in_channels: int, out_channels: int, bias: bool = True) -> None:
        super().__init__(in_channels, out_channels, self._kernel, padding=self._padding, bias=bias)

    def is_ours(self) -> bool:
        """Whether the settings, and torch's own part of the computation, are still those that our kernels replace."""
        return (
            type(self)._conv_forward is _CONV_FORWARD
            and "_conv_forward" not in vars(self)
            and self.kernel_size == (self._kernel,) * 2
            and self.padding in ((self._padding,) * 2, *_NAMED_PADDINGS[self._kernel])
            and self.stride == self.dilation == (1, 1)
            and self.groups == 1
            and self.padding_mode == "zeros"
        )

    def extra_repr(self) -> str:
        return super().extra_repr() + ("" if self._exact is None else f", exact={self._exact}")

    def _run(self, op: Callable[..., Tensor], x: Tensor) -> Tensor:
        if not self.is_ours() or _is_quantised_later(x):
            return nn.Conv2d.forward(self, x)
        if takes_nhwc(x):
            return conv_nhwc(x, self.weight, self.bias, False, False, self._exact)
        return _batched(lambda batch: op(batch, self.weight, self.bias, exact=self._exact), x)


class Conv3x3(_Conv):
    """``nn.Conv2d(in, out, 3, padding=1)`` on :func:`vggfast.ops.conv3x3`. Input (N, Cin, H, W), a floating dtype."""

    _kernel, _padding = 3, 1

    @renamed_argument("x", "input")
    def forward(self, input: Tensor) -> Tensor:
        return self._run(ops.conv3x3, input)


class Conv1x1(_Conv):
    """``nn.Conv2d(in, out, 1)`` on :func:`vggfast.ops.conv1x1`. Input (N, Cin, H, W), a floating dtype."""

    _kernel, _padding = 1, 0

    @renamed_argument("x", "input")
    def forward(self, input: Tensor) -> Tensor:
        return self._run(ops.conv1x1, input)


class MaxPool2x2(_InPlaceOfTorchs, nn.MaxPool2d):
    """``nn.MaxPool2d(2, 2)`` on :func:`vggfast.ops.max_pool2x2`. Input (N, C, H, W), a floating dtype;
    whole numbers run torch's."""

    def __init__(self, ceil_mode: bool = False) -> None:
        super().__init__(kernel_size=2, stride=2, ceil_mode=ceil_mode)

    def is_ours(self) -> bool:
        """Whether the settings are still those that our kernels compute."""
        return (
            _pair(self.kernel_size) == _pair(self.stride) == (2, 2)
            and _pair(self.padding) == (0, 0)
            and _pair(self.dilation) == (1, 1)
            and not self.return_indices
        )

    @renamed_argument("x", "input")
    def forward(self, input: Tensor) -> Tensor:
        if not self.is_ours() or _is_quantised_later(input) or _is_whole(input):
            return super().forward(input)
        if takes_nhwc(input):
            return max_pool(input, self.ceil_mode, needs_grad(input))[0]
        return _batched(lambda batch: ops.max_pool2x2(batch, ceil_mode=self.ceil_mode), input)


class Linear(_InPlaceOfTorchs, nn.Linear):
    """``nn.Linear`` on :func:`vggfast.ops.linear` where that is faster: a few plain rows (N, in_features) on the CPU,
    of float32 or, with tile registers, bfloat16, by autocast too.

    Whatever else meets it, subclasses of tensors or transforms of torch.func, meets torch's own.
    """

    @renamed_argument("x", "input")
    def forward(self, input: Tensor) -> Tensor:
        if not isinstance(input, Tensor):
            check_dense(input, "x")
        weight = self.weight  # once: a parametrisation computes it at each access
        if not runs_linear(input, weight):
            try:
                return nn.functional.linear(input, weight, self.bias)
            except (RuntimeError, AssertionError, ValueError):  # in torch's words
                _check_linear(input, weight)
                raise
        return ops.linear(input, weight, self.bias)


def runs_linear(x: Tensor, weight: Tensor) -> bool:
    """Whether our kernels compute a linear layer of this weight for `x`, as things are now."""
    plain = type(x) in PLAIN and type(weight) in PLAIN and not torch._C._are_functorch_transforms_active()
    fits = fc.fits if torch.compiler.is_compiling() else fc.is_ours  # a compiled graph may take more rows or fewer
    cast = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
    return plain and x.dim() == 2 and fits(x, weight, cast)


def _check_linear(x: Tensor, weight: Tensor) -> None:
    """Raises where torch's product cannot take them, in the words of ours."""
    check_tensors(x=x, weight=weight)
    if x.dim() < 1 or x.shape[-1] != weight.shape[1]:
        raise ValueError(f"x must have a last axis of {weight.shape[1]}, weight's inputs, got shape {tuple(x.shape)}")
    check_same(weight, "weight", x, "x")
    check_memory(x, "x")
    check_memory(weight, "weight")


def _are_maps(x: Any) -> bool:
    """Whether our normalisations take this shape; torch's also take others."""
    return not isinstance(x, Tensor) or x.is_nested or (x.dim() == 4 and 0 not in x.shape[1:])


class LocalResponseNorm(_InPlaceOfTorchs, nn.LocalResponseNorm):
    """``nn.LocalResponseNorm`` on :func:`vggfast.ops.local_response_norm`, with the paper's parameters as defaults.

    Input (N, C, H, W), a floating dtype; other ranks, whole numbers and forward-mode derivatives run torch's.
    """

    def __init__(self, size: int = 5, alpha: float = 1e-4, beta: float = 0.75, k: float = 2.0) -> None:
        super().__init__(size, alpha, beta, k)  # alpha is divided by size, as in the authors' Caffe

    @renamed_argument("x", "input")
    def forward(self, input: Tensor) -> Tensor:
        torchs = in_forward_mode() or _is_whole(input) or not _are_maps(input)
        if torchs and not getattr(input, "is_quantized", False):  # which torch has not either, in more words
            return super().forward(input)
        if takes_nhwc(input):
            return lrn(input, self.size, self.alpha, self.beta, self.k)
        return ops.local_response_norm(input, self.size, self.alpha, self.beta, self.k)


class BatchNorm2d(_InPlaceOfTorchs, nn.BatchNorm2d):
    """``nn.BatchNorm2d`` on :func:`vggfast.ops.batch_norm` where that is faster by itself: for channels_last maps
    (N, C, H, W) of at least 2^21 values on the CPU, float32 or float64. All else runs torch's."""

    def forward(self, input: Tensor) -> Tensor:
        tracer: Any = None if isinstance(input, Tensor) else getattr(input, "tracer", None)
        if hasattr(tracer, "path_of_module"):  # torch.fx, which keeps torch's as modules
            return tracer.create_proxy("call_module", tracer.path_of_module(self), (input,), {})
        return batch_norm(self, input, False, False) if runs_batch_norm(self, input) else super().forward(input)


def runs_batch_norm(module: Any, x: Any) -> bool:
    """Whether our kernels compute a batch norm that stands alone, or a frozen one, for `x`, as things are now."""
    if torch.compiler.is_compiling() or is_recorded() or is_parametrized(module):
        return False
    if type(x) not in PLAIN or x.layout is not torch.strided or x.is_nested:
        return False
    large = x.numel() >= LEAST_MAPS and x.dtype in WIDE and is_channels_last(x)
    return large and _normalises(module, x, isinstance(module, nn.BatchNorm2d) and _by_the_batch(module))


def folds(conv: _Conv, norm: nn.BatchNorm2d, x: Tensor) -> bool:
    """Whether `norm`, right behind `conv` and nowhere else, is better computed within it for maps `x`: in inference,
    where the weights are few beside the maps that it would have to read and write."""
    if torch.compiler.is_compiling() or is_recorded() or torch.is_autocast_enabled("cpu") or _by_the_batch(norm):
        return False
    weight, channels = conv.weight, (norm.running_mean, norm.running_var, norm.weight, norm.bias, conv.bias)
    given = [t for t in channels if t is not None]
    return (
        type(x) in PLAIN
        and x.dim() == 4
        and x.dtype in WIDE
        and x.device.type == "cpu"
        and x.shape[0] * x.shape[2] * x.shape[3] * weight.shape[0] >= 16 * weight.numel()
        and norm.running_mean is not None
        and norm.running_var is not None
        and all(type(t) in PLAIN and t.dtype == x.dtype and t.device == x.device for t in (weight, *given))
        and all(t.shape == weight.shape[:1] for t in given)
        and not needs_grad(x, weight, *given)
    )


def _by_the_batch(module: nn.BatchNorm2d) -> bool:
    return module.training or (module.running_mean is None and module.running_var is None)


def batch_norm(module: nn.BatchNorm2d, x: Tensor, relu: bool, pool: bool) -> Tensor:
    """What a batch norm makes of maps, with ReLU and 2x2/2 max-pool as asked, and of its running statistics; as NHWC
    where our kernels take them."""
    mean, var = module.running_mean, module.running_var
    own = _by_the_batch(module)
    if not _normalises(module, x, own):
        y = module(x)
        y = nn.functional.relu(y, inplace=True) if relu else y
        return ops.max_pool2x2(y) if pool else y
    share = 0.0 if module.momentum is None else module.momentum
    if module.training and module.track_running_stats and module.num_batches_tracked is not None:
        module.num_batches_tracked.add_(1)
        share = 1 / float(module.num_batches_tracked) if module.momentum is None else share
    if module.training and not module.track_running_stats:
        mean = var = None
    return batch_norm_nhwc(x, mean, var, module.weight, module.bias, own, share, module.eps, relu, pool)


def _normalises(module: Any, x: Tensor, own: bool) -> bool:
    """Whether our kernels normalise `x`, by its `own` statistics or by those of the module."""
    mean, var, weight, bias = module.running_mean, module.running_var, module.weight, module.bias
    return (
        type(x) in PLAIN
        and fits(x, mean, var, weight, bias)
        and not torch._C._are_functorch_transforms_active()
        and not in_forward_mode()
        and (mean is None) == (var is None)
        and all(t is None or t.shape == x.shape[1:2] for t in (mean, var, weight, bias))
        and not any(t is not None and t.requires_grad for t in (mean, var))
        and x.shape[0] * x.shape[2] * x.shape[3] > int(own)  # torch.jit.trace has no comparison with a bool
    )
