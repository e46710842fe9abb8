"""The distinct 3x3 layers of VGG-16 at 224x224, and their three passes by each algorithm of ours and of torch."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from vggfast import _native
from vggfast.ops.conv import conv, conv_dgrad, conv_wgrad

# (Cin, Cout, H = W)
LAYERS = [(3, 64, 224), (64, 64, 224), (64, 128, 112), (128, 128, 112), (128, 256, 56), (256, 256, 56),
          (256, 512, 28), (512, 512, 28), (512, 512, 14)]  # fmt: skip
PASSES = ("fprop", "dgrad", "wgrad")
ALGORITHMS = _native.conv_algorithms()
TORCHS = ("torch NCHW", "torch channels_last")


def _by(algorithm: str, call: Callable[[], Tensor]) -> Callable[[], Tensor]:
    def run() -> Tensor:
        _native.set_conv_algorithm(algorithm)
        return call()

    return run


def _torchs(x: Tensor, weight: Tensor, gy: Tensor, which: str) -> Tensor:
    if which == "fprop":
        return F.conv2d(x, weight, padding=1)
    mask = [which == "dgrad", which == "wgrad", False]
    gradients = torch.ops.aten.convolution_backward(gy, x, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, mask)
    return gradients[PASSES.index(which) - 1]


def candidates(x: Tensor, weight: Tensor, gy: Tensor, which: str) -> dict[str, Callable[[], Tensor]]:
    """{name: call} for one pass; a call returns the tensor to check."""
    ours = {
        "fprop": lambda: conv(x, weight, None, False, False, False)[0],
        "dgrad": lambda: conv_dgrad(gy, None, weight, *x.shape[2:]),
        "wgrad": lambda: conv_wgrad(x, gy, None, 3, False)[0],
    }[which]
    calls = {name: _by(name, ours) for name in ALGORITHMS}
    x_nchw, gy_nchw = x.contiguous(), gy.contiguous()
    calls["torch NCHW"] = lambda: _torchs(x_nchw, weight, gy_nchw, which)
    calls["torch channels_last"] = lambda: _torchs(x, weight, gy, which)
    return calls


def exact(x: Tensor, weight: Tensor, gy: Tensor, which: str) -> Tensor:
    """The pass in float64, by torch."""
    return _torchs(x.double(), weight.double(), gy.double(), which)


def relative_error(result: Tensor, reference: Tensor) -> float:
    """Relative L2 error."""
    return ((result.double() - reference).norm() / reference.norm()).item()
