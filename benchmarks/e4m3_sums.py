"""What Hopper's sums of e4m3 values cost: errors of VGG-16's layers, with and without their promotion to float32.

A wgmma of 8-bit floats adds 32 products to the sum so far with 13 bits of fraction (`hopper_sums` has the rule). A
kernel may cut a long sum into parts, which it adds in float32: after each stage of 128 products, or after every fourth.
The inputs of a layer are random (normal, rectified) or, with --weights and --data, what VGG-16 makes of photos. Layers
are those that the engine runs in e4m3, with its scales. Nothing is timed, and no GPU is needed.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import timing
import torch
import torch.nn.functional as F
from bench_errors import random_layer
from bench_int8 import crops, layers_on, plain
from layers import LAYERS, relative_error
from peers.report import draw
from rich.progress import track
from torch import Tensor

from vggfast.engine.e4m3 import LARGEST, LEAST_CHANNELS
from vggfast.engine.plan import E4M3
from vggfast.weights import load_model

RESULTS = Path(__file__).parent / "results" / "e4m3-sums.json"
STAGE = 128  # channels of e4m3 that a stage of the kernels holds
PRODUCTS = 32  # of a wgmma
KEPT = 13  # bits
NONE = -1000  # an exponent for 0, to which nothing is aligned
PROMOTIONS = {"never": None, "every 4 stages": 4 * STAGE, "every stage": STAGE}


def _exponents(values: Tensor, least: int) -> Tensor:
    """Of 1 <= |value| / 2^exponent < 2; subnormal values have `least`."""
    return torch.where(values == 0, NONE, (torch.frexp(values).exponent - 1).clamp(min=least))


def add_products(d: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """d + a b^T, as one wgmma computes it.

    Args:
        d: (M, N), float32.
        a: (M, 32), values of e4m3 in float32.
        b: (N, 32).
    """
    products = a[:, None] * b
    exponents = _exponents(a, -6)[:, None] + _exponents(b, -6)
    greatest = torch.maximum(exponents.amax(2), _exponents(d, -126)).clamp(min=-100)
    ones = torch.ones_like(d)
    scale, back = torch.ldexp(ones, KEPT - greatest), torch.ldexp(ones, greatest - KEPT)
    sums = (products * scale[..., None]).trunc_().sum(2) + (d * scale).trunc()
    return ((sums * back).view(torch.int32) & -(1 << (23 - KEPT))).view(torch.float32)


def hopper_sums(a: Tensor, b: Tensor, promoted_after: int | None = None) -> Tensor:
    """a b^T as Hopper's tensor cores add it up, in the order of K.

    Of the 32 products of an instruction and the sum so far, each is cut off 13 bits below the greatest exponent among
    them, and what they add up to is cut off after 13 bits of fraction: DeepSeek-V3's report (section 3.5.2), and
    github.com/microsoft/MMA-Sim, which says that it agrees with hardware to the bit.

    Args:
        a: (M, K), values of e4m3 in float32; K is a multiple of 32.
        b: (N, K).
        promoted_after: so many products are added to a float32 sum, and the next begin at 0; None: one sum for all.

    Returns:
        (M, N), float32.
    """
    d = total = torch.zeros(len(a), len(b))
    for k in range(0, a.shape[1], PRODUCTS):
        if promoted_after and k % promoted_after == 0:
            total, d = total + d, torch.zeros_like(d)
        d = add_products(d, a[:, k : k + PRODUCTS], b[:, k : k + PRODUCTS])
    return total + d if promoted_after else d


def operands(x: Tensor, weight: Tensor, pixels: int, channels: int) -> tuple[Tensor, Tensor]:
    """(windows of some of x's pixels, some rows of the weight), chosen at random, each (R, 9 Cin).

    They are scaled so that the largest of all values is e4m3's, and lie as the kernels walk through them: a stage is a
    tap of 128 channels.
    """
    windows = F.unfold(x, 3, padding=1).transpose(1, 2).reshape(-1, x.shape[1], 9)
    chosen = []
    for rows, count, whole in ((windows, pixels, x), (weight.flatten(2), channels, weight)):
        some = rows[torch.randperm(len(rows))[:count]] * (LARGEST / whole.abs().amax())
        chosen.append(some.unflatten(1, (-1, STAGE)).transpose(2, 3).flatten(1))
    return chosen[0], chosen[1]


def measure(x: Tensor, weight: Tensor, pixels: int, channels: int) -> dict[str, Any]:
    """Errors of a layer's sums.

    "quantising" is the relative L2 error of exact sums of e4m3 values; the other errors are those of Hopper's sums of
    the same values from the exact ones. "shrinks" is by which share |sum| is smaller, of all together; "other outputs"
    the share of outputs above 0 that become another value of e4m3.
    """
    wide = operands(x, weight, pixels, channels)
    a, b = (rows.to(E4M3).float() for rows in wide)
    exact = a.double() @ b.double().T
    largest = exact.amax()
    found: dict[str, Any] = {
        "k": a.shape[1], "quantising": relative_error(exact, wide[0].double() @ wide[1].double().T)
    }  # fmt: skip
    for name, after in PROMOTIONS.items():
        sums = hopper_sums(a, b, after).double()
        got, expected = ((v.relu() * (LARGEST / largest)).float().to(E4M3).float() for v in (sums, exact))
        found[name] = {
            "error": relative_error(sums, exact),
            "shrinks": 1 - float((sums * exact.sign()).sum() / exact.abs().sum()),
            "other outputs": float((got != expected)[exact > 0].double().mean()),
        }
    return found


def inputs(parsed: argparse.Namespace) -> Iterator[tuple[str, tuple[int, int, int], Tensor, Tensor]]:
    """(source, layer, input, weight) of each kind of layer that the engine runs in e4m3."""
    for layer in LAYERS:
        if layer[0] >= LEAST_CHANNELS:
            yield "random", layer, *random_layer(layer, parsed.images)
    if parsed.weights is None:
        return
    model, _ = load_model(parsed.weights)
    photos, _ = crops(model, parsed.data, "val", parsed.images, 224)
    for layer, source, x, conv in layers_on(plain(model.features), photos):
        if layer[0] >= LEAST_CHANNELS:
            yield source, layer, x, conv.weight


@torch.no_grad()
def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, help="a VGG's, such as vgg16-conv.safetensors; with --data")
    parser.add_argument("--data", help="photos, as for vggfast train; with --weights")
    parser.add_argument("--images", type=int, default=2, metavar="N", help="at a layer (default 2)")
    parser.add_argument("--pixels", type=int, default=64, metavar="N", help="of them that count (default 64)")
    parser.add_argument("--channels", type=int, default=32, metavar="N", help="outputs of each (default 32)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="JSON file for every error")
    parsed = parser.parse_args(arguments)
    if (parsed.weights is None) != (parsed.data is None):
        parser.error("--weights and --data must be given together")
    torch.manual_seed(0)
    rows = [{"input": source, "layer": layer, "images": parsed.images, "pixels": parsed.pixels,
             "channels": parsed.channels, **measure(x, weight, parsed.pixels, parsed.channels)}
            for source, layer, x, weight in track(inputs(parsed), "layers")]  # fmt: skip
    columns = ["input", "layer", "K", "quantising", *(f"{name}: {part}" for name in PROMOTIONS
               for part in ("error", "shrinks", "other outputs"))]  # fmt: skip
    table = [[row["input"], "{} → {}, {}²".format(*row["layer"]), str(row["k"]), f"{row['quantising']:.2%}",
              *(f"{value:.2%}" for name in PROMOTIONS for value in row[name].values())] for row in rows]  # fmt: skip
    draw("Errors of sums of e4m3 values; promotion to float32:", columns, table)
    timing.write_results(parsed.out, rows)


if __name__ == "__main__":
    main()
