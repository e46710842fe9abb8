"""Networks that are no VGGs, on the CPU in float32: eager torch in both memory formats, torch.compile,
vggfast.accelerate, and torch.compile with vggfast's back end.

Outputs, and for a training step all gradients, are compared with eager torch's before the clock runs. All candidates
take turns in one process; a figure is the median, and a ratio above 1 means that vggfast is faster than the best of
torch's. SSD300 leaves the choice among its boxes out, which is the same code for all.
"""

from __future__ import annotations

import argparse
import copy
import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timing
import torch
from other_networks import EDSR, SSD, UNet
from processor import file_name
from torch import Tensor, nn

import vggfast
from vggfast.acceleration.compile import backend

RESULTS = Path(__file__).parent / "results" / file_name("accelerate-cpu")
CANDIDATES = ("eager, contiguous", "eager, channels_last", "compiled, channels_last", "vggfast", "vggfast, compiled")
OUTPUTS, GRADIENTS = 1e-4, 1e-2  # the largest relative L2 distances; rounding may move a value over a ReLU's corner


@dataclass(frozen=True)
class Work:
    """A network on an input of a shape (N, C, H, W), and with `quick` on a smaller one."""

    title: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    quick: tuple[int, ...]
    trains: bool = False


def _torchvision() -> Any:
    return importlib.import_module("torchvision")


def works(quick: bool) -> list[Work]:
    widths = (8, 16, 32) if quick else (64, 128, 256, 512, 1024)
    body = (16, 2) if quick else (64, 16)
    unet, image = (lambda: UNet(widths)), (1, 3, 256, 256)
    return [
        Work("SSD300-VGG16", lambda: SSD(_torchvision()), (1, 3, 300, 300), (1, 3, 276, 276)),
        Work("U-Net", unet, image, (1, 3, 32, 32)),
        Work("U-Net, training step", unet, image, (1, 3, 32, 32), trains=True),
        Work("EDSR-baseline body", lambda: EDSR(*body).body, (1, body[0], 128, 128), (1, body[0], 24, 24)),
        Work("ResNet-34", lambda: _torchvision().models.resnet34(), (8, 3, 224, 224), (1, 3, 64, 64)),
    ]


def candidate(name: str, model: nn.Module, x: Tensor) -> tuple[nn.Module, nn.Module, Tensor]:
    """A copy of the model as `name` runs it, what to call, and its input."""
    model = copy.deepcopy(model)
    if name == "vggfast":
        return model, vggfast.accelerate(model, inplace=True), x
    if name == "vggfast, compiled":
        return model, torch.compile(model, dynamic=False, backend=backend), x
    if "channels_last" in name:
        model, x = model.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)
    return model, (torch.compile(model, dynamic=False) if "compiled" in name else model), x


def inference(call: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    def run() -> Tensor:
        with torch.no_grad():
            return call(x)

    return run


def step(model: nn.Module, call: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    """Forward, mean square, backward, SGD with momentum; the rate is 0, so that all steps are of the same weights."""
    optimiser = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)

    def run() -> Tensor:
        optimiser.zero_grad()
        y = call(x)
        y.pow(2).mean().backward()
        optimiser.step()
        return y.detach()

    return run


def distance(got: Tensor, want: Tensor) -> float:
    return float((got.double() - want.double()).norm() / want.double().norm())


def gradients(model: nn.Module) -> Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])


def race(work: Work, names: list[str], rounds: int, quick: bool) -> Iterator[dict[str, Any]]:
    """A row for each candidate. Ends the program where one computes something else."""
    torch.manual_seed(0)
    plain, x = work.build().train(work.trains), torch.randn(work.quick if quick else work.shape)
    made, want, off = {}, None, {}
    for name in names:
        model, call, given = candidate(name, plain, x)
        made[name] = step(model, call, given) if work.trains else inference(call, given)
        found = [made[name](), *([gradients(model)] if work.trains else [])]
        want = want or found
        off[name] = [distance(ours, theirs) for ours, theirs in zip(found, want, strict=True)]
        if any(not each <= most for each, most in zip(off[name], (OUTPUTS, GRADIENTS), strict=False)):
            raise SystemExit(f"{work.title}: {name} differs from {names[0]} by {off[name]}")
    for name, seconds in timing.interleaved(made, rounds).items():
        middle, spread = timing.median_and_spread(seconds)
        yield {"work": work.title, "shape": list(x.shape), "by": name, "median": middle, "spread": spread,
               "distance": off[name], "seconds": seconds}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates", nargs="+", choices=CANDIDATES, default=list(CANDIDATES),
                        help="the first is what the others are compared with (default: all)")  # fmt: skip
    parser.add_argument("--works", nargs="+", metavar="NAME", help="those whose title begins so (default: all)")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--quick", action="store_true", help="small networks, to see that it works: no figures to quote"
    )
    parser.add_argument("--out", type=Path, default=RESULTS)
    parsed = parser.parse_args()
    torch.set_num_threads(parsed.threads)
    rows = []
    for work in works(parsed.quick):
        if parsed.works and not work.title.startswith(tuple(parsed.works)):
            continue
        found = list(race(work, parsed.candidates, parsed.rounds, parsed.quick))
        rows += found
        ours = [row["by"] for row in found if row["by"].startswith("vggfast")]
        best = min((row["median"] for row in found if row["by"] not in ours), default=None)
        for row in found:
            ratio = f", {best / row['median']:.2f}x the best of torch's" if best and row["by"] in ours else ""
            print(f"{work.title} {tuple(row['shape'])}, {row['by']}: {row['median'] * 1e3:.1f} ms{ratio}", flush=True)
    timing.write_results(parsed.out, rows, quick=parsed.quick)


if __name__ == "__main__":
    main()
