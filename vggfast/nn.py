"""Our modules, and the sequence of them that runs neighbours as one op."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import module as _module
from torch.overrides import has_torch_function_unary

from vggfast.layers import PLAIN, Conv1x1, Conv3x3, Linear, LocalResponseNorm, MaxPool2x2
from vggfast.ops import _library as lib
from vggfast.ops.conv import conv_nhwc

__all__ = ["Conv1x1", "Conv3x3", "FusedSequential", "Linear", "LocalResponseNorm", "MaxPool2x2"]


def _is_bare(module: nn.Module) -> bool:
    """Whether nobody watches or replaces this module's own forward."""
    return not (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
    )


def _any_global_hooks() -> bool:
    return bool(
        _module._global_forward_hooks
        or _module._global_forward_pre_hooks
        or _module._global_backward_hooks
        or _module._global_backward_pre_hooks
    )


def _bare(modules: list[nn.Module], i: int, kind: type) -> Any:
    """The i-th module where it is exactly of this kind and bare, else None."""
    return modules[i] if i < len(modules) and type(modules[i]) is kind and _is_bare(modules[i]) else None


class FusedSequential(nn.Sequential):
    """An ``nn.Sequential`` that runs conv, ReLU and max-pool in a row as one op.

    What is fused is decided at each call, from the modules as they are then: a hook, a replaced module or a changed
    setting un-fuses its run. NCHW input is converted to NHWC once at the edge, and the output back.
    """

    def forward(self, x: Tensor) -> Tensor:
        special = type(x) not in PLAIN and has_torch_function_unary(x)  # a default device makes it true of any tensor
        if special or x.dim() != 4 or _any_global_hooks():
            return super().forward(x)
        nchw = not lib.is_channels_last(x)
        y = x
        for module, epilogue in self._steps():
            if epilogue is not None:
                y = conv_nhwc(y, module.weight, module.bias, *epilogue)
            else:  # a hook sees the layout that the caller uses
                y = module(y.contiguous() if nchw and not _is_bare(module) else y)
        return y.contiguous() if nchw and y is not x and y.dim() == 4 else y

    def _steps(self) -> Iterator[tuple[Any, tuple[bool, bool] | None]]:
        """(convolution, (relu, pool)) for a run to fuse, (module, None) for any other module."""
        modules = list(self)
        i = 0
        while i < len(modules):
            conv = _bare(modules, i, Conv3x3) or _bare(modules, i, Conv1x1)
            if conv is None or not conv.is_ours():
                yield modules[i], None
                i += 1
                continue
            i += 1
            relu = _bare(modules, i, nn.ReLU) is not None
            i += relu
            pool = _bare(modules, i, MaxPool2x2)
            fused = pool is not None and pool.is_ours() and not pool.ceil_mode
            i += fused
            yield conv, (relu, fused)
