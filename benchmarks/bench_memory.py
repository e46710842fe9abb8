"""Peak memory of inference, of a training step, and of features with frozen weights and a gradient to the images.

A fresh process per case. Its imports are done before the count begins; resident is what it holds after a first call,
peak the most while it ran a few times more (VmHWM of Linux), so that what torch.compile takes to compile is left out.
Both are given with and without what the imports took. A ratio above 1 means that vggfast takes less.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timing
from gpu.choice import HELP, gpu_asked_for
from peers import command, report
from peers.network import ALLOWED, Spec, default_cache, weights_file
from peers.registry import INFERENCE, TRAINING, Engine, chosen
from processor import file_name

from vggfast.console import ProgressBar, console

OUT = f"benchmarks/results/{file_name('memory-cpu')}"
USES = ("inference", "training", "perceptual")
# Peers of the gradient cases: what the targets name.
GRADIENTS = ("vggfast", "torch-nchw", "torch-channels-last", "torch-channels-last-hugepages", "torch-compile",
             "vggfast-bf16", "torch-bf16", "torch-bf16-hugepages")  # fmt: skip
LIMIT = 900  # seconds for one case
MIB = 1 << 20


@dataclass(frozen=True)
class Case:
    """A use, an engine, and what it works on."""

    use: str
    engine: Engine
    spec: Spec


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help=HELP)
    made.add_argument("--uses", nargs="+", choices=USES, default=list(USES), help="what to measure (default: all)")
    made.add_argument("--engines", nargs="+", metavar="NAME",
                      help=f"engines: {', '.join(INFERENCE)} (default: all that a use knows)")  # fmt: skip
    made.add_argument("--batches", nargs="+", type=int, default=[1, 8], metavar="N",
                      help="images of inference (default 1 8)")  # fmt: skip
    made.add_argument("--train-batches", nargs="+", type=int, default=[8], metavar="N",
                      help="images of the cases with gradients (default 8)")  # fmt: skip
    made.add_argument("--threads", type=int, default=2, metavar="N", help="threads (default 2)")
    made.add_argument("--network", choices=ALLOWED["network"], default="D", help="configuration (default D)")
    made.add_argument("--size", type=int, default=224, metavar="N", help="height and width (default 224)")
    made.add_argument("--cache", type=Path, default=default_cache(), metavar="DIR",
                      help="folder for weights and converted models (default %(default)s)")  # fmt: skip
    made.add_argument("--out", type=Path, default=Path(OUT), metavar="FILE", help="JSON (default %(default)s)")
    return made


def cases(options: argparse.Namespace) -> list[Case]:
    """The processes to start, grouped by use and batch."""
    found = []
    for use in options.uses:
        known = INFERENCE if use == "inference" else {name: TRAINING[name] for name in GRADIENTS}
        names = [name for name in options.engines or known if name in known or name not in INFERENCE]
        part = "features" if use == "perceptual" else "whole"
        for batch in options.batches if use == "inference" else options.train_batches:
            for engine in chosen(known, names):
                spec = Spec(options.network, part, options.size, batch, options.threads, engine.dtype)
                found.append(Case(use, engine, spec))
    return found


def measure(case: Case, cache: Path) -> dict[str, Any]:
    """The figures of a case in bytes, or {"reason": why there are none}."""
    engine = case.engine
    packages = {"peers.training", "numpy"} if case.use != "inference" else {"numpy", engine.package}
    request = {"use": case.use, "module": engine.module, "spec": case.spec.as_dict(), "cache": str(cache),
               "options": dict(engine.options), "packages": sorted(packages | {engine.package})}  # fmt: skip
    command_line = [sys.executable, "-m", "peers.memory", json.dumps(request)]
    environment = engine.environment(case.spec.threads, "best", "own")
    try:
        done = subprocess.run(command_line, env=environment, capture_output=True, text=True, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        return {"reason": f"took longer than {LIMIT} s"}
    lines = [line for line in (done.stderr if done.returncode else done.stdout).splitlines() if line.strip()]
    if done.returncode:
        return {"reason": f"ended with status {done.returncode}: {lines[-1].strip()[:200] if lines else ''}"}
    return json.loads(lines[-1])


def ratio(row: dict[str, Any], ours: dict[str, Any] | None) -> str:
    """Peak less imports over ours, as text."""
    if not ours or "reason" in ours or "reason" in row:
        return "-"
    return f"{(row['peak_running'] - row['imported']) / (ours['peak_running'] - ours['imported']):.2f}"


def table(group: Sequence[tuple[Case, dict[str, Any]]]) -> list[list[str]]:
    """An engine a row: resident, peak, both less imports, and the ratio of the last to ours."""
    ours = next((row for case, row in group if case.engine.name == "vggfast"), None)
    rows = []
    for case, row in group:
        if "reason" in row:
            rows.append([f"{case.engine.name}: not available", case.engine.dtype, *"-----"])
            continue
        base = row["imported"]
        figures = (row["resident"], row["peak_running"], row["resident"] - base, row["peak_running"] - base)
        rows.append([case.engine.name, case.engine.dtype, *(f"{f / MIB:.0f}" for f in figures), ratio(row, ours)])
    return rows


COLUMNS = ("engine", "dtype", "resident", "peak", "resident - imports", "peak - imports", "/ vggfast")


def main(arguments: Sequence[str] | None = None) -> None:
    if gpu_asked_for(arguments):
        from gpu import memory

        return memory.main(arguments)
    made = parser()
    options = made.parse_args(arguments)
    try:
        requested = cases(options)
    except ValueError as error:
        made.error(str(error))
    groups: dict[tuple[str, int], list[tuple[Case, dict[str, Any]]]] = {}
    converted: set[tuple[str, str]] = set()
    with ProgressBar("cases", len(requested)) as live:
        for number, case in enumerate(requested):
            live.to(number, f"{case.use}, batch {case.spec.batch}: {case.engine.name}")
            weights_file(case.spec, options.cache)
            kind = case.engine.module, case.engine.dtype
            if case.engine.package not in ("torch", "torchao", "vggfast") and kind not in converted:
                converted.add(kind)
                measure(case, options.cache)  # converts the model, which no user pays for twice
            groups.setdefault((case.use, case.spec.batch), []).append((case, measure(case, options.cache)))
    for (use, _), group in groups.items():
        spec = group[0][0].spec
        what = {"inference": "inference", "training": "training step", "perceptual": "frozen features, gradient to x"}
        report.draw(f"MiB: {report.title(spec, 'best', what[use])}", COLUMNS, table(group))
        for case, row in group:
            if "reason" in row:
                console.print(f"{case.engine.name}: not available: {row['reason']}")
    rows = [{"use": case.use, "engine": case.engine.name, "case": case.spec.as_dict(), **row}
            for group in groups.values() for case, row in group]  # fmt: skip
    timing.write_results(options.out, rows, peers=command.versions(), unit="bytes")
    console.print(f"figures: {options.out}")


if __name__ == "__main__":
    main()
