"""What the CUDA kernels ask of a GPU, layer by layer: counted by the simulator, no GPU needed; and what an H200's
ceilings would make of it. Milliseconds and shares are estimates; where a result file holds a measured figure for the
same layer, it stands beside them.

Each launch is run for some of its blocks and scaled up to all, so that whole layers of VGG-16 can be counted. Where
blocks stay for several tiles, those that run are among the busiest: the others count as if they were. Waves are blocks
per SM. In MB: "asked" is what all threads load; "L2" what each block loads once or more, which a perfect L1
lets through; "operands" what products read of shared memory.

"est. ms" is the greatest of the bounds that the counters give (of products and shared memory, for the SM
that has the most blocks) and, for the Hopper fprop and dgrad, of their own model ("model"), which knows of waves and
epilogues; "tile" is what they chose. The model's clocks count at the rate at which the products' peak is the measured
one. "share" is the layer's own multiply-adds, without tiles' overhang, of what the peak would do in that time; "of
all": in the time of all launches of the pass. A share that a bound says, not the model, is the most that it can be.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import timing
import torch
from layers import LAYERS, PASSES
from peers.report import draw
from rich.progress import track
from simulated import ROOT, Simulated, simulator
from tiles import KERNEL, MACS, choices, fprop_of

from vggfast.ops import _backends, local_response_norm, max_pool2x2
from vggfast.ops.conv import conv, conv_dgrad, conv_wgrad

RESULTS = ROOT / "benchmarks" / "results" / "roofline-h200.json"
MEASURED = ROOT / "benchmarks" / "results" / "conv-h200.json"
POOLED = {(64, 64, 224), (128, 128, 112), (256, 256, 56), (512, 512, 28), (512, 512, 14)}
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "tf32": torch.float32, "fp32": torch.float32}


@dataclass(frozen=True)
class Ceilings:
    """An H200's: measured through PyTorch (product, copy), published or reckoned from the clock (the others)."""

    num_sms: int = 132
    flops: float = 788e12  # a large bf16 product; tf32 takes half, fp32 by FFMA a fraction
    memory: float = 4.3e12  # bytes/s of a device copy
    l2: float = 8e12  # bytes/s, about
    shared: float = 132 * 128 * 1.755e9  # 128 bytes a clock and SM

    @property
    def clock(self) -> float:
        """Hz at which all tensor cores together do `flops`: under them the GPU does not keep its highest clock."""
        return self.flops / (self.num_sms * 2 * MACS)

    def of(self, dtype: str) -> float:
        return self.flops / {"bf16": 1, "fp16": 1, "tf32": 2, "fp32": 788 / 60}[dtype]


class Counted(Simulated):
    """Results are of no use: few blocks are run.

    Attributes:
        bytes: of the tensors of the last call, once each: what it cannot help moving to and from memory.
    """

    bytes = 0

    def run(self, name, *args, **options):
        self.bytes = sum(arg.numel() * arg.element_size() for arg in args if isinstance(arg, torch.Tensor))
        return super().run(name, *args, **options)


class Pass(NamedTuple):
    cin: int
    cout: int
    size: int
    which: str

    @property
    def name(self) -> str:
        return f"{self.cin}→{self.cout} {self.size}² {self.which}"

    @property
    def pool(self) -> bool:
        return self[:3] in POOLED

    def multiply_adds(self, batch: int) -> int:
        return 9 * self.cin * self.cout * self.size**2 * batch


def calls(batch: int, dtype: torch.dtype) -> list[tuple[str, Pass | None, Callable[[], object]]]:
    """Every pass of every distinct layer of VGG-16, as training runs it, and the kernels beside the convolutions."""

    def tensor(*shape):
        return torch.zeros(shape, dtype=dtype).contiguous(memory_format=torch.channels_last)

    def layer(case):
        cin, cout, size, which = case
        pool = case.pool
        x, weight = tensor(batch, cin, size, size), tensor(cout, cin, 3, 3)
        if which == "fprop":
            return conv(x, weight, torch.zeros(cout, dtype=dtype), True, pool, True)
        out = size // 2 if pool else size
        gy = tensor(batch, cout, out, out)
        mask = torch.zeros(batch, 3 if pool else 1, out, out, cout // 8, dtype=torch.uint8)
        if which == "dgrad":
            return conv_dgrad(gy, mask, weight, size, size)
        return conv_wgrad(x, gy, mask, 3, True)

    every = [Pass(*shape, which) for shape in LAYERS for which in PASSES]
    return [
        *((case.name, case, lambda case=case: layer(case)) for case in every),
        ("max-pool 64 x 224²", None, lambda: max_pool2x2(tensor(batch, 64, 224, 224))),
        ("LRN 64 x 224²", None, lambda: local_response_norm(tensor(batch, 64, 224, 224))),
    ]


def estimate(
    kernel: str, c: dict, moved: int, dtype: str, ceilings: Ceilings, clocks: float | None
) -> tuple[float, str]:
    """A launch's milliseconds, and what says so: what it cannot beat, or its kernel's model. `moved`: bytes of the op
    that it belongs to; `clocks`: the model's, where there is one."""
    helps = kernel.startswith(("pack_weights", "reduce_wgrad"))  # what these move stays in L2
    waves = c["blocks"] / c["launches"] / ceilings.num_sms
    busiest = math.ceil(waves) / waves  # of the SMs, beside all of them on average
    bounds = [
        (busiest * 2 * c["multiply_adds"] / ceilings.of(dtype), "products"),
        (0 if helps else moved / ceilings.memory, "memory"),
        ((c["global_distinct"] + c["global_written"]) / ceilings.l2, "L2"),
        (busiest * (c["shared_read"] + c["shared_written"]) / ceilings.shared, "shared memory"),
        ((clocks or 0) / ceilings.clock, "model"),
    ]
    seconds, what = max(bounds)
    return seconds * 1e3, what


def measured(batch: int, dtype: str) -> dict[str, float]:
    """Milliseconds of ours by layer and pass from a GPU session's results, where there are some of this kind."""
    if not MEASURED.exists():
        return {}
    return {
        Pass(row["cin"], row["cout"], row["size"], row["which"]).name:
            timing.median_and_spread(row["seconds"]["vggfast"])[0] * 1e3
        for row in json.loads(MEASURED.read_text())["rows"]
        if (row.get("batch"), row.get("dtype")) == (batch, dtype) and "vggfast" in row["seconds"]
    }  # fmt: skip


def launches(
    module: ModuleType, layer: Pass | None, moved: int, arguments: argparse.Namespace, ceilings: Ceilings
) -> list[dict[str, Any]]:
    """A row for each kernel that has run since the counters were cleared."""
    rows = []
    for kernel, counts in module.counters().items():
        tile, clocks = None, None
        if layer and kernel == KERNEL:
            problem = fprop_of(*layer[:3], arguments.batch, layer.which, layer.pool, arguments.dtype)
            chosen = next(c for c in choices(module.cuda, problem, ceilings.num_sms) if c.chosen)
            tile, clocks = chosen.tile, chosen.clocks
        milliseconds, bound = estimate(kernel, counts, moved, arguments.dtype, ceilings, clocks)
        rows.append({"kernel": kernel, "estimate_ms": milliseconds, "bound": bound, "tile": tile, **counts})
    if layer:
        least = 2 * layer.multiply_adds(arguments.batch) / ceilings.of(arguments.dtype) * 1e3
        for row in rows:
            if row["multiply_adds"]:
                row["share"] = least / row["estimate_ms"]
                row["share_of_all"] = least / sum(other["estimate_ms"] for other in rows)
    return rows


COLUMNS = ("layer", "kernel", "blocks", "waves", "asked", "L2", "stored", "operands", "GMAC", "est. ms", "by", "share",
           "of all", "got", "tile")  # fmt: skip


def line(row: dict[str, Any], got: float | None, ceilings: Ceilings) -> list[str]:
    """A row as the table has it; `got`: milliseconds measured."""
    megabytes = [f"{row[name] / 1e6:.0f}" for name in ("global_read", "global_distinct", "global_written",
                                                       "shared_read")]  # fmt: skip
    shares = [f"{row[name]:.0%}" if name in row else "" for name in ("share", "share_of_all")]
    return [row["layer"], row["kernel"].removesuffix("_kernel"), f"{row['blocks']}",
            f"{row['blocks'] / ceilings.num_sms:.1f}", *megabytes, f"{row['multiply_adds'] / 1e9:.2f}",
            f"{row['estimate_ms']:.3f}", row["bound"], *shares, "" if got is None else f"{got:.3f}",
            row["tile"] or ""]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
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
        for name, layer, call in track(calls(arguments.batch, DTYPES[arguments.dtype]), "layers"):
            module.clear_counters()
            call()
            for row in launches(module, layer, counted.bytes, arguments, ceilings):
                rows.append({"layer": name, **row})
                got = known.get(name) if row["multiply_adds"] else None
                table.append(line(rows[-1], got, ceilings))
    title = (f"batch {arguments.batch}, {arguments.dtype}: MB counted by the simulator; ms and shares of an H200's "
             f"peak are estimates, the model's at {ceilings.clock / 1e9:.2f} GHz")  # fmt: skip
    draw(title, COLUMNS, table)
    timing.write_results(arguments.out, rows, batch=arguments.batch, dtype=arguments.dtype, estimate=True,
                         ceilings={**vars(ceilings), "clock": ceilings.clock})  # fmt: skip


if __name__ == "__main__":
    main()
