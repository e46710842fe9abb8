"""Features of a data set by vggfast and by plain torch: equal, how fast, and what a linear SVM makes of both.

Steps, each a command of its own, since some take a while:

  sample   both on a few images in memory: compares them, then times them in turns
  whole    the whole data set by one of them, as ``vggfast features`` does it
  svm      mean class recall of blocks of these files and the distance between ours and torch's, written to --out

Plain torch is an nn.Sequential of torch's own layers; all else (reading, rescaling, pooling over space) is the same
code, in the same process.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import time
from collections.abc import Iterator
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import timing
import torch
from torch import Tensor, nn

from vggfast import Engine
from vggfast.console import ProgressBars
from vggfast.data import open_dataset
from vggfast.features import (
    COMBINE,
    POOLS,
    Block,
    Extractor,
    caltech_protocol,
    extract_dataset,
    join,
    load_features,
)
from vggfast.io import write_json
from vggfast.weights import load_model

RESULTS = Path(__file__).parent / "results" / "caltech101-features.json"
FACTS = ("by", "environment", "images", "scales", "seconds", "images_per_second")
TOLERANCE = 1e-4  # relative L2 distance of each block's features: ours run by Winograd's algorithm
TAPS = ("pool3", "pool4", "relu5_1", "relu5_2", "relu5_3", "pool5")
FORMATS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}


class TorchExtractor(Extractor):
    """The same features by torch's own layers."""

    def __init__(self, memory_format: str, *arguments: Any, **options: Any) -> None:
        self._format = FORMATS[memory_format]
        super().__init__(*arguments, **options)

    def load(self, model: nn.Module) -> None:
        self._plain = nn.Sequential(*map(_plain, model.features)).to(memory_format=self._format)
        self._names = Engine(model.features).taps

    def maps(self, x: Tensor) -> dict[str, Tensor]:
        x, found = x.contiguous(memory_format=self._format), {}
        for name, layer in zip(self._names, self._plain, strict=True):
            x = layer(x)
            found |= {name: x} if name in self.taps else {}
            if len(found) == len(self.taps):
                break
        return found


def _plain(layer: nn.Module) -> nn.Module:
    """torch's own layer, as torchvision's vgg16 has it."""
    if isinstance(layer, nn.ReLU):
        return nn.ReLU(inplace=True)
    if isinstance(layer, nn.MaxPool2d):
        return nn.MaxPool2d(2, 2)
    plain = nn.Conv2d(layer.in_channels, layer.out_channels, 3, padding=1)
    plain.load_state_dict(layer.state_dict())
    return plain.requires_grad_(False)


def distances(ours: np.ndarray, theirs: np.ndarray, blocks: tuple[Block, ...]) -> dict[str, float]:
    """Relative L2 distance of each block; an exit where one is beyond the tolerance."""
    ends = np.cumsum([block.dims for block in blocks])[:-1]
    found = {
        block.name: float(np.linalg.norm(a - b) / np.linalg.norm(b))
        for block, a, b in zip(blocks, np.split(ours, ends, 1), np.split(theirs, ends, 1), strict=True)
    }
    worst = max(found, key=lambda name: found[name])
    if not found[worst] <= TOLERANCE:
        raise SystemExit(f"{worst} differs from torch's by {found[worst]}: at most {TOLERANCE} is allowed")
    return found


def sample(parsed: argparse.Namespace) -> None:
    """Times a few images, which lie decoded in memory, by this process' processor time."""
    model, _ = load_model(parsed.model)
    images = open_dataset(parsed.data, "val")
    chosen = np.random.default_rng(0).permutation(len(images))[: parsed.count]
    pictures = [images.image(i) for i in chosen]
    options = {"pool": POOLS, "flip": False}
    ours = Extractor(model, TAPS, [parsed.scale], **options)
    torchs = {name: TorchExtractor(name, model, TAPS, [parsed.scale], **options) for name in FORMATS}
    mine = ours(pictures)
    off = {name: max(distances(mine, each(pictures), ours.blocks).values()) for name, each in torchs.items()}
    candidates = {"vggfast": lambda: ours(pictures)}
    candidates |= {f"torch, {name}": lambda each=each: each(pictures) for name, each in torchs.items()}
    rows = []
    for name, seconds in timing.interleaved(candidates, parsed.rounds, processor=True).items():
        middle, spread = timing.median_and_spread(seconds)
        rows.append({"by": name, "images_per_second": len(pictures) / middle, "spread": spread, "seconds": seconds})
        print(f"{name}: {len(pictures) / middle:.2f} images a second of a core", flush=True)
    write_json(parsed.out, {
        "environment": timing.environment(), "images": len(pictures), "scale": parsed.scale, "distance": off,
        "rows": rows,
    })  # fmt: skip


def whole(parsed: argparse.Namespace) -> None:
    """The whole set, by ours or by torch: the clock on the wall, and the process' own time beside it."""
    model, _ = load_model(parsed.model)
    make = Extractor if parsed.by == "vggfast" else lambda *a, **k: TorchExtractor(parsed.by, *a, **k)
    extractor = make(model, TAPS, [parsed.scale], pool=POOLS, flip=False)
    sets = [open_dataset(parsed.data, split) for split in ("train", "val")]
    began = time.process_time()
    with ProgressBars() as bars:
        metadata = {
            "by": parsed.by, "model": str(parsed.model), "data": parsed.data, "environment": timing.environment(),
        }  # fmt: skip
        made = extract_dataset(extractor, sets, parsed.out, metadata, progress=functools.partial(bars, parsed.by))
    processor = time.process_time() - began
    write_json(parsed.out.with_suffix(".json"), {
        **{name: made.metadata[name] for name in FACTS},
        "processor_seconds": processor,
    })  # fmt: skip
    print(f"{parsed.by}: {made.metadata['seconds']:.1f} s, {made.metadata['images_per_second']:.2f} images/s")


def cases(scales: list[int], by: str) -> Iterator[tuple[list[str], str]]:
    """(blocks, what becomes of scales): most at the first scale."""
    compared = [["pool5.mean"], ["relu5_3.max"], ["pool4.mean", "pool5.mean"]]  # by ours and by torch
    single = [[f"{tap}.mean"] for tap in reversed(TAPS)] + [["pool5.max"], ["pool4.max"]]
    stacked = [["pool5.mean", "pool5.max"], ["relu5_3.mean", "pool5.mean"]]
    for use in compared if by == "torch" else [*compared, *(each for each in single if each not in compared), *stacked]:
        yield [f"{name}@{scales[0]}" for name in use], "stack"
    for scale in scales[1:]:
        for name in ("pool5.mean", "relu5_3.max"):
            yield [f"{name}@{scale}"], "stack"
    for chosen in [[scales[0], other] for other in scales[1:]]:
        for name, how in itertools.product(("pool5.mean", "relu5_3.max"), COMBINE):
            yield [f"{name}@{scale}" for scale in chosen], how
        for names in (("relu5_3.max", "pool5.mean"), ("pool5.mean", "pool5.max")):
            yield [f"{name}@{scale}" for name in names for scale in chosen], "stack"
    if len(scales) > 2:
        for names in (("pool5.mean",), ("pool5.mean", "pool5.max")):
            yield [f"{name}@{scale}" for name in names for scale in scales], "stack"


def svm(parsed: argparse.Namespace) -> None:
    """Mean class recall of single blocks and of several; what --out has already is not done again."""
    files = {"vggfast": join([load_features(path) for path in parsed.ours])}
    if parsed.torch:
        files["torch"] = load_features(parsed.torch)
    made = json.loads(parsed.out.read_text()) if parsed.out.exists() else {"svm": {}}
    made["environment"] = {**timing.environment(), "scikit-learn": metadata.version("scikit-learn")}
    beside = [path.with_suffix(".json") for path in (*parsed.ours, *([parsed.torch] if parsed.torch else []))]
    made["runs"] = [json.loads(path.read_text()) for path in beside]
    made["note"] = parsed.note
    made["sample"] = json.loads(parsed.sample.read_text()) if parsed.sample else None
    if parsed.torch:
        theirs = files["torch"]
        if theirs.names != files["vggfast"].names:
            raise SystemExit(f"{parsed.torch} is of other images than {parsed.ours[0]}")
        same = files["vggfast"].columns(theirs.blocks)
        made["distance"] = distances(same, theirs.features, theirs.blocks)
    for by, file in files.items():
        for use, how in cases(list(dict.fromkeys(block.scale for block in file.blocks)), by):
            if "c" not in made:
                made["c"] = parsed.c or caltech_protocol(file.select(use), file.labels, splits=1).cs[0]
            name = f"{by}: {' + '.join(use)}, {how}"
            if name not in made["svm"]:
                features = file.select(use, how)
                found = caltech_protocol(features, file.labels, c=made["c"])
                made["svm"][name] = {
                    "by": by, "use": use, "combine": how, "dims": features.shape[1],
                    "mean": found.mean, "deviation": found.deviation, **asdict(found),
                }  # fmt: skip
                write_json(parsed.out, made)
            print(f"{name}: {made['svm'][name]['mean']:.2f} ± {made['svm'][name]['deviation']:.2f}", flush=True)
    write_json(parsed.out, made)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(required=True, metavar="STEP")
    for step in (sample, whole, svm):
        command = steps.add_parser(step.__name__, help=step.__doc__)
        command.set_defaults(step=step)
        command.add_argument("--out", type=Path, required=step is not svm, default=RESULTS)
        if step is svm:
            command.add_argument("--ours", metavar="FILE.npz", type=Path, nargs="+", required=True,
                                 help="by whole; the scale of the first is that of most SVMs")  # fmt: skip
            command.add_argument("--torch", metavar="FILE.npz", type=Path, help="by whole")
            command.add_argument("--sample", metavar="FILE.json", type=Path, help="by sample")
            command.add_argument("--note", help="what else there is to say of how the files were made")
            command.add_argument("--c", type=float,
                                 help="of the SVMs (default: cross-validated, for the first of them)")  # fmt: skip
            continue
        command.add_argument("--model", type=Path, required=True, help="weights of a network D without batch norm")
        command.add_argument("--data", required=True, help="images, as for vggfast train")
        command.add_argument("--scale", type=int, default=224, help="shorter side (default 224)")
        if step is sample:
            command.add_argument("--count", type=int, default=8, help="images (default 8)")
            command.add_argument("--rounds", type=int, default=5)
        else:
            command.add_argument("--by", choices=("vggfast", *FORMATS), required=True,
                                 help="vggfast, or torch in this memory format")  # fmt: skip
    parsed = parser.parse_args()
    parsed.step(parsed)


if __name__ == "__main__":
    main()
