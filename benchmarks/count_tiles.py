"""What VGG-16's layers in bfloat16 ask of AMX, one by one: counted by the tiles in software, on any machine;
and what rates that were measured on a Xeon of the 4th generation would make of it. No time is measured here:
milliseconds and shares are estimates.

A product is of two tiles of 1 KB; "pixels" and "weights" are the tiles loaded, "stores" the tiles of sums. In "est. ms"
(of one image on one core) a product takes as long as was measured with weights from where they lie for that number of
channels, a store as long as with its part of the epilogue, and a layer whose maps exceed L2 a fifth more. "ceiling" is
the time of its products alone; "share" what the layer's own multiply-adds would take at the peak, of "est. ms";
"prototype" was measured with a kernel of the same blocking. What a store and maps beyond L2 cost was drawn from that
prototype's times, too: that the estimates come near them says nothing of the estimates.

The second table is of the gradients of weights. "gy" and "x" are the tiles loaded of these, and "est. ms" is of the
products as measured with their loads and stores, operands in L2, and of putting gy and x into tiles. The first layer's
products, which load three tiles for two, were not measured apart.

The third has the FC layers of a batch: y and the gradients of their inputs and weights, as the ops compute them. "MB"
are of weights, read or, for their gradient, written; "memory" is what that takes at the rate measured for memory,
"tiles" what the instructions take with operands in L2; "est. ms" is the larger one, as if either hid the other. Packing
x and rounding what is stored are left out.

`--dtype int8` counts the convolutions that Engine(dtype="int8") runs on tiles, all but the first. A product of 8 bits
takes as long as one of bfloat16, for twice the multiply-adds; its store, and its weights, which are half the bytes for
as many channels, are estimated by the rates of bfloat16. Its prototype was measured on two cores alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import timing
import torch
from peers.report import draw
from torch import nn

from vggfast import Engine, _native
from vggfast.ops.conv import conv_wgrad
from vggfast.ops.fc import MOST_ROWS, linear_dgrad, linear_op, linear_wgrad

RESULTS = Path(__file__).resolve().parent / "results"
FILES = {"bf16": "tiles-counted.json", "int8": "tiles-counted-int8.json"}


class Layer(NamedTuple):
    channels: tuple[int, ...]  # of the input, and of each convolution's output
    size: int
    pool: bool
    times: int = 1  # that VGG-16 has it
    prototype: tuple[float, float] | None = None  # ms an image on one core, measured
    int8_prototype: float | None = None  # on two cores

    @property
    def name(self) -> str:
        return f"{'→'.join(map(str, self.channels))} {self.size}²{' pool' if self.pool else ''}"

    @property
    def multiply_adds(self) -> int:
        pairs = zip(self.channels, self.channels[1:], strict=False)
        return sum(9 * cin * cout for cin, cout in pairs) * self.size**2

    @property
    def map_values(self) -> int:
        """Of the input and the output."""
        return self.size**2 * self.channels[0] + self.size**2 * self.channels[-1] // (4 if self.pool else 1)

    def module(self) -> nn.Sequential:
        layers: list[nn.Module] = []
        for cin, cout in zip(self.channels, self.channels[1:], strict=False):
            layers += [nn.Conv2d(cin, cout, 3, padding=1), nn.ReLU()]
        return nn.Sequential(*layers, *([nn.MaxPool2d(2)] if self.pool else []))


LAYERS = (
    Layer((3, 64, 64), 224, True, prototype=(2.10, 2.20), int8_prototype=0.462),
    Layer((64, 128), 112, False, prototype=(1.05, 1.05), int8_prototype=0.277),
    Layer((128, 128), 112, True, prototype=(1.73, 1.93), int8_prototype=0.480),
    Layer((128, 256), 56, False, prototype=(1.11, 1.11), int8_prototype=0.286),
    Layer((256, 256), 56, False, prototype=(2.05, 2.16), int8_prototype=0.542),
    Layer((256, 256), 56, True, prototype=(1.89, 2.00), int8_prototype=0.511),
    Layer((256, 512), 28, False, prototype=(0.97, 1.03), int8_prototype=0.260),
    Layer((512, 512), 28, False, prototype=(1.96, 2.10), int8_prototype=0.600),
    Layer((512, 512), 28, True, prototype=(1.85, 2.28), int8_prototype=0.564),
    Layer((512, 512), 14, False, 2, prototype=(0.47, 0.50), int8_prototype=0.124),
    Layer((512, 512), 14, True, prototype=(0.47, 0.54), int8_prototype=0.136),
)
FC_LAYERS = {"fc6": (25088, 4096), "fc7": (4096, 4096), "fc8": (4096, 1000)}  # inputs, outputs


def single_layers() -> list[Layer]:
    """VGG-16's convolutions, each kind of them once; their gradients know no pool."""
    times: dict[tuple[tuple[int, ...], int], int] = {}
    for layer in LAYERS:
        for pair in zip(layer.channels, layer.channels[1:], strict=False):
            times[pair, layer.size] = times.get((pair, layer.size), 0) + layer.times
    return [Layer(channels, size, False, count) for (channels, size), count in times.items()]


@dataclass(frozen=True)
class Rates:
    """Of one core: the chip's, measured; and what the prototype's times come to."""

    product_ns: float = 5.1  # a chain of products alone
    flops: float = 3.3e12
    l2_bytes: int = 2 << 20
    # The prototype's. A store has its quarter of a register block's epilogue; maps come from L3 where they exceed L2.
    store_ns: float = 30
    from_l3: float = 1.2
    far_ns: tuple[tuple[int, float], ...] = ((64, 5.5), (128, 6.55), (256, 6.8), (512, 7.45))
    # Of wgrad: a product with its loads and stores; blocks of 32 pixels x 32 channels transposed, and interleaved once.
    wgrad_ns: tuple[tuple[int, float], ...] = ((64, 8.87), (256, 9.54), (512, 8.89))
    transpose_ns: float = 57
    interleave_ns: float = 46
    # Of FC layers: a tile of sums from and to L2, and memory in GB/s.
    load_ns: float = 6.3
    l2_store_ns: float = 19
    reading: float = 15.2
    writing: float = 9.7

    def product(self, cin: int) -> float:
        """ns of a product whose weights stream from L1 (64 channels) or L2."""
        return next(ns for channels, ns in self.far_ns if cin <= channels)


def executed(run: Callable[[], object]) -> tuple[int, int, list[int]]:
    """Products and stores of tiles that `run` executes, and loads into each register."""
    before = _native.load().tile_counts()
    run()
    after = _native.load().tile_counts()
    return after[0] - before[0], after[1] - before[1], [b - a for a, b in zip(before[2], after[2], strict=True)]


def engine_of(layer: Layer, images: int, dtype: str) -> Engine:
    if dtype == "bf16":
        return Engine(layer.module(), dtype="bf16", batch=images, size=layer.size)
    behind_relu = nn.Sequential(nn.ReLU(), *layer.module())  # else it would stay in float32
    return Engine(behind_relu, dtype="int8", calibration=torch.rand(1, layer.channels[0], 8, 8), size=layer.size)


def counted(layer: Layer, images: int, dtype: str = "bf16") -> dict[str, int]:
    """Instructions of a layer on tiles."""
    engine, x = engine_of(layer, images, dtype), torch.zeros(images, layer.channels[0], layer.size, layer.size)
    products, stores, loads = executed(lambda: engine(x))
    return {"products": products, "stores": stores, "pixel_loads": sum(loads[4:6]), "weight_loads": sum(loads[6:])}


def estimated(layer: Layer, counts: dict[str, int], rates: Rates, value_bytes: int) -> dict[str, Any]:
    """A layer's counts and what is estimated from them, for one image."""
    product_ns = rates.product(layer.channels[-2] * value_bytes // 2)
    busy = counts["products"] * product_ns + counts["stores"] * rates.store_ns
    # The first two layers pass strips in L2.
    if len(layer.channels) == 2 and layer.map_values * value_bytes > rates.l2_bytes:
        busy *= rates.from_l3
    ideal = 2 * layer.multiply_adds / (rates.flops * 2 / value_bytes)
    moved = 1024 * sum(count for name, count in counts.items() if name != "products")
    return {"layer": layer.name, "times": layer.times, **counts, "bytes": moved, "multiply_adds": layer.multiply_adds,
            "ceiling_ms": counts["products"] * rates.product_ns / 1e6, "estimate_ms": busy / 1e6,
            "share": ideal / (busy / 1e9)}  # fmt: skip


def row_of(layer: Layer, rates: Rates) -> dict[str, Any]:
    return {**estimated(layer, counted(layer, 1), rates, 2), "prototype_ms": layer.prototype}


def int8_row_of(layer: Layer, rates: Rates) -> dict[str, Any]:
    layer = layer._replace(channels=layer.channels[-2:])
    return {**estimated(layer, counted(layer, 1, "int8"), rates, 1), "two_cores_prototype_ms": layer.int8_prototype}


def wgrad_row_of(layer: Layer, rates: Rates) -> dict[str, Any]:
    """Counts and estimates of the gradient of a convolution's weights, for one image."""
    cin, cout = layer.channels
    x, gy = (torch.zeros(1, c, layer.size, layer.size, dtype=torch.bfloat16) for c in (cin, cout))
    products, stores, loads = executed(lambda: conv_wgrad(x, gy, None, 3, False))
    tiles_in, tiles_out = -(-cin // 16), cout // 16
    strips = products / (9 * tiles_in * tiles_out)  # of 32 pixels
    ns = next(ns for channels, ns in rates.wgrad_ns if cin <= channels)
    copying = strips * (tiles_out / 2 * rates.transpose_ns + tiles_in / 2 * 2 * rates.interleave_ns)
    busy, ideal = products * ns + copying, 2 * layer.multiply_adds / rates.flops
    return {"layer": layer.name, "times": layer.times, "products": products, "sums_loads": sum(loads[:4]),
            "gy_loads": sum(loads[4:6]), "x_loads": sum(loads[6:]), "stores": stores,
            "bytes": 1024 * (sum(loads) + stores), "multiply_adds": layer.multiply_adds,
            "ceiling_ms": products * rates.product_ns / 1e6, "estimate_ms": busy / 1e6,
            "share": ideal / (busy / 1e9)}  # fmt: skip


def linear_rows(name: str, batch: int, rates: Rates) -> list[dict[str, Any]]:
    """Counts and estimates of an FC layer's output and gradients, for a batch."""
    inputs, outputs = FC_LAYERS[name]
    shapes = (batch, inputs), (outputs, inputs), (batch, outputs)
    x, weight, gy = (torch.zeros(shape, dtype=torch.bfloat16) for shape in shapes)
    results = {
        "y": (lambda: linear_op(x, weight, None), rates.reading),
        "gx": (lambda: linear_dgrad(gy, weight), rates.reading),
        "gw": (lambda: linear_wgrad(x, gy), rates.writing),
    }
    rows = []
    for result, (run, speed) in results.items():
        products, stores, loads = executed(run)
        tiles = products * rates.product(512) + sum(loads[:4]) * rates.load_ns + stores * rates.l2_store_ns
        memory = weight.nbytes / speed
        rows.append({"layer": name, "result": result, "products": products, "sums_loads": sum(loads[:4]),
                     "loads": sum(loads[4:]), "stores": stores, "bytes": weight.nbytes, "memory_ms": memory / 1e6,
                     "tiles_ms": tiles / 1e6, "estimate_ms": max(memory, tiles) / 1e6})  # fmt: skip
    return rows


COLUMNS = ("layer", "times", "products", "pixels", "weights", "stores", "ceiling", "est. ms", "share", "prototype")
INT8_COLUMNS = (*COLUMNS[:-1], "est. two cores", "prototype")
WGRAD_COLUMNS = ("weights of", "times", "products", "gy", "x", "stores", "ceiling", "est. ms", "share")
LINEAR_COLUMNS = ("layer", "result", "products", "loads", "stores", "MB", "memory", "tiles", "est. ms")


def cells(row: dict[str, Any], *names: str) -> list[str]:
    """A row with these counts, up to its share."""
    counts = [f"{row[name]:,}" for name in names]
    return [row["layer"], str(row["times"]), *counts, f"{row['ceiling_ms']:.2f}", f"{row['estimate_ms']:.2f}",
            f"{row['share']:.0%}"]  # fmt: skip


def line(row: dict[str, Any]) -> list[str]:
    """A row as the table has it."""
    low, high = row["prototype_ms"]
    return [*cells(row, "products", "pixel_loads", "weight_loads", "stores"), f"{low:.2f}-{high:.2f}"]


def linear_line(row: dict[str, Any]) -> list[str]:
    counts = [f"{row[name]:,}" for name in ("products", "loads", "stores")]
    times = [f"{row[name]:.2f}" for name in ("memory_ms", "tiles_ms", "estimate_ms")]
    return [row["layer"], row["result"], *counts, f"{row['bytes'] / 1e6:.0f}", *times]


def int8_line(row: dict[str, Any]) -> list[str]:
    two_cores = (row["estimate_ms"] / 2, row["two_cores_prototype_ms"])
    return [*cells(row, "products", "pixel_loads", "weight_loads", "stores"), *(f"{ms:.2f}" for ms in two_cores)]


def sums_of(rows: list[dict[str, Any]]) -> tuple[float, float]:
    """ms of all layers on one core: estimated, and the ceiling."""
    estimate, ceiling = (sum(row["times"] * row[name] for row in rows) for name in ("estimate_ms", "ceiling_ms"))
    return estimate, ceiling


def count_bf16(rates: Rates, batch: int, out: Path) -> None:
    if batch > (most := MOST_ROWS[torch.bfloat16]):
        raise SystemExit(f"--batch must be 1 to {most}, FC layers of more are torch's, got {batch}")
    rows = [row_of(layer, rates) for layer in LAYERS]
    wgrad_rows = [wgrad_row_of(layer, rates) for layer in single_layers()]
    (total, ceiling), (wgrad, _) = sums_of(rows), sums_of(wgrad_rows)
    draw(f"VGG-16, an image of 224², bf16 on AMX: counted; est. ms on one core, sum {total:.1f} ms, ceiling "
         f"{ceiling:.1f} ms; a batch of {batch} on two cores est. {batch * total / 2:.0f} ms",
         COLUMNS, map(line, rows))  # fmt: skip
    draw(f"The gradients of its weights: counted; est. ms on one core, sum {wgrad:.1f} ms", WGRAD_COLUMNS,
         (cells(row, "products", "gy_loads", "x_loads", "stores") for row in wgrad_rows))  # fmt: skip
    linear = [row for name in FC_LAYERS for row in linear_rows(name, batch, rates)]
    forward = sum(row["estimate_ms"] for row in linear if row["result"] == "y")
    draw(f"Its FC layers, a batch of {batch}: counted; est. ms on one core, forward {forward:.1f} ms",
         LINEAR_COLUMNS, map(linear_line, linear))  # fmt: skip
    timing.write_results(
        out, rows, estimate=True, batch=batch, rates=vars(rates), wgrad_rows=wgrad_rows, linear_rows=linear,
        image_ms={"one core": total, "two cores": total / 2, "ceiling, one core": ceiling, "wgrad, one core": wgrad},
    )  # fmt: skip


def count_int8(rates: Rates, batch: int, out: Path) -> None:
    rows = [int8_row_of(layer, rates) for layer in LAYERS]
    total, ceiling = sums_of(rows)
    draw(f"VGG-16 but for its first layer, an image of 224², int8 on AMX: counted; est. ms on one core, sum "
         f"{total:.1f} ms, ceiling {ceiling:.1f} ms; a batch of {batch} on two cores est. {batch * total / 2:.0f} ms",
         INT8_COLUMNS, map(int8_line, rows))  # fmt: skip
    timing.write_results(
        out, rows, estimate=True, batch=batch, rates=vars(rates),
        image_ms={"one core": total, "two cores": total / 2, "ceiling, one core": ceiling},
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=FILES, default="bf16", help="of the convolutions (default bf16)")
    parser.add_argument("--batch", type=int, default=8, help="images that the sums are for (default 8)")
    parser.add_argument("--out", type=Path, help="JSON file for the counts (default under benchmarks/results)")
    arguments = parser.parse_args()
    if arguments.batch < 1:
        raise SystemExit(f"--batch must be at least 1, got {arguments.batch}")
    _native.set_cpu_isa("amx-emulated")
    dtype, batch, small = arguments.dtype, arguments.batch, Layer((32, 32), 20, True)
    one, many = counted(small, 1, dtype), counted(small, batch, dtype)
    if many != {name: batch * count for name, count in one.items()}:
        raise SystemExit(f"{batch} images do not take {batch} times the instructions of one")
    count = count_int8 if dtype == "int8" else count_bf16
    count(Rates(), batch, arguments.out or RESULTS / FILES[dtype])


if __name__ == "__main__":
    main()
