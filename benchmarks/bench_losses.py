"""Losses on VGG-16's maps by vggfast and on torch's layers in channels_last, float32, on the CPU: LPIPS beside the
package lpips (which must be installed, and torchvision), perceptual losses beside the same sum on torch's modules.

Values and gradients are compared before anything is timed; candidates take turns in one process, which runs with an
allocator that keeps its memory and advises huge pages, torch's best case. Kept is what the graph of a forward holds
until its backward, beside the weights. Weights are random: the arithmetic is the same for any. A ratio above 1 means
that vggfast is faster, or keeps less.
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
from processor import file_name
from torch import Tensor, nn

import vggfast
from vggfast.console import print_table
from vggfast.graph import trunk_names, whole
from vggfast.losses import LPIPS, Perceptual

RESULTS = Path(__file__).parent / "results" / file_name("losses-cpu")
# Relative: Winograd's sums differ in a value, and at a few pixels in which side of a ReLU's or a pool's edge they are.
VALUES, GRADIENTS = 1e-5, 3e-2
PERCEPTUAL = {"relu3_3": ("relu3_3",), "4 layers": ("relu1_2", "relu2_2", "relu3_3", "relu4_3")}
MIB = 1 << 20


class TorchPerceptual(nn.Module):
    """vggfast.losses.Perceptual, by L1, on torch's modules and images as the network takes them."""

    def __init__(self, model: nn.Module, layers: tuple[str, ...]) -> None:
        super().__init__()
        self.layers, self.names, modules = layers, [], []
        for name, node in trunk_names(whole(model, head=False).trunk):
            self.names.append(name)
            modules.append(_plain(node.module))
            if set(layers) <= set(self.names):
                break
        self.parts = nn.Sequential(*modules).requires_grad_(False).to(memory_format=torch.channels_last)

    def maps(self, x: Tensor) -> dict[str, Tensor]:
        found = {}
        for name, part in zip(self.names, self.parts, strict=True):
            found[name] = x = part(x)
        return {layer: found[layer] for layer in self.layers}

    def target(self, y: Tensor) -> TorchPerceptual:
        with torch.no_grad():
            self.kept = self.maps(y)
        return self

    def forward(self, x: Tensor) -> Tensor:
        return sum(F.l1_loss(each, self.kept[layer]) for layer, each in self.maps(x).items())


def _plain(layer: nn.Module) -> nn.Module:
    """torch's own layer."""
    if isinstance(layer, nn.ReLU | nn.MaxPool2d):
        return nn.ReLU(inplace=True) if isinstance(layer, nn.ReLU) else nn.MaxPool2d(2, 2)
    plain = nn.Conv2d(layer.in_channels, layer.out_channels, 3, padding=1)
    plain.load_state_dict(layer.state_dict())
    return plain


def lpips_pair(model: nn.Module) -> tuple[nn.Module, nn.Module]:
    """(ours, that of the package lpips) on one network."""
    import lpips

    ours = LPIPS(net=model, model_path=Path(lpips.__file__).parent / "weights" / "v0.1" / "vgg.pth", check_range=False)
    theirs = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs.requires_grad_(False).to(memory_format=torch.channels_last)


class Summed(nn.Module):
    """The sum of a loss' distances from y."""

    def __init__(self, loss: nn.Module, y: Tensor) -> None:
        super().__init__()
        self.loss, self.y = loss, y

    def forward(self, x: Tensor) -> Tensor:
        return self.loss(x, self.y).sum()


def cases(model: nn.Module, size: int, batch: int) -> dict[str, tuple[nn.Module, nn.Module]]:
    """(ours, torch's) functions of an image, by what they are."""
    y = (torch.rand(batch, 3, size, size) * 2 - 1).contiguous(memory_format=torch.channels_last)
    ours, theirs = lpips_pair(model)
    found: dict[str, tuple[nn.Module, nn.Module]] = {"LPIPS-VGG": (Summed(ours, y), Summed(theirs, y))}
    for what, layers in PERCEPTUAL.items():
        mine = Perceptual(dict.fromkeys(layers, 1.0), model, normalize=False).target(y)
        found[f"Perceptual, {what}"] = (mine, TorchPerceptual(model, layers).target(y))
    return found


def gradient(loss: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.detach().requires_grad_()
    value = loss(x)
    value.backward()
    return value.detach(), x.grad


def kept(loss: nn.Module, x: Tensor) -> int:
    """Bytes that a forward's graph holds, but for the weights."""
    weights = {weight.untyped_storage().data_ptr() for weight in loss.parameters()}
    storages: dict[int, int] = {}
    held: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        held.append(tensor)  # so that its place is nobody else's
        return tensor

    x = x.detach().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss(x)
    return sum(size for place, size in storages.items() if place not in weights)


def measure(name: str, ours: nn.Module, theirs: nn.Module, x: Tensor, rounds: int) -> list[dict[str, Any]]:
    """Rows of a case: forward, and forward and backward; an exit where the two differ."""
    mine, torchs = gradient(ours, x), gradient(theirs, x)
    off = [float((a - b).norm() / b.norm()) for a, b in zip(mine, torchs, strict=True)]
    if not (off[0] <= VALUES and off[1] <= GRADIENTS):
        raise SystemExit(f"{name} differs from torch's by {off[0]:.2g} in value and {off[1]:.2g} in gradient")
    rows = []
    runs = {"forward": lambda loss: loss(x), "and backward": lambda loss: gradient(loss, x)}
    for what, run in runs.items():
        with torch.set_grad_enabled(what != "forward"):
            samples = timing.interleaved({"vggfast": lambda: run(ours), "torch": lambda: run(theirs)}, rounds)  # noqa: B023
        medians = {by: timing.median_and_spread(each)[0] for by, each in samples.items()}
        rows.append({
            "case": name, "what": what, "seconds": samples, "ratio": medians["torch"] / medians["vggfast"], "off": off,
        })  # fmt: skip
    held = {by: kept(loss, x) for by, loss in (("vggfast", ours), ("torch", theirs))}
    rows[-1] |= {"kept_bytes": held}
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=256, help="height and width of the images (default 256)")
    parser.add_argument("--batch", type=int, default=4, help="pairs of images (default 4)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads (default torch's)")
    parser.add_argument("--rounds", type=int, default=9, help="samples of each candidate (default 9)")
    parser.add_argument("--out", type=Path, default=RESULTS, help=f"result file (default {RESULTS.name})")
    arguments = parser.parse_args()
    if "GLIBC_TUNABLES" not in os.environ:
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "GLIBC_TUNABLES": ALLOCATOR})
    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    model = vggfast.VGG("D", head="none", init="he")
    model.preprocessing = vggfast.Preprocessing.torchvision()
    x = torch.rand(arguments.batch, 3, arguments.size, arguments.size) * 2 - 1
    x = x.contiguous(memory_format=torch.channels_last)
    rows = []
    for name, (ours, theirs) in cases(model, arguments.size, arguments.batch).items():
        rows += measure(name, ours, theirs, x, arguments.rounds)
    print_table(
        f"{arguments.batch} images of {arguments.size} x {arguments.size}, {arguments.threads} threads",
        ("case", "what", "vggfast ms", "torch ms", "ratio", "kept MiB", "torch's"), map(shown, rows),
    )  # fmt: skip
    timing.write_results(arguments.out, rows, size=arguments.size, batch=arguments.batch)


def shown(row: dict[str, Any]) -> tuple[str, ...]:
    """A row of the table."""
    ms = [f"{timing.median_and_spread(row['seconds'][by])[0] * 1e3:.1f}" for by in ("vggfast", "torch")]
    held = [f"{size / MIB:.1f}" for size in row.get("kept_bytes", {}).values()] or ["", ""]
    return row["case"], row["what"], *ms, f"{row['ratio']:.2f}", *held


if __name__ == "__main__":
    main()
