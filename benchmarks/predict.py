"""What the Hopper kernels' own model predicts for VGG-16, of which nothing is measured: shares of an H200's peak, layer
by layer with the tile chosen, and for the whole network with ever more of the tiles, which docs/gpu-ladder.md quotes.

Needs no GPU: the simulator (`make sim`) or a build with CUDA answers. The first layer has kernels of its own, which the
model does not know, and is left out.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import timing
from peers.report import draw
from roofline import Ceilings
from simulated import ROOT, simulator
from tiles import BYTES, CLUSTERS, NUM_SMS, Fprop, choices, fprop_of, pixels_of, share, tiles_of

from vggfast import _native

RESULTS = ROOT / "benchmarks" / "results" / "predicted-h200.json"
# (Cin, Cout, H = W, max-pool follows) of every layer but the first
NETWORK = [(64, 64, 224, True), (64, 128, 112, False), (128, 128, 112, True), (128, 256, 56, False),
           (256, 256, 56, False), (256, 256, 56, True), (256, 512, 28, False), (512, 512, 28, False),
           (512, 512, 28, True), (512, 512, 14, False), (512, 512, 14, False), (512, 512, 14, True)]  # fmt: skip
# What came when: each step has the tiles of those before it too.
STEPS = {
    "halo, three shifted boxes": ["halo-128x224", "halo-128x112"],
    "im2col": ["im2col-128x128"],
    "64 channels in ping-pong, stationary weights": [
        "halo-64x224-stationary", "halo-64x224", "halo-64x112", "im2col-64x64",
    ],
    "multicast in clusters": ["halo-128x224-weights2", "im2col-128x256-pixels2", "im2col-128x192-pixels2"],
    "channels split in clusters": [
        "halo-128x128-split2", "halo-128x128-split4", "halo-128x128-split8", "im2col-128x128-split8",
    ],
    "im2col tiles pool": ["im2col-128x224-pixels2"],
}  # fmt: skip
# All tiles, on a GPU that runs one cluster of four less at once (eight GPCs of at most 18 SMs that run 15 clusters of
# eight run 31 of four): with as many clusters in the grid as the SMs would hold, and with as many as run at once.
OVERBOOKED, FITTING = "31 clusters of four fit, 33 are launched", "31 clusters of four fit and are launched"
UNEVEN = (66, 31, 15)
# Of e4m3, if sums were promoted to float32: a consumer's registers hold those of this many pixels twice.
PROMOTED, PROMOTED_PIXELS = "sums promoted to float32", 192
# Each layer's kernel starts while the one before still runs. Of the clocks that the model gives a launch before its
# first product, so many are then hidden. A guess, as they all are: what is left is the load of the first pixels.
OVERLAPPED, HIDDEN = "dependent launches", 1000
# Of two warpgroups that share a tile, the second follows the first, so that one multiplies while the other stores. In
# the steps before this one they store at the same time.
APART = "warpgroups that share a tile store in turns"


def kernels() -> ModuleType:
    """The CUDA back end's module, compiled for a GPU or for the simulated one.

    Raises:
        SystemExit: there is neither.
    """
    for module in (_native.load(), simulator()):
        if module is not None and hasattr(module, "cuda") and len(module.cuda.conv_tiles()) > 4:
            return module.cuda
    raise SystemExit("there is neither a build with the Hopper kernels nor the simulator: make sim")


def layers(which: str, batch: int, dtype: str) -> list[Fprop]:
    return [fprop_of(cin, cout, size, batch, which, pool, dtype) for cin, cout, size, pool in NETWORK]


def least(cuda: ModuleType, layer: Fprop) -> tuple[str, float]:
    """(tile, clocks): what "auto" takes."""
    chosen = next(c for c in choices(cuda, layer) if c.chosen)
    return chosen.tile, chosen.clocks


def in_step(
    cuda: ModuleType, layer: Fprop, tiles: Sequence[str] | None = None, clusters: tuple[int, int, int] = CLUSTERS
) -> tuple[str, float]:
    """(tile, clocks): of `tiles`, or of all, the least where the warpgroups of a tile store at the same time."""
    found = [c for c in choices(cuda, layer, clusters=clusters) if tiles is None or c.tile in tiles]
    least = min(found, key=lambda c: c.clocks_in_step)
    return least.tile, least.clocks_in_step


def overbooked(cuda: ModuleType, layer: Fprop, clusters: tuple[int, int, int]) -> float:
    """Clocks where the choice counts on as many clusters as the SMs would hold and launches them, but `clusters` of 2,
    4 and 8 blocks run at once. The others begin when these have ended."""
    sizes = (2, 4, 8)
    launched, fit = {1: NUM_SMS}, {1: NUM_SMS, **dict(zip(sizes, clusters, strict=True))}
    launched |= {blocks: NUM_SMS // blocks for blocks in sizes}
    tile, clocks = in_step(cuda, layer, clusters=(launched[2], launched[4], launched[8]))
    count, blocks = tiles_of(tile, layer)
    return clocks * math.ceil(min(count, launched[blocks]) / fit[blocks])


def ladder(cuda: ModuleType, batches: Sequence[int], which: str, dtype: str) -> list[dict]:
    """A step a row: the network's share of the peak, by batch."""
    steps: dict[str, Callable[[Fprop], float]] = {}
    tiles: list[str] = []
    for step, new in STEPS.items():
        tiles = [*tiles, *new]
        steps[step] = lambda layer, tiles=tiles: in_step(cuda, layer, tiles)[1]
    steps[OVERBOOKED] = lambda layer: overbooked(cuda, layer, UNEVEN)
    steps[FITTING] = lambda layer: in_step(cuda, layer, clusters=UNEVEN)[1]
    steps[OVERLAPPED] = lambda layer: in_step(cuda, layer)[1] - HIDDEN
    steps[APART] = lambda layer: least(cuda, layer)[1] - HIDDEN
    if dtype == "e4m3":
        small = [tile for tile in tiles if pixels_of(tile) <= PROMOTED_PIXELS]
        steps[PROMOTED] = lambda layer: in_step(cuda, layer, small)[1]
    rows = []
    for step, clocks_of in steps.items():
        shares = []
        for batch in batches:
            network = layers(which, batch, dtype)
            clocks = sum(clocks_of(layer) for layer in network)
            shares.append(share(sum(layer.multiply_adds for layer in network), clocks, BYTES[dtype]))
        rows.append({"which": which, "dtype": dtype, "step": step, "batches": list(batches), "share": shares})
    return rows


def table(cuda: ModuleType, batch: int, which: str, dtype: str) -> list[list[str]]:
    """A layer a row: tile, clocks and share of the peak."""
    rows = []
    for layer in dict.fromkeys(layers(which, batch, dtype)):
        tile, clocks = least(cuda, layer)
        rows.append([f"{layer.cin}→{layer.cout} {layer.h}²{' + pool' if layer.pool else ''}", tile, f"{clocks:.0f}",
                     f"{share(layer.multiply_adds, clocks, layer.bytes):.0%}"])  # fmt: skip
    return rows


def undone_masks(batch: int) -> list[dict]:
    """What a backward pass in 16 bits moves beside its convolutions to undo masks: a layer a row, in bytes.

    "scatter": each layer's gradient is read and its masked one written, by a kernel of its own. "dgrad": where a ReLU
    alone is before the next convolution, that one's dgrad writes the masked gradient at once, and reads the mask's bits
    (vggfast.ops.conv_rows)."""
    rows = []
    for _, cout, size, pool in NETWORK:
        values = batch * cout * size**2
        stored = values // 4 if pool else values  # of the layer's output
        scatter = 2 * stored + (3 if pool else 1) * stored // 8 + 2 * values
        rows.append({"layer": f"{cout} x {size}²{' + pool' if pool else ''}", "scatter": scatter,
                     "dgrad": scatter if pool else values // 8})  # fmt: skip
    return rows


def draw_undone_masks(batches: Sequence[int]) -> list[dict]:
    """The same in megabytes, and in milliseconds of an H200's device copy."""
    found = []
    for batch in batches:
        rows = undone_masks(batch)
        total = {"layer": "all", **{way: sum(row[way] for row in rows) for way in ("scatter", "dgrad")}}
        shown = [
            [row["layer"], *(f"{row[way] / 1e6:.1f} MB, {row[way] / Ceilings().memory * 1e3:.3f} ms"
                             for way in ("scatter", "dgrad"))]
            for row in (*rows, total)
        ]  # fmt: skip
        draw(f"masks undone in a backward pass, 16 bits, batch {batch}, est.",
             ["gradient of", "by scatters", "by dgrad, where no pool is"], shown)  # fmt: skip
        found.append({"which": "masks", "batch": batch, "rows": rows})
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    # fmt: off
    add("--batches", nargs="+", type=int, default=[1, 8, 64], metavar="N", help="images (default 1 8 64)")
    add("--dtypes", nargs="+", choices=BYTES, default=["bf16", "e4m3"], help="of all tensors (default bf16 e4m3)")
    add("--passes", nargs="+", choices=("fprop", "dgrad"), default=["fprop"], help="default fprop")
    add("--out", type=Path, default=RESULTS, help="JSON file for the ladder")
    # fmt: on
    options = parser.parse_args(arguments)
    cuda, rows = kernels(), []
    for which, dtype in itertools.product(options.passes, options.dtypes):
        title = f"{which}, {dtype}, est.: share of an H200's peak"
        columns = ["tiles up to this step", *(f"batch {batch}" for batch in options.batches)]
        steps = ladder(cuda, options.batches, which, dtype)
        shown = [[step["step"], *(f"{value:.1%}" for value in step["share"])] for step in steps]
        draw(f"{title}, VGG-16 without its first layer", columns, shown)
        for batch in options.batches:
            draw(f"{title}, batch {batch}", ["layer", "tile", "clocks", "share"], table(cuda, batch, which, dtype))
        rows += steps
    rows += draw_undone_masks(options.batches)
    timing.write_results(options.out, rows, estimate=True)


if __name__ == "__main__":
    main()
