"""Measures every tile of the Hopper convolutions on this machine's GPU, for each distinct 3x3 layer of VGG-16 but the
first, and writes the table of the fastest, csrc/cuda/conv/sm90/fprop/tuned.h. The kernels' choice reads it when they
are built anew.

All tiles are compared with the exact answer, and value by value with the default one, before any is timed. They take
turns; figures are medians by the GPU's events, after the L2 was overwritten. Both files are written after each layer.
A layer that the table has no entry for has its tile chosen by estimates, as all have where nothing was measured.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import timing
import torch
from gpu import choice, tuning
from gpu.candidates import reason
from peers.report import draw
from simulated import ROOT

from vggfast.console import ProgressBar, console

TABLE = ROOT / "csrc" / "cuda" / "conv" / "sm90" / "fprop" / "tuned.h"
RESULTS = ROOT / "benchmarks" / "results" / "tune-cuda.json"


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = made.add_argument
    # fmt: off
    add("--dtypes", nargs="+", choices=tuning.ROUNDING, default=["bf16", "tf32", "fp16"],
        help="default: bf16 tf32 fp16")
    add("--batches", nargs="+", type=int, default=[64, 1, 8, 128], metavar="N", help="images (default 64 1 8 128)")
    add("--passes", nargs="+", choices=tuning.PASSES, default=list(tuning.PASSES), help="default: fprop dgrad")
    add("--rounds", type=int, default=5, metavar="N", help="turns of each tile (default 5)")
    add("--seconds", type=float, default=float("inf"), metavar="S",
        help="begin no layer that would end later, as the longest so far tells (default: no limit)")
    add("--out", type=Path, default=RESULTS, metavar="FILE", help="JSON with all samples (default %(default)s)")
    add("--table", type=Path, default=TABLE, metavar="FILE", help="the table (default %(default)s)")
    # fmt: on
    return made


def require_hopper(made: argparse.ArgumentParser) -> None:
    """Ends with a sentence where no GPU is here that runs the kernels."""
    if why := choice.why_no_gpu():
        made.error(f"{why}; tune.py needs a GPU of sm_90")
    major, minor = torch.cuda.get_device_capability()
    if major != 9:
        made.error(f"the GPU is of sm_{major}{minor}; the Hopper kernels want one of sm_90")
    if len(tuning.kernels().conv_tiles()) <= 4:
        made.error("this build of vggfast has no Hopper kernels; build it with 90a in VGGFAST_CUDA_ARCHS")


def by(metadata: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], cases: int) -> str:
    """Which run it was, for the table's header."""
    said, today = timing.environment(), datetime.now(timezone.utc)
    return (f"commit {said['commit']} on {metadata['name']}, driver {metadata['driver']}, CUDA {metadata['cuda']}, "
            f"torch {said['torch']}, {today:%Y-%m-%d}; {len(rows)} of {cases} cases")  # fmt: skip


def verdict(row: Mapping[str, Any]) -> list[str]:
    """A line of the table: the default tile's and the fastest's time, and what the model had said of the two."""
    seconds, estimates, default = tuning.medians(row), row["estimates"], row["default"]
    best = min(seconds, key=seconds.__getitem__, default=None)
    if best is None or default not in seconds:
        return [row["title"], default, "-", best or "-", "-", "-", "-"]
    return [row["title"], default, f"{seconds[default] * 1e6:.1f}", best, f"{seconds[best] * 1e6:.1f}",
            f"{seconds[default] / seconds[best]:.2f}", f"{estimates[default] / estimates[best]:.2f}"]  # fmt: skip


def sweep(options: argparse.Namespace, metadata: Mapping[str, Any]) -> tuple[list[dict[str, Any]], str]:
    """(rows, why it ended early or ""); the files are written after each case."""
    began, longest, rows = time.monotonic(), 0.0, []
    cases, flush = tuning.cases(options.dtypes, options.batches, options.passes), timing.flusher()
    with ProgressBar("cases", len(cases)) as live:
        for case in cases:
            start = time.monotonic()
            if start - began + longest > options.seconds:
                return rows, f"{len(rows)} of {len(cases)} cases fit in {options.seconds:.0f} s"
            live.to(len(rows), f"{case.which}, {case.dtype}, batch {case.batch}, {case.title}")
            choice.set_precision(case.dtype)
            try:
                rows.append(tuning.measure(case, options, flush))
            except Exception as error:  # after an error of the GPU's nothing else will run: what there is counts
                return rows, f"{case}: the run ends here: {reason(error)}"
            timing.write_results(options.out, rows, gpu=metadata)
            tuning.write_table(options.table, rows, options.num_sms, by(metadata, rows, len(cases)))
            longest = max(longest, time.monotonic() - start)
            live.line(" | ".join(verdict(rows[-1])))
    return rows, ""


def main(arguments: Sequence[str] | None = None) -> None:
    """Sweeps, and prints what it found.

    Raises:
        SystemExit: with status 1 where a tile was wrong or the run broke off; one that ran out of time did not.
    """
    made = parser()
    options = made.parse_args(arguments)
    if options.rounds < 2:
        made.error(f"--rounds must be at least 2 (quartiles are taken), got {options.rounds}")
    if min(options.batches) < 1:
        made.error(f"--batches must be at least 1, got {min(options.batches)}")
    require_hopper(made)
    torch.manual_seed(0)
    options.clusters = tuple(tuning.kernels().conv_clusters())
    metadata = {**timing.gpu(), "clusters": options.clusters}  # of 2, 4 and 8 blocks, which run at once
    options.num_sms = metadata["num_sms"]
    with torch.no_grad():
        rows, ended = sweep(options, metadata)
    columns = ["case", "default", "us", "fastest", "us", "default / fastest", "est."]
    draw("medians; est.: the same ratio by the model", columns, [verdict(row) for row in rows])
    wrong = [f"{row['title']}: {tile} is not timed: {why}" for row in rows for tile, why in row["not timed"].items()]
    for line in (*wrong, *([ended] if ended else []), f"samples: {options.out}; table: {options.table}"):
        console.print(line)
    if wrong or "the run ends here" in ended:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
