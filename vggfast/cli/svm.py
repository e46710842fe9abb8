"""``vggfast svm``: how well a linear SVM recognises classes from features."""

from __future__ import annotations

import argparse
import functools
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Trains linear SVMs, one class against all others, on random splits of what vggfast features wrote, and "
        "prints the mean class recall: the paper's protocol for Caltech-101. Each block is divided by its L2 norm "
        "before it is combined with others, and the whole again after."
    )
    parser.epilog = "example: vggfast svm features.npz --use pool5.mean@224 relu5_3@320 --c 1"
    parser.add_argument("features", metavar="FEATURES", type=Path, nargs="+",
                        help="what vggfast features wrote; several files of the same images are joined")  # fmt: skip
    parser.add_argument("--use", metavar="BLOCK", nargs="+", default=[],
                        help="blocks, as pool5.mean@224, pool5@224 or pool5 (default: all)")  # fmt: skip
    parser.add_argument("--combine", choices=("stack", "average"), default="stack",
                        help="what becomes of several scales (default stack)")  # fmt: skip
    parser.add_argument("--train", metavar="N", type=int, default=30, help="training images a class (default 30)")
    parser.add_argument("--test", metavar="N", type=int, default=50,
                        help="test images a class, at most, of the others (default 50)")  # fmt: skip
    parser.add_argument("--splits", metavar="N", type=int, default=3, help="random splits (default 3)")
    parser.add_argument("--seed", type=int, default=0, help="of the splits (default 0)")
    parser.add_argument("--c", type=float,
                        help="of the SVM (default: by cross-validation within the training images)")  # fmt: skip
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the figures there too")


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
