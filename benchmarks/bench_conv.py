"""Each distinct 3x3 layer of VGG-16: fprop, dgrad and wgrad of ours and of torch (channels_last), float32, on the CPU.

Both are compared with float64 before anything is timed; candidates take turns; GFLOP/s come from medians. A ratio
above 1 means that vggfast is faster.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import timing
import torch
import torch.nn.functional as F
from rich.progress import track
from torch import Tensor

from vggfast.ops.conv import conv, conv_dgrad, conv_wgrad
from vggfast.training.console import print_table

# (Cin, Cout, H = W) of configuration D at 224x224
LAYERS = [(3, 64, 224), (64, 64, 224), (64, 128, 112), (128, 128, 112), (128, 256, 56), (256, 256, 56),
          (256, 512, 28), (512, 512, 28), (512, 512, 14)]  # fmt: skip
ERROR_LIMIT = 1e-5  # relative L2, fp32 against float64


def candidates(x: Tensor, weight: Tensor, gy: Tensor) -> dict[str, dict]:
    """{pass: {engine: call}}; each call returns the tensor to check."""

    def torchs(*mask: bool):
        index = mask.index(True)
        return lambda: torch.ops.aten.convolution_backward(
            gy, x, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [*mask, False]
        )[index]

    return {
        "fprop": {
            "vggfast": lambda: conv(x, weight, None, False, False, False)[0],
            "torch": lambda: F.conv2d(x, weight, padding=1),
        },
        "dgrad": {"vggfast": lambda: conv_dgrad(gy, weight), "torch": torchs(True, False)},
        "wgrad": {"vggfast": lambda: conv_wgrad(x, gy, 3, False)[0], "torch": torchs(False, True)},
    }


def check(x: Tensor, weight: Tensor, gy: Tensor) -> dict[str, dict[str, float]]:
    """Relative L2 errors against float64; raises where one of ours is too large."""
    exact = {name: calls["torch"]() for name, calls in candidates(x.double(), weight.double(), gy.double()).items()}
    errors = {}
    for name, calls in candidates(x, weight, gy).items():
        errors[name] = {
            engine: ((call().double() - exact[name]).norm() / exact[name].norm()).item()
            for engine, call in calls.items()
        }
        if not errors[name]["vggfast"] < ERROR_LIMIT:
            raise AssertionError(f"{name}: relative error {errors[name]['vggfast']:.1e}: under {ERROR_LIMIT} is wanted")
    return errors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=8, help="images (default 8)")
    parser.add_argument("--rounds", type=int, default=9, help="samples of each candidate (default 9)")
    parser.add_argument("--out", type=Path, help="JSON file for every sample")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    rows, table = [], []
    for cin, cout, size in track(LAYERS, "layers"):
        x = torch.randn(arguments.batch, cin, size, size).contiguous(memory_format=torch.channels_last)
        weight = torch.randn(cout, cin, 3, 3) / (3 * cin**0.5)
        gy = torch.randn(arguments.batch, cout, size, size).contiguous(memory_format=torch.channels_last)
        errors = check(x, weight, gy)
        flops = 2 * 9 * cin * cout * size * size * arguments.batch
        for name, calls in candidates(x, weight, gy).items():
            samples = timing.interleaved(calls, arguments.rounds)
            ours, spread = timing.median_and_spread(samples["vggfast"])
            torchs, _ = timing.median_and_spread(samples["torch"])
            row = {"layer": [cin, cout, size], "pass": name, "batch": arguments.batch, "seconds": samples}
            rows.append({**row, "relative_error": errors[name]})
            table.append((f"{cin} -> {cout}, {size}²", name, f"{flops / ours / 1e9:.0f}",
                          f"{flops / torchs / 1e9:.0f}", f"{torchs / ours:.2f}", f"{spread:.0%}",
                          f"{errors[name]['vggfast']:.1e}"))  # fmt: skip
    columns = ("layer", "pass", "vggfast", "torch", "ratio", "spread", "error")
    print_table(f"GFLOP/s, batch {arguments.batch}, {torch.get_num_threads()} threads", columns, table)
    if arguments.out:
        timing.write_results(arguments.out, rows)


if __name__ == "__main__":
    main()
