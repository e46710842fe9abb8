"""Convolutions in a row, run by one call, so that nobody else sees what lies between them.

The gradient of a ReLU's output is needed as far as the ReLU's mask lets it pass, no further. Where the kernels gain by
it, the dgrad of the convolution behind the ReLU writes it so, and the one before the ReLU reads no mask; the gradients
of weights, biases and the row's input are the same bits. The gradient between the two would look masked to a hook, so
that the convolutions run as in any other place where somebody might put one there.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from vggfast._checks import PLAIN
from vggfast.ops import _library as lib
from vggfast.ops._backends import masks_gx
from vggfast.ops.conv import conv, conv_nhwc


class ConvLayer(NamedTuple):
    """A convolution of a row: what :func:`vggfast.ops.conv.conv_nhwc` takes beside x."""

    weight: Tensor
    bias: Tensor | None
    relu: bool
    pool: bool
    exact: bool | None


def convs_nhwc(x: Tensor, layers: Sequence[ConvLayer]) -> Tensor:
    """The layers one after the other, each as :func:`vggfast.ops.conv.conv_nhwc`."""
    unseen = len(layers) > 1 and _is_unseen(x, layers)
    x_mask: Tensor | None = None
    for layer, following in itertools.zip_longest(layers, layers[1:]):
        weight, bias, relu, pool, exact = layer
        gy_masked = unseen and following is not None and relu and not pool and lib.needs_grad(x, weight, bias)
        if x_mask is None and not gy_masked:
            x = conv_nhwc(x, *layer)
            continue
        x, mask = conv(x, weight, bias, relu, pool, relu or pool, exact, x_mask, gy_masked)
        x_mask = mask if gy_masked else None
    return x


def _is_unseen(x: Tensor, layers: Sequence[ConvLayer]) -> bool:
    """Whether the back end wants masked gradients, and nobody gets hold of a tensor between two ops: no mode (but a
    default device), no transform, no tracer, and no tensor with code of its own."""
    if torch.compiler.is_compiling() or not torch.is_grad_enabled() or type(x) not in PLAIN or not masks_gx(x):
        return False
    if torch._C._are_functorch_transforms_active() or torch._C._get_tracing_state() or lib.in_forward_mode():
        return False
    if not all(t is None or type(t) in PLAIN for layer in layers for t in layer[:2]):
        return False
    modes = (*_get_current_function_mode_stack(), *_get_current_dispatch_mode_stack())
    return all(type(mode) is DeviceContext for mode in modes)
