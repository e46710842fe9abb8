"""``vggfast cache``: a data set decoded and resized once."""

from __future__ import annotations

import argparse
import functools
import os
import re
from pathlib import Path

from vggfast.cli.help import describe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    describe(
        parser, "Decodes the images of a data set once, resizes them, and writes them to a folder from which training "
        "reads them with --data cache:DIR. The same command continues a build that was stopped.",
        "vggfast cache imagenet:DIR --size 256 --out cache", "vggfast cache cache --verify",
    )  # fmt: skip
    parser.add_argument("data", metavar="SPEC", help="images, in any form that vggfast train --data takes; with "
                        "--verify, the folder of a cache will do")  # fmt: skip
    parser.add_argument("--size", type=_size, default=256, metavar="S",
                        help="shorter side of the images in pixels (default 256); smaller images keep their size, and "
                        "with 'none' all do")  # fmt: skip
    parser.add_argument("--out", metavar="DIR", type=Path, help="folder of the cache (default "
                        "cache/<data>-<size>)")  # fmt: skip
    parser.add_argument("--workers", metavar="N", type=int, default=os.cpu_count() or 1,
                        help="number of processes that decode (default: as many as processors)")  # fmt: skip
    parser.add_argument("--on-bad-image", choices=("fail", "skip"), default="fail",
                        help="at an image that does not decode: stop (fail), or leave it out and list it (skip) "
                        "(default fail)")  # fmt: skip
    parser.add_argument("--verify", action="store_true", help="only read the cache, and compare all "
                        "checksums")  # fmt: skip


def _size(text: str) -> int | None:
    if text == "none":
        return None
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, or none, got {text!r}")
    return int(text)


def _folder(parsed: argparse.Namespace) -> Path:
    """Where the cache is, or is to be."""
    if parsed.out:
        return parsed.out
    kind, _, where = parsed.data.partition(":")
    if parsed.verify and (kind == "cache" or Path(parsed.data).is_dir()):
        return Path(where or parsed.data)
    name = re.sub(r"[^\w.]+", "-", f"{kind}-{Path(where).name}").strip("-")
    return Path("cache") / f"{name}-{parsed.size or 'full'}"


def run(parsed: argparse.Namespace) -> int:
    from vggfast.console import ProgressBars
    from vggfast.data.cache import build_split
    from vggfast.data.sources import open_splits
    from vggfast.data.sources.cache import verify

    folder = _folder(parsed)
    if parsed.verify:
        with ProgressBars() as bars:
            blocks = verify(folder, lambda done, total, _="": bars("checksums, MiB", done >> 20, total >> 20))
        print(f"{folder}: {blocks} blocks, all as they were written")
        return 0
    for split, images in zip(("train", "val"), open_splits(parsed.data), strict=True):
        with ProgressBars() as bars:
            built = build_split(
                images, parsed.data, split, folder, parsed.size, workers=parsed.workers,
                on_bad_image=parsed.on_bad_image, progress=functools.partial(bars, f"cache, {split}"),
            )  # fmt: skip
        resumed = f", {built.resumed} of them from before" if built.resumed else ""
        print(f"{split}: {built.images} images, {built.bytes / 2**20:.0f} MiB{resumed}")
        for _, message in built.bad:
            print(f"  left out: {message}")
    print(f"train with --data cache:{folder}")
    return 0
