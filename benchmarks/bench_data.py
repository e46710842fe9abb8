"""How fast images come to a network on this CPU: decoding, building a cache, crops from it, whole batches.

Wants a folder of class folders of photos, of which it takes those of at least 256 x 256. The crops are compared with
those of PIL, numpy and torch before they are timed: equal where the picture keeps its size, within PIL's own rounding
to 8 bits where it is resampled. What one process does is timed by its processor time, so rates are per second of a
core; what several do, by the clock on the wall: beside busy neighbours ("taken by others") that is no figure to quote.
"""

from __future__ import annotations

import argparse
import itertools
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timing
import torch
from peers.load import Neighbours, everyone
from peers.report import draw
from PIL import Image
from processor import file_name
from torch import Tensor

from vggfast.data import Augmentation, Batches, ImageSet, measure_colours, open_dataset
from vggfast.data.cache import build_split
from vggfast.data.sources.base import Strings
from vggfast.data.transforms import Geometry, Preprocessing, Transform, crop_pictures

RESULTS = Path(__file__).parent / "results" / file_name("data-cpu")
CROP, BATCH, SIZE = 224, 64, 256
SCALES = {"S = 256, as in the cache": (256, 256), "S drawn from 256 to 512, resampled": (256, 512)}
WORKERS = (0, 1, 2)


def subset(images: ImageSet, count: int) -> ImageSet:
    """`count` images of all classes alike, none smaller than the cache's size: that is what photos are."""
    large = (i for i in np.random.default_rng(0).permutation(len(images)) if _is_large(images.source(i)))
    chosen = list(itertools.islice(large, count))
    if len(chosen) < BATCH:
        raise SystemExit(f"{images.name} must have {BATCH} images of at least {SIZE} x {SIZE}, got {len(chosen)}")
    names = Strings(images.source(i) for i in chosen)
    return ImageSet(images.name, images.classes, images.labels[chosen], names, images.read)


def _is_large(path: str) -> bool:
    with Image.open(path) as image:
        return min(image.size) >= SIZE


def by_pil(pictures: Sequence[np.ndarray], geometries: Sequence[Geometry], transform: Transform) -> Tensor:
    """crop_pictures by PIL, numpy and torch."""
    mean, std = (np.array(values, np.float32) for values in (transform.preprocessing.mean, transform.preprocessing.std))
    rows = []
    for pixels, geometry in zip(pictures, geometries, strict=True):
        (height, width), (top, left) = geometry.size, geometry.corner
        image = Image.fromarray(pixels)
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.BILINEAR)
        crop = np.asarray(image.crop((left, top, left + CROP, top + CROP)), dtype=np.float32)
        crop = crop[:, ::-1] if geometry.flip else crop
        rows.append(torch.from_numpy((crop + geometry.shift.astype(np.float32) - mean) / std))
    return torch.stack(rows).permute(0, 3, 1, 2)


def check(ours: Tensor, peers: Tensor, std: Sequence[float], resampled: bool) -> None:
    worst = float(((ours - peers).abs() * torch.tensor(std, dtype=torch.float32)[:, None, None]).max())
    allowed = 1.01 if resampled else 1e-3
    if not worst <= allowed:
        raise SystemExit(f"crops differ from PIL's by {worst} of 255: at most {allowed} is allowed; nothing was timed")


def augmentation(images: ImageSet, scales: tuple[int, int]) -> Augmentation:
    statistics = measure_colours(images, 64)
    preprocessing = Preprocessing(tuple(statistics.mean.tolist()), tuple(statistics.std.tolist()))
    return Augmentation(CROP, scales, True, 0.1, statistics, preprocessing)


class Others(Neighbours):
    """What processes other than this one and its workers, which have ended by then, took."""

    def _others(self, process: int) -> float:
        return everyone() - sum(os.times()[:4]) if self.known else 0.0


class Bench:
    """Collects rows: what was done, by whom, with how many processes, and the seconds of each sample."""

    def __init__(self, rounds: int) -> None:
        self.rounds = rounds
        self.rows: list[dict[str, Any]] = []

    def time(self, what: str, images: int, candidates: dict[str, Callable[[], Any]], alone: bool) -> None:
        """Times candidates that work on so many images; `alone`: in this process, on one thread."""
        others = Others()
        others.start(os.getpid())
        samples = timing.interleaved(candidates, self.rounds, processor=alone)
        others.stop(os.getpid())
        for name, seconds in samples.items():
            middle, spread = timing.median_and_spread(seconds)
            self.rows.append({
                "what": what, "by": name, "images": images, "second_of": "core" if alone else "wall",
                "per_second": images / middle, "best_per_second": images / min(seconds), "spread": spread,
                "taken_by_others": others.share, "seconds": seconds,
            })  # fmt: skip


def bench_decode(bench: Bench, files: ImageSet, folder: Path) -> None:
    few = subset(files, min(128, len(files)))
    bench.time("decode a file", len(few), {"PIL": lambda: [few.pixels(i) for i in range(len(few))]}, alone=True)
    number = itertools.count()

    def build(workers: int) -> Callable[[], Any]:
        return lambda: build_split(few, "bench", "train", folder / f"{next(number)}", SIZE, workers=workers)

    bench.time("build a cache, size 256", len(few), {f"{workers} workers": build(workers) for workers in WORKERS},
               alone=False)  # fmt: skip


def bench_crops(bench: Bench, cached: ImageSet) -> None:
    pictures = [cached.pixels(i) for i in range(min(BATCH, len(cached)))]
    for name, scales in SCALES.items():
        transform = augmentation(cached, scales)
        geometries = [transform.draw(p.shape[:2], np.random.default_rng(i)) for i, p in enumerate(pictures)]
        given = (pictures, geometries, transform)
        check(crop_pictures(*given), by_pil(*given), transform.preprocessing.std, scales[0] != scales[1])
        candidates = {"vggfast": lambda given=given: crop_pictures(*given),
                      "PIL, numpy, torch": lambda given=given: by_pil(*given)}  # fmt: skip
        bench.time(f"crop 224 x 224, {name}", len(pictures), candidates, alone=True)


def bench_batches(bench: Bench, sources: dict[str, ImageSet]) -> None:
    for (source, images), (name, scales) in itertools.product(sources.items(), SCALES.items()):
        transform, count = augmentation(images, scales), len(images)

        def epoch(workers: int, images: ImageSet = images, transform: Augmentation = transform) -> Callable[[], Any]:
            batches = Batches(images, transform, BATCH, shuffle=True, workers=workers)
            return lambda: sum(int(batch.counts.sum()) for batch in batches.epoch())

        candidates = {f"{workers} workers": epoch(workers) for workers in WORKERS}
        if {run() for run in candidates.values()} != {count}:
            raise SystemExit(f"an epoch of {source} is not {count} images; nothing was timed")
        bench.time(f"batches of 64 from {source}, {name}", count, candidates, alone=False)
        bench.time(f"batches of 64 from {source}, {name}", count, {"this process": epoch(0)}, alone=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", metavar="DIR", type=Path, help="a folder with a folder of photos per class")
    parser.add_argument("--images", metavar="N", type=int, default=512, help="of them to use (default 512)")
    parser.add_argument("--rounds", metavar="N", type=int, default=7, help="samples of each figure (default 7)")
    parser.add_argument("--json", metavar="FILE", type=Path, default=RESULTS, help="where every sample goes")
    options = parser.parse_args()
    files = subset(open_dataset(f"imagefolder:{options.photos}", "train"), options.images)
    bench = Bench(options.rounds)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        build_split(files, "bench", "train", Path(name) / "cache", SIZE, on_bad_image="skip")
        cached = open_dataset(f"cache:{Path(name) / 'cache'}", "train")
        bench_decode(bench, files, Path(name))
        bench_crops(bench, cached)
        bench_batches(bench, {"the cache": cached, "files": files})
    table = []
    for row in bench.rows:
        rates = (f"{row[each]:.0f}" for each in ("per_second", "best_per_second"))
        shares = (f"{row[each] or 0:.0%}" for each in ("spread", "taken_by_others"))
        table.append([row["what"], row["by"], row["second_of"], *rates, *shares])
    draw("Images per second", ("what", "by", "second of", "median", "best", "spread", "taken by others"), table)
    timing.write_results(options.json, bench.rows, batch=BATCH, images=len(files))


if __name__ == "__main__":
    main()
