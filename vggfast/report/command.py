"""The command ``vggfast report``."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Writes report.html and curves.png into a run's folder, from the files there. Training does so itself at its "
        "end; this is for a run that goes on, or that was stopped."
    )
    parser.epilog = "example: vggfast report runs/photos"
    parser.add_argument("out", metavar="RUN", type=Path, help="the run's folder")


def run(parsed: argparse.Namespace) -> int:
    from vggfast.report.html import write_report

    print(write_report(parsed.out))
    return 0
