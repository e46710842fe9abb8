"""Style transfer on the CPU in float32, a picture of random pixels: the steps of vggfast.style_transfer on vggfast's
loss, and on the same loss of torch's modules in channels_last.

The loss and its gradient are compared before anything is timed; a sample is --steps steps from the content on, and the
candidates take turns in one process, with an allocator that keeps its memory and advises huge pages, torch's best case.
Weights are random: the arithmetic is the same for any. A ratio above 1 means that vggfast is faster.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import timing
import torch
import torch.nn.functional as F
from bench_conv import ALLOCATOR
from bench_losses import GRADIENTS, VALUES, TorchPerceptual, gradient
from processor import file_name
from torch import Tensor, nn

import vggfast
from vggfast.console import print_table
from vggfast.losses import ContentStyle
from vggfast.losses.style import CONTENT_LAYERS, STYLE_LAYERS
from vggfast.style_transfer import OPTIMISERS, _stepper

RESULTS = Path(__file__).parent / "results" / file_name("stylise-cpu")
STYLE_WEIGHT = 1.0  # of random weights; the terms are of one size


class TorchContentStyle(nn.Module):
    """vggfast.losses.ContentStyle, its default layers, on torch's modules and images as the network takes them."""

    def __init__(self, model: nn.Module, content: Tensor, style: Tensor) -> None:
        super().__init__()
        self.net = TorchPerceptual(model, (*CONTENT_LAYERS, *STYLE_LAYERS))
        with torch.no_grad():
            self.content = self.net.maps(content)
            self.style = {name: self.gram(each) for name, each in self.net.maps(style).items()}

    @staticmethod
    def gram(maps: Tensor) -> Tensor:
        n, c, h, w = maps.shape
        rows = maps.permute(0, 2, 3, 1).reshape(n, h * w, c)
        return rows.transpose(1, 2) @ rows / (c * h * w)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.net.maps(x)
        content = sum(w * F.mse_loss(maps[name], self.content[name]) for name, w in CONTENT_LAYERS.items())
        grams = {name: self.gram(maps[name]) - self.style[name] for name in STYLE_LAYERS}
        return content + STYLE_WEIGHT * sum(w * grams[name].square().sum() for name, w in STYLE_LAYERS.items())


def losses(size: int, model: nn.Module) -> tuple[Tensor, nn.Module, nn.Module]:
    """The content that both begin with, our loss and torch's."""
    content, style = torch.randn(1, 3, size, size), torch.rand(1, 3, size, size)
    ours = ContentStyle(net=model, style_weight=STYLE_WEIGHT, normalize=False, check_range=False)
    return content, ours.target(content, style), TorchContentStyle(model, content, style)


def measure(name: str, size: int, model: nn.Module, steps: int, rounds: int) -> dict[str, Any]:
    """The row of an optimiser; an exit where the losses differ, at a picture that is neither content nor style."""
    content, ours, theirs = losses(size, model)
    x = content + 0.1 * torch.randn_like(content)
    pairs = zip(gradient(ours, x), gradient(theirs, x), strict=True)
    off = [float((a - b).norm() / b.norm()) for a, b in pairs]
    if not (off[0] <= VALUES and off[1] <= GRADIENTS):
        raise SystemExit(f"{name} differs from torch's by {off[0]:.2g} in value and {off[1]:.2g} in gradient")

    def run(loss: nn.Module) -> None:
        step = _stepper(name, x.clone().requires_grad_(), loss)
        for _ in range(steps):
            step()

    samples = timing.interleaved({"vggfast": lambda: run(ours), "torch": lambda: run(theirs)}, rounds)
    medians = {by: timing.median_and_spread(each)[0] for by, each in samples.items()}
    return {"optimiser": name, "seconds": samples, "ratio": medians["torch"] / medians["vggfast"], "off": off}


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=256, help="height and width of the picture (default 256)")
    parser.add_argument("--width", type=float, default=1.0, help="of the network, as of vggfast.VGG (default 1)")
    parser.add_argument("--steps", type=int, default=10, help="steps of a sample (default 10)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads (default torch's)")
    parser.add_argument("--rounds", type=int, default=5, help="samples of each candidate (default 5)")
    parser.add_argument("--out", type=Path, default=RESULTS, help=f"result file (default {RESULTS.name})")
    arguments = parser.parse_args(given)
    if "GLIBC_TUNABLES" not in os.environ:
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "GLIBC_TUNABLES": ALLOCATOR})
    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    model = vggfast.VGG("D", head="none", init="he", width=arguments.width)
    model.preprocessing = vggfast.Preprocessing.torchvision()
    rows = [measure(name, arguments.size, model, arguments.steps, arguments.rounds) for name in OPTIMISERS]
    title = f"{arguments.steps} steps, {arguments.size} x {arguments.size}, {arguments.threads} threads"
    print_table(title, ("optimiser", "vggfast ms", "torch ms", "ratio"), map(shown, rows))
    timing.write_results(arguments.out, rows, size=arguments.size, width=arguments.width, steps=arguments.steps)


def shown(row: dict[str, Any]) -> tuple[str, ...]:
    """A row of the table."""
    ms = [f"{timing.median_and_spread(each)[0] * 1e3:.1f}" for each in row["seconds"].values()]
    return row["optimiser"], *ms, f"{row['ratio']:.2f}"


if __name__ == "__main__":
    main()
