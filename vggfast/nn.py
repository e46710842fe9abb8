"""Our modules, and the sequence of them that runs neighbours as one op."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import has_torch_function_unary

from vggfast._checks import PLAIN
from vggfast._deprecated import renamed_argument
from vggfast.graph import folded, is_known_code, needs_nchw, runs
from vggfast.graph.guard import any_global_hooks, know
from vggfast.graph.layers import BatchNorm
from vggfast.layers import (
    BatchNorm2d,
    Conv1x1,
    Conv3x3,
    Linear,
    LocalResponseNorm,
    MaxPool2x2,
    batch_norm,
    folds,
    hands_on,
)
from vggfast.ops import _library as lib
from vggfast.ops.conv import conv_nhwc
from vggfast.ops.conv_rows import ConvLayer, convs_nhwc

_Step = tuple[Any, Any, tuple[bool, bool] | None]  # as graph.runs has them
_NOTHING: _Step = (None, None, None)

__all__ = ["BatchNorm2d", "Conv1x1", "Conv3x3", "FusedSequential", "Linear", "LocalResponseNorm", "MaxPool2x2"]


@know
class FusedSequential(nn.Sequential):
    """An ``nn.Sequential`` that runs conv or batch norm, ReLU and max-pool in a row as one op.

    What is fused is decided at each call, from the modules as they are then: a hook, a replaced module or a changed
    setting un-fuses its run. NCHW input is converted to NHWC once at the edge, and the output back; and so are maps for
    modules that are not torch's, whose code may take contiguous ones alone. What is no plain tensor of maps goes
    through the modules one by one, as in torch.
    """

    @renamed_argument("x", "input")
    def forward(self, input: Tensor) -> Tensor:
        if not isinstance(input, Tensor) or input.layout is not torch.strided or input.is_nested:
            return super().forward(input)
        # A default device makes it true of any tensor.
        special = type(input) not in PLAIN and has_torch_function_unary(input)
        if special or input.dim() != 4 or any_global_hooks() or lib.exports_onnx():
            return super().forward(input)
        within = hands_on()
        nchw = not lib.is_channels_last(input) and not within
        y: Any = input
        for row, (module, norm, epilogue) in _rows(runs(list(self))):
            if row:
                y = convs_nhwc(y, row)
            elif epilogue is not None and isinstance(module, Conv3x3 | Conv1x1):
                y = _convolved(module, norm, y, epilogue)
            elif epilogue is not None:
                y = batch_norm(module, y, *epilogue)
            elif is_known_code(module) or not (needs_nchw(module.modules()) if within else nchw and y is not input):
                y = module(y)
            else:  # others' code and hooks see the layout that the caller uses
                y = module(_contiguous(y))
        return _contiguous(y) if nchw and y is not input else y


def _rows(steps: Iterable[_Step]) -> Iterator[tuple[list[ConvLayer], _Step]]:
    """Convolutions without a norm that follow each other, in one list; and each other step, beside an empty one."""
    row: list[ConvLayer] = []
    for module, norm, epilogue in steps:
        if epilogue is not None and norm is None and isinstance(module, Conv3x3 | Conv1x1):
            row.append(ConvLayer(module.weight, module.bias, *epilogue, module._exact))
            continue
        if row:
            yield row, _NOTHING
            row = []
        yield row, (module, norm, epilogue)
    if row:
        yield row, _NOTHING


def _convolved(conv: Conv3x3 | Conv1x1, norm: Any, x: Tensor, epilogue: tuple[bool, bool]) -> Tensor:
    if not folds(conv, norm, x):
        return batch_norm(norm, conv_nhwc(x, conv.weight, conv.bias, False, False, conv._exact), *epilogue)
    layer = BatchNorm(norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.eps)
    weight, bias = (t.to(x.dtype) for t in folded(conv.weight, conv.bias, layer))
    return conv_nhwc(x, weight, bias, *epilogue, conv._exact)


def _contiguous(value: Any) -> Any:
    strided = isinstance(value, Tensor) and value.layout is torch.strided and not value.is_nested
    return value.contiguous() if strided else value
