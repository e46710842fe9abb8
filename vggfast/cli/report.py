"""``vggfast report``: pages of a run or an evaluation."""

from __future__ import annotations

import argparse
from pathlib import Path

from vggfast.cli.help import describe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    describe(
        parser, "Writes report.html and curves.png into the folder of a training run, finished or not, from the files "
        "that are there; training does so itself at its end. Into the folder of an evaluation (vggfast eval --out) it "
        "writes evaluation.html and evaluation-*.png.",
        "vggfast report runs/photos",
    )  # fmt: skip
    parser.add_argument("out", metavar="FOLDER", type=Path, help="the folder of a run or an evaluation")


def run(parsed: argparse.Namespace) -> int:
    out: Path = parsed.out
    is_run, is_evaluation = ((out / name).is_file() for name in ("config.yaml", "results.json"))
    if not (is_run or is_evaluation):
        raise FileNotFoundError(
            f"{out} holds neither a run (config.yaml) nor a finished evaluation (results.json, as vggfast eval --out "
            "writes it)"
        )
    if is_run:
        from vggfast.report.html import write_report

        print(write_report(out))
    if is_evaluation:
        from vggfast.report.evaluation import write_evaluation

        print(write_evaluation(out))
    return 0
