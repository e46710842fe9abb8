"""``vggfast svm``: how well a linear SVM recognises classes from features."""

from __future__ import annotations

import argparse
import functools
from pathlib import Path

from vggfast.cli.help import describe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    describe(
        parser, "Trains linear SVMs, one class against all others, on random splits of the images whose features "
        "vggfast features wrote, and prints the mean class recall: the paper's protocol for Caltech-101. Each block is "
        "divided by its L2 norm before blocks are combined, and the whole is divided by its norm again after.",
        "vggfast svm features.npz --use pool5.mean@224 relu5_3@320 --c 1",
    )  # fmt: skip
    parser.add_argument("features", metavar="FEATURES", type=Path, nargs="+",
                        help="files or folders that vggfast features wrote; several of the same images are "
                        "joined")  # fmt: skip
    parser.add_argument("--use", metavar="BLOCK", nargs="+", default=[],
                        help="blocks to use, such as pool5.mean@224; pool5@224 and pool5 stand for all that match "
                        "(default: all blocks)")  # fmt: skip
    parser.add_argument("--combine", choices=("stack", "average"), default="stack",
                        help="whether blocks of several scales are stacked or averaged (default stack)")  # fmt: skip
    parser.add_argument("--train", metavar="N", type=int, default=30, help="training images of each class (default 30)")
    parser.add_argument("--test", metavar="N", type=int, default=50,
                        help="test images of each class, at most (default 50)")  # fmt: skip
    parser.add_argument("--splits", metavar="N", type=int, default=3, help="number of random splits (default 3)")
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="seed of the splits (default 0)")
    parser.add_argument("--c", metavar="X", type=float,
                        help="C of the SVM (default: chosen by cross-validation within the training "
                        "images)")  # fmt: skip
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the figures to this file, too")


def run(parsed: argparse.Namespace) -> int:
    from dataclasses import asdict

    from vggfast.console import ProgressBars, print_table
    from vggfast.features import caltech_protocol, join, load_features
    from vggfast.io import write_json

    file = join([load_features(path) for path in parsed.features])
    chosen = file.select(parsed.use, parsed.combine)
    with ProgressBars() as bars:
        found = caltech_protocol(
            chosen, file.labels, train=parsed.train, test=parsed.test, splits=parsed.splits, seed=parsed.seed,
            c=parsed.c, progress=functools.partial(bars, "splits"),
        )  # fmt: skip
    names = " ".join(map(str, parsed.features))
    rows = zip(found.recalls, found.accuracies, found.cs, strict=True)
    print_table(
        f"{names}: {chosen.shape[1]} values, {found.train_images} training, {found.test_images} test images",
        ("split", "mean class recall %", "accuracy %", "C"),
        [(str(i), f"{recall:.2f}", f"{accuracy:.2f}", f"{c:g}") for i, (recall, accuracy, c) in enumerate(rows, 1)],
    )
    spread = "" if found.deviation is None else f" ± {found.deviation:.2f}"
    print(f"mean class recall {found.mean:.2f}{spread} %")
    if parsed.json:
        options = {name: getattr(parsed, name) for name in ("use", "combine", "train", "test", "splits", "seed")}
        figures = {"mean": found.mean, "deviation": found.deviation, **asdict(found)}
        write_json(parsed.json, {"features": names, **options, "dims": chosen.shape[1], **figures})
    return 0
