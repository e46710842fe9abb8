"""The distinct 3x3 layers of VGG-16 at 224x224, and their three passes by each algorithm of ours and of torch; in
bfloat16, and fprop in int8, by the one that is chosen."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vggfast import Engine, _native
from vggfast.ops.conv import conv, conv_dgrad, conv_wgrad

# (Cin, Cout, H = W)
LAYERS = [(3, 64, 224), (64, 64, 224), (64, 128, 112), (128, 128, 112), (128, 256, 56), (256, 256, 56),
          (256, 512, 28), (512, 512, 28), (512, 512, 14)]  # fmt: skip
PASSES = ("fprop", "dgrad", "wgrad")
ALGORITHMS = _native.conv_algorithms()
TORCHS = ("torch NCHW", "torch channels_last")
BF16 = ("auto bf16", "torch bf16")
INT8 = ("Engine int8", "torch int8")


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


def _algorithms(x: Tensor, weight: Tensor, which: str) -> list[str]:
    """Those that have a kernel for this pass: the others would run by one of these."""
    cin, cout = (weight.shape[1], weight.shape[0])[:: -1 if which == "dgrad" else 1]
    before, found = _native.conv_algorithm(), []
    for name in ALGORITHMS:
        _native.set_conv_algorithm(name)
        algorithm, _ = _native.load().conv_cost(which, len(x), cin, *x.shape[2:], cout, 3)
        if name in ("auto", algorithm):
            found.append(name)
    _native.set_conv_algorithm(before)
    return found


def candidates(x: Tensor, weight: Tensor, gy: Tensor, which: str) -> dict[str, Callable[[], Tensor]]:
    """{name: call} for one pass; a call returns the tensor to check."""
    ours = {
        "fprop": lambda: conv(x, weight, None, False, False, False)[0],
        "dgrad": lambda: conv_dgrad(gy, None, weight, *x.shape[2:]),
        "wgrad": lambda: conv_wgrad(x, gy, None, 3, False)[0],
    }[which]
    calls = {name: _by(name, ours) for name in _algorithms(x, weight, which)}
    x_nchw, gy_nchw = x.contiguous(), gy.contiguous()
    calls["torch NCHW"] = lambda: _torchs(x_nchw, weight, gy_nchw, which)
    calls["torch channels_last"] = lambda: _torchs(x, weight, gy, which)
    return calls


def bf16_candidates(x: Tensor, weight: Tensor, gy: Tensor, which: str) -> dict[str, Callable[[], Tensor]]:
    """The same in bfloat16, all of them rounded to it: ours as it chooses, and torch's in channels_last."""
    found = candidates(x.bfloat16(), weight.bfloat16(), gy.bfloat16(), which)
    return dict(zip(BF16, (found["auto"], found[TORCHS[1]]), strict=True))


def int8_candidates(x: Tensor, weight: Tensor) -> dict[str, Callable[[], Tensor]]:
    """fprop in int8, of x that is at least 0. Both read and write float32 maps, as a layer alone must; in a network the
    maps between layers have 8 bits."""
    layer = nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1, bias=False).requires_grad_(False)
    layer.weight.copy_(weight)
    engine = Engine(nn.Sequential(nn.ReLU(), layer), dtype="int8", calibration=x, batch=len(x), size=x.shape[2])
    scale = x.amax().item() / 255
    scales = weight.abs().amax((1, 2, 3)) / 127
    rounded = (weight / scales[:, None, None, None]).round().to(torch.int8)
    geometry = [1, 1], [1, 1], [1, 1], 1  # stride, padding, dilation, groups
    onednn, zeros = torch.ops.onednn, torch.zeros(len(scales), dtype=torch.int32)
    packed = onednn.qconv_prepack(rounded, scales, scale, 0, *geometry, list(x.shape))

    def torchs() -> Tensor:
        values = torch.quantize_per_tensor(x, scale, 0, torch.quint8).int_repr()
        return onednn.qconv2d_pointwise(
            values, scale, 0, packed, scales, zeros, None, *geometry, 1.0, 0, torch.float32, "none", [], ""
        )

    return dict(zip(INT8, (lambda: engine(x), torchs), strict=True))


def exact(x: Tensor, weight: Tensor, gy: Tensor, which: str) -> Tensor:
    """The pass in float64, by torch."""
    return _torchs(x.double(), weight.double(), gy.double(), which)


def relative_error(result: Tensor, reference: Tensor) -> float:
    """Relative L2 error."""
    return ((result.double() - reference).norm() / reference.norm()).item()
