"""Which tiles the Hopper kernels could take for a layer, and what the kernels' own model of them says (`conv_choices`).

The model counts clocks of the SMs; its shares of the peak need no clock rate. Nobody has measured it: all
that comes of it is an estimate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

NUM_SMS = 132  # of an H200
CLUSTERS = (66, 32, 15)  # of 2, 4 and 8 blocks that run at once, an SM a block: the last was seen on an H100
MACS = 2048  # multiply-adds of a clock and SM, of 16-bit values; twice as many of e4m3, half of TF32
BYTES = {"bf16": 2, "fp16": 2, "tf32": 4, "e4m3": 1}
KERNEL = "conv_fprop_hopper_kernel"


class Fprop(NamedTuple):
    """What the kernel computes: a 3x3 layer, from `cin` to `cout` channels of `bytes` a value."""

    bytes: int
    cin: int
    cout: int
    h: int
    w: int
    n: int
    pool: bool

    @property
    def multiply_adds(self) -> int:
        return 9 * self.cin * self.cout * self.h * self.w * self.n

    @property
    def on_hopper(self) -> bool:
        """As conv.cu has it."""
        return self.cin >= 16 and self.cin % 8 == 0 and self.cout % 8 == 0


def share(multiply_adds: int, clocks: float, bytes_: int, num_sms: int = NUM_SMS) -> float:
    """Of the most products, of values of so many bytes, that so many clocks could do."""
    return multiply_adds / (clocks * num_sms * MACS * 2 / bytes_)


def fprop_of(cin: int, cout: int, size: int, batch: int, which: str, pool: bool, dtype: str) -> Fprop:
    """A layer's "fprop" or "dgrad": that is fprop of the gradient, without a pool."""
    if which == "dgrad":
        cin, cout, pool = cout, cin, False
    return Fprop(BYTES[dtype], cin, cout, size, size, batch, pool)


def choices(
    cuda: ModuleType, f: Fprop, num_sms: int = NUM_SMS, clusters: tuple[int, int, int] = CLUSTERS
) -> Sequence[Any]:
    """The tiles that fit, the least of the model's clocks first: each with `tile`, `clocks`, and `chosen`, whether
    "auto" takes it."""
    return cuda.conv_choices(f.n, f.cin, f.h, f.w, f.cout, 3, f.pool, f.bytes, num_sms, clusters)


def pixels_of(tile: str) -> int:
    return int(tile.split("-")[1].partition("x")[2])


def tiles_of(tile: str, f: Fprop) -> tuple[int, int]:
    """(how many tiles, or groups of those that a cluster's blocks compute together; blocks of a cluster)."""
    feed, size, *sharing = tile.split("-")
    channels, pixels = int(size.partition("x")[0]), pixels_of(tile)
    shared = {kind: int(s[-1]) for s in sharing for kind in ("weights", "pixels", "split") if s.startswith(kind)}
    of_pixels = (f.n * math.ceil(f.h / (pixels // 8)) * math.ceil(f.w / 8) if feed == "halo"
                 else math.ceil(f.n * f.h * f.w / pixels))  # fmt: skip
    of_channels = math.ceil(f.cout / (channels * shared.get("pixels", 1)))
    return math.ceil(of_pixels / shared.get("weights", 1)) * of_channels, math.prod(shared.values())
