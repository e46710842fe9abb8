"""The losses of several runs of `vggfast train` on one picture, smoothed, and a line of figures for each: what bfloat16
costs a training, say.

  python benchmarks/compare_runs.py runs/fp32 runs/bf16 --out curves.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

from vggfast.runs.log import read_csv

SMOOTHED = 5  # rows of steps.csv that a point is the mean of


def column(path: Path, name: str) -> list[float]:
    return [row[name] for row in read_csv(path)]


def means(values: list[float], count: int) -> list[float]:
    """Of each value and those before it, `count` in all or as many as there are."""
    windows = (values[max(0, end - count) : end] for end in range(1, len(values) + 1))
    return [sum(window) / len(window) for window in windows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="DIR", help="folders with steps.csv and metrics.csv")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.png")
    parsed = parser.parse_args()
    if missing := [run for run in parsed.runs if not (run / "steps.csv").exists()]:
        parser.error(f"DIR must have a steps.csv, got {missing[0]}")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4))
    for run in parsed.runs:
        steps, losses = column(run / "steps.csv", "step"), column(run / "steps.csv", "loss")
        axes.plot(steps, means(losses, SMOOTHED), label=run.name)
        loss, error = (column(run / "metrics.csv", f"val_{name}")[-1] for name in ("loss", "top1_error"))
        print(f"{run.name}: {steps[-1]:.0f} steps, validation loss {loss:.4f}, top-1 error {error:.2f} %")
    axes.set(xlabel="step", ylabel="training loss")
    axes.legend()
    figure.tight_layout()
    figure.savefig(parsed.out, dpi=110)


if __name__ == "__main__":
    main()
