"""What a Hopper GPU makes of e4m3 values, to the bit: sums of convolutions, and a trunk of an engine of "fp8"."""

import torch
import torch.nn.functional as F
from e4m3_sums import hopper_sums
from torch import nn

from tests.support.comparisons import plain_torch

STAGE = 128  # channels, of one tap


def hopper_conv(x, weight, by_columns):
    """The sums, in float32, of a convolution of e4m3 values, stage by stage of the kernels.

    Args:
        x: (N, Cin, H, W), values of e4m3.
        weight: (Cout, Cin, K, K), values of e4m3.
        by_columns: whether the taps follow each other in columns, as in a halo tile, or in rows.
    """
    n, cin, h, w = x.shape
    k = weight.shape[2]
    order = [k * i + j for j in range(k) for i in range(k)] if by_columns else list(range(k * k))
    chunk = min(STAGE, cin + -cin % 32)

    def in_stages(rows):
        rows = F.pad(rows[..., order].transpose(1, 2), (0, -cin % chunk))
        return rows.unflatten(2, (-1, chunk)).transpose(1, 2).flatten(1)

    windows = F.unfold(x.float(), k, padding=k // 2).transpose(1, 2).reshape(n * h * w, cin, k * k)
    sums = hopper_sums(in_stages(windows), in_stages(weight.float().flatten(2)))
    return sums.reshape(n, h, w, -1).permute(0, 3, 1, 2)


def quantised(t, scale):
    """The values of e4m3 nearest to t / scale, times the scale, in float64."""
    return (t / scale).clamp(-448, 448).float().to(torch.float8_e4m3fn).double() * scale


def emulated(features, calibration, x, letters):
    """A trunk's map in float64, summed by halo tiles and rounded where the engine is to; the runs' outputs are in
    `letters`' formats."""
    runs, modules = [], list(plain_torch(features).double())
    for module in modules:
        one = runs and isinstance(runs[-1][0], nn.Conv2d) and runs[-1][0].kernel_size == (1, 1)
        if isinstance(module, nn.Conv2d) or (one and isinstance(module, nn.MaxPool2d)):
            runs.append([])
        runs[-1].append(module)
    assert len(runs) == len(letters)
    exact, y, scale = calibration.double(), x.bfloat16().double(), None  # y's, where it is e4m3
    for run, letter in zip(runs, letters, strict=True):
        first, exact = run[0], nn.Sequential(*run)(exact)
        if isinstance(first, nn.Conv2d):
            weight, bias = first.weight.detach(), first.bias.detach()
            bias = bias if scale or letter == "e" else bias.bfloat16().double()
            if scale:
                own = weight.abs().max() / 448
                y = scale * own * hopper_conv(y / scale, quantised(weight, own) / own, by_columns=True).double()
            else:
                y = F.conv2d(y, weight.bfloat16().double(), padding=first.padding)
            y = nn.Sequential(*run[1:])(y + bias[:, None, None])
        else:
            y = nn.Sequential(*run)(y)
        scale = exact.abs().max() / 448 if letter == "e" else None
        y = quantised(y, scale) if scale else y.bfloat16().double()
    return y
