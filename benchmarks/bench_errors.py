"""Relative L2 errors of each algorithm, layer and pass against float64, beside torch's own, in float32 and bfloat16:
nothing is timed.

The inputs of a layer are random (normal, rectified), or what VGG-16 makes of photos at that layer: give --weights (a
state_dict with torchvision's names, .pth or .safetensors; the convolutions suffice) and --photos (a folder of images).
Gradients are random, rectified by nothing. In bfloat16 the reference is of the rounded inputs, so that an error is of
the sums and of rounding the result.

--size makes all maps smaller, which suits the tiles in software: `VGGFAST_CPU_ISA=amx-emulated python
benchmarks/bench_errors.py --size 64`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import timing
import torch
from layers import ALGORITHMS, BF16, LAYERS, PASSES, TORCHS, bf16_candidates, candidates, exact, relative_error
from peers.report import draw
from rich.progress import track
from torch import Tensor, nn

import vggfast

RESULTS = Path(__file__).parent / "results" / "errors-cpu.json"
COLUMNS = (*ALGORITHMS, *TORCHS, *BF16)
SCALE = 255 * torch.tensor([0.229, 0.224, 0.225])[:, None, None]  # of torchvision's inputs, on 0 to 255
MEAN = 255 * torch.tensor([0.485, 0.456, 0.406])[:, None, None]


def load_photos(folder: Path, count: int, side: int) -> Tensor:
    """The first `count` images that are large enough, their centre crops of side x side, normalised."""
    import numpy as np
    from PIL import Image

    photos: list[Tensor] = []
    for path in sorted(folder.rglob("*.jp*g")):
        image = Image.open(path).convert("RGB")
        if min(image.size) >= side:
            left, top = (image.width - side) // 2, (image.height - side) // 2
            pixels = torch.from_numpy(np.array(image.crop((left, top, left + side, top + side))))
            photos.append((pixels.permute(2, 0, 1) - MEAN) / SCALE)
        if len(photos) == count:
            return torch.stack(photos)
    raise SystemExit(
        f"--photos must be a folder of {count} JPEG images of at least {side} x {side}, got {folder} with {len(photos)}"
    )


def load_trunk(path: Path) -> nn.Sequential:
    """VGG-16's features with these weights."""
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        state = load_file(path)
    else:
        state = torch.load(path, weights_only=True)
    trunk = vggfast.VGG16(init_weights=False).features
    trunk.load_state_dict({name.removeprefix("features."): t for name, t in state.items() if "classifier" not in name})
    return trunk


def real_layers(trunk: nn.Sequential, photos: Tensor) -> dict[tuple[int, int, int], tuple[Tensor, Tensor]]:
    """{layer: (input, weight)} of the first layer of each kind, the inputs computed in float64."""
    found: dict[tuple[int, int, int], tuple[Tensor, Tensor]] = {}
    x = photos.double()
    for module in trunk.double():
        if isinstance(module, nn.Conv2d):
            found.setdefault((module.in_channels, module.out_channels, x.shape[2]), (x.float(), module.weight.float()))
        x = module(x)
    return found


def random_layer(layer: tuple[int, int, int], batch: int) -> tuple[Tensor, Tensor]:
    cin, cout, size = layer
    return torch.randn(batch, cin, size, size).relu(), torch.randn(cout, cin, 3, 3) * (2 / (9 * cin)) ** 0.5


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=["cpu"], default="cpu", help="where to run (default cpu)")
    parser.add_argument("--batch", type=int, default=2, help="images (default 2)")
    parser.add_argument("--size", type=int, default=224, help="of the network's images, 32, 64, ... (default 224)")
    parser.add_argument("--weights", type=Path, help="VGG-16's state_dict; with --photos")
    parser.add_argument("--photos", type=Path, help="a folder of JPEG images; with --weights")
    parser.add_argument("--out", type=Path, default=RESULTS, help="JSON file for every error")
    arguments = parser.parse_args()
    if (arguments.weights is None) != (arguments.photos is None):
        parser.error("--weights and --photos must be given together")
    if arguments.size < 32 or arguments.size % 32:
        parser.error(f"--size must be a multiple of 32, got {arguments.size}")
    torch.manual_seed(0)
    layers = [(cin, cout, size * arguments.size // 224) for cin, cout, size in LAYERS]
    sources = {"random": {layer: random_layer(layer, arguments.batch) for layer in layers}}
    if arguments.weights is not None:
        photos = load_photos(arguments.photos, arguments.batch, arguments.size)
        sources["photos"] = real_layers(load_trunk(arguments.weights), photos)
    rows = []
    cases = [(source, layer, which) for source in sources for layer in layers for which in PASSES]
    for source, layer, which in track(cases, "layers"):
        x, weight = sources[source][layer]
        x = x.contiguous(memory_format=torch.channels_last)
        gy = torch.randn(x.shape[0], *layer[1:2], *x.shape[2:]).contiguous(memory_format=torch.channels_last)
        reference = exact(x, weight, gy, which)
        errors = {name: relative_error(call(), reference) for name, call in candidates(x, weight, gy, which).items()}
        rounded = exact(*(each.bfloat16() for each in (x, weight, gy)), which)
        errors |= {
            name: relative_error(call(), rounded) for name, call in bf16_candidates(x, weight, gy, which).items()
        }
        rows.append({"input": source, "layer": layer, "pass": which, "batch": arguments.batch, "errors": errors})
    table = [
        [
            row["input"],
            "{} -> {}, {}²".format(*row["layer"]),
            row["pass"],
            *(f"{row['errors'][name]:.1e}" if name in row["errors"] else "-" for name in COLUMNS),
        ]
        for row in rows
    ]
    draw("Relative L2 error against float64", ("input", "layer", "pass", *COLUMNS), table)
    worst = max(max(row["errors"].get(name, 0) for name in ALGORITHMS) for row in rows)
    print(f"largest error of ours in float32: {worst:.1e}")
    ratio = max(row["errors"][BF16[0]] / row["errors"][BF16[1]] for row in rows)
    print(f"largest error of ours in bfloat16, of torch's: {ratio:.2f}")
    timing.write_results(arguments.out, rows, size=arguments.size)


if __name__ == "__main__":
    main()
