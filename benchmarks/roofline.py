"""What the CUDA kernels ask of a GPU, layer by layer: counted by the simulator, no GPU needed; and what an H200's
ceilings would make of it. The milliseconds are an estimate, a bound from below; where a result file holds a measured
figure for the same layer, it stands beside it.

Each launch is run for some of its blocks and scaled up to all, so that whole layers of VGG-16 can be counted. Waves are
blocks per multiprocessor. In MB: "asked" is what all threads load; "L2" what each block loads once or more, which a
perfect L1 lets through; "operands" what products read of shared memory.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import timing
import torch
from layers import LAYERS, PASSES
from peers.report import draw
from rich.progress import track
from simulated import ROOT, Simulated, simulator

from vggfast.ops import _backends, local_response_norm, max_pool2x2
from vggfast.ops.conv import conv, conv_dgrad, conv_wgrad

RESULTS = ROOT / "benchmarks" / "results" / "roofline-h200.json"
MEASURED = ROOT / "benchmarks" / "results" / "conv-cuda.json"
POOLED = {(64, 64, 224), (128, 128, 112), (256, 256, 56), (512, 512, 28), (512, 512, 14)}
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "tf32": torch.float32, "fp32": torch.float32}


@dataclass(frozen=True)
class Ceilings:
    """An H200's: measured through PyTorch (product, copy), published or reckoned from the clock (the others)."""

    multiprocessors: int = 132
    flops: float = 788e12  # a large bf16 product; tf32 takes half, fp32 by FFMA a fraction
    memory: float = 4.3e12  # bytes/s of a device copy
    l2: float = 8e12  # bytes/s, about
    shared: float = 132 * 128 * 1.755e9  # 128 bytes a clock and multiprocessor

    def of(self, dtype: str) -> float:
        return self.flops / {"bf16": 1, "fp16": 1, "tf32": 2, "fp32": 788 / 60}[dtype]


class Counted(Simulated):
    """Results are of no use: few blocks are run.

    Attributes:
        bytes: of the tensors of the last call, once each: what it cannot help moving to and from memory.
    """

    bytes = 0

    def run(self, name, *args):
        self.bytes = sum(arg.numel() * arg.element_size() for arg in args if isinstance(arg, torch.Tensor))
        super().run(name, *args)


def name_of(cin: int, cout: int, size: int, which: str) -> str:
    return f"{cin}→{cout} {size}² {which}"


def calls(batch: int, dtype: torch.dtype) -> list[tuple[str, Callable[[], object]]]:
    """Every pass of every distinct layer of VGG-16, as training runs it, and the kernels beside the convolutions."""

    def tensor(*shape):
        return torch.zeros(shape, dtype=dtype).contiguous(memory_format=torch.channels_last)

    def layer(cin, cout, size, which):
        pool = (cin, cout, size) in POOLED
        x, weight = tensor(batch, cin, size, size), tensor(cout, cin, 3, 3)
        if which == "fprop":
            return conv(x, weight, torch.zeros(cout, dtype=dtype), True, pool, True)
        out = size // 2 if pool else size
        gy = tensor(batch, cout, out, out)
        selection = torch.zeros(batch, 3 if pool else 1, out, out, cout // 8, dtype=torch.uint8)
        if which == "dgrad":
            return conv_dgrad(gy, selection, weight, size, size)
        return conv_wgrad(x, gy, selection, 3, True)

    every = [
        (name_of(cin, cout, size, which), lambda c=(cin, cout, size, which): layer(*c))
        for cin, cout, size in LAYERS
        for which in PASSES
    ]
    return [
        *every,
        ("max-pool 64 x 224²", lambda: max_pool2x2(tensor(batch, 64, 224, 224))),
        ("LRN 64 x 224²", lambda: local_response_norm(tensor(batch, 64, 224, 224))),
    ]


def estimate(kernel: str, c: dict, moved: int, dtype: str, ceilings: Ceilings) -> tuple[float, str]:
    """The milliseconds that a launch cannot beat, and what bounds it; `moved`: bytes of the op that it belongs to."""
    helps = kernel.startswith(("pack_weights", "reduce_wgrad"))  # what these move stays in L2
    bounds = [
        (2 * c["multiply_adds"] / ceilings.of(dtype), "products"),
        (0 if helps else moved / ceilings.memory, "memory"),
        ((c["global_distinct"] + c["global_written"]) / ceilings.l2, "L2"),
        ((c["shared_read"] + c["shared_written"]) / ceilings.shared, "shared memory"),
    ]
    seconds, what = max(bounds)
    return seconds * 1e3, what


def measured(batch: int, dtype: str) -> dict[str, float]:
    """Milliseconds of ours by layer and pass from a GPU session's results, where there are some of this kind."""
    if not MEASURED.exists():
        return {}
    return {
        name_of(row["cin"], row["cout"], row["size"], row["which"]):
            timing.median_and_spread(row["seconds"]["vggfast"])[0] * 1e3
        for row in json.loads(MEASURED.read_text())["rows"]
        if (row.get("batch"), row.get("dtype")) == (batch, dtype) and "vggfast" in row["seconds"]
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=8, help="images (default 8)")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16", help="default bf16")
    parser.add_argument("--blocks", type=int, default=4, help="blocks of each launch that are run (default 4)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="JSON file for the counters")
    arguments = parser.parse_args()
    ceilings, known = Ceilings(), measured(arguments.batch, arguments.dtype)
    if (module := simulator()) is None:
        raise SystemExit("the simulator is not built: make sim")
    counted = Counted(module)
    _backends.OF_DEVICE["cpu"] = lambda index: counted
    torch.backends.cudnn.conv.fp32_precision = "tf32" if arguments.dtype == "tf32" else "ieee"
    module.set_blocks(arguments.blocks)
    rows, table = [], []
    with torch.no_grad():
        for name, call in track(calls(arguments.batch, DTYPES[arguments.dtype]), "layers"):
            module.clear_counters()
            call()
            for kernel, counts in module.counters().items():
                milliseconds, bound = estimate(kernel, counts, counted.bytes, arguments.dtype, ceilings)
                rows.append({"layer": name, "kernel": kernel, "estimate_ms": milliseconds, "bound": bound, **counts})
                got = known.get(name) if kernel.startswith(("conv", "stem")) else None
                table.append([name, kernel.removesuffix("_kernel"), f"{counts['blocks']}",
                              f"{counts['blocks'] / ceilings.multiprocessors:.1f}",
                              f"{counts['global_read'] / 1e6:.0f}", f"{counts['global_distinct'] / 1e6:.0f}",
                              f"{counts['global_written'] / 1e6:.0f}",
                              f"{counts['shared_read'] / 1e6:.0f}", f"{counts['multiply_adds'] / 1e9:.2f}",
                              f"{milliseconds:.3f}", bound, "" if got is None else f"{got:.3f}"])  # fmt: skip
    title = f"batch {arguments.batch}, {arguments.dtype}: MB counted by the simulator; an H200's ms, from below"
    columns = (
        "layer",
        "kernel",
        "blocks",
        "waves",
        "asked",
        "L2",
        "stored",
        "operands",
        "GMAC",
        "est. ms",
        "by",
        "got",
    )
    draw(title, columns, table)
    timing.write_results(arguments.out, rows, batch=arguments.batch, dtype=arguments.dtype, estimate=True)


if __name__ == "__main__":
    main()
