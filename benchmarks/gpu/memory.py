"""Peak memory on CUDA of inference, of a training step, and of frozen features with a gradient to the images.

A fresh process per case. Held is what torch's allocator has given out after a first call, peak the most while it gave
out in a few calls more (torch.cuda.max_memory_allocated), reserved the most that it took from the device meanwhile.
What libraries allocate beside torch (CUDA's context, cuDNN's and our code) is left out. A ratio above 1 means that
vggfast's peak is lower.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timing
from peers import report
from peers.network import Spec, images, weights_file
from peers.registry import Engine

from gpu import races, registry
from gpu.choice import require_gpu
from vggfast.console import ProgressBar, console

USES = ("inference", "training", "perceptual")
LIMIT = 600  # seconds for one case
CALLS = 3
MIB = 1 << 20
COLUMNS = ("engine", "held", "peak", "reserved", "/ vggfast")


@dataclass(frozen=True)
class Case:
    """A use, an engine, and what it works on."""

    use: str
    engine: Engine
    spec: Spec


def parser() -> argparse.ArgumentParser:
    names = [name for name in registry.inference("bf16") if name != "jax"]
    made = races.parser(__doc__, "memory", names, (64,))
    made.add_argument("--uses", nargs="+", choices=USES, default=list(USES), help="what to measure (default: all)")
    return made


def cases(options: argparse.Namespace) -> list[Case]:
    """The processes to start, by use and batch."""
    every = {name: engine for name, engine in registry.inference(options.dtype).items() if name != "jax"}
    default = [name for name in every if not name.endswith(("-graph", "-fp8"))]
    found = []
    for use in options.uses:
        known = every if use == "inference" else registry.steps(options.dtype, use)
        part = "features" if use == "perceptual" else "whole"
        for batch in options.batches:
            spec = races.spec(options, part, batch)
            names = [engine.name for engine in races.chosen(every, options, default)]
            found += [Case(use, known[name], spec) for name in names if name in known]
    return found


def measure(case: Case, cache: Path) -> dict[str, Any]:
    """The figures of a case in bytes, or {"reason": why there are none}."""
    engine = case.engine
    request = {"module": engine.module, "spec": case.spec.as_dict(), "cache": str(cache),
               "options": dict(engine.options)}  # fmt: skip
    try:
        done = subprocess.run(
            [sys.executable, "-m", "gpu.memory", json.dumps(request)], capture_output=True, text=True, timeout=LIMIT,
            env=engine.environment(case.spec.threads, "best", "own"),
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"reason": f"took longer than {LIMIT} s"}
    lines = [line for line in (done.stderr if done.returncode else done.stdout).splitlines() if line.strip()]
    if done.returncode:
        return {"reason": f"ended with status {done.returncode}: {lines[-1].strip()[:200] if lines else ''}"}
    return json.loads(lines[-1])


def child(request: dict[str, Any]) -> dict[str, int]:
    """Builds the engine, runs it, and says what torch's allocator saw."""
    import torch

    # A clock's buffer is no engine's memory.
    timing.flusher = lambda: lambda: None
    spec = Spec(**request["spec"])
    runner = importlib.import_module(request["module"]).build(spec, Path(request["cache"]), **request["options"])
    x = runner.prepare(images(spec))
    for _ in range(CALLS):  # compiles, tunes and captures
        runner.run(x)
    torch.cuda.synchronize()
    gc.collect()
    torch.cuda.empty_cache()
    held = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    for _ in range(CALLS):
        runner.run(x)
    torch.cuda.synchronize()
    return {"held": held, "peak": torch.cuda.max_memory_allocated(), "reserved": torch.cuda.max_memory_reserved()}


def table(group: Sequence[tuple[Case, dict[str, Any]]]) -> list[list[str]]:
    """An engine a row: MiB, and its peak over ours."""
    ours = next((row for case, row in group if case.engine.name == "vggfast" and "reason" not in row), None)
    rows = []
    for case, row in group:
        if "reason" in row:
            rows.append([f"{case.engine.name}: not available", *"----"])
            continue
        ratio = f"{row['peak'] / ours['peak']:.2f}" if ours else "-"
        rows.append([case.engine.name, *(f"{row[name] / MIB:.0f}" for name in ("held", "peak", "reserved")), ratio])
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    made = parser()
    options = races.parse(made, arguments, "memory")
    try:
        requested = cases(options)
    except ValueError as error:
        made.error(str(error))
    require_gpu(made)
    groups: dict[tuple[str, int], list[tuple[Case, dict[str, Any]]]] = {}
    with ProgressBar("cases", len(requested)) as live:
        for number, case in enumerate(requested):
            live.to(number, f"{case.use}, batch {case.spec.batch}: {case.engine.name}")
            weights_file(case.spec, options.cache)
            groups.setdefault((case.use, case.spec.batch), []).append((case, measure(case, options.cache)))
            write(groups, options.out)
    for (use, _), group in groups.items():
        report.draw(f"MiB: {races.title(group[0][0].spec, use)}", COLUMNS, table(group))
        for case, row in group:
            if "reason" in row:
                console.print(f"{case.engine.name}: not available: {row['reason']}")
    console.print(f"figures: {options.out}")
    if any("reason" in row for group in groups.values() for case, row in group if case.engine.ours):
        raise SystemExit(1)


def write(groups: dict[tuple[str, int], list[tuple[Case, dict[str, Any]]]], out: Path) -> None:
    rows = [{"use": case.use, "engine": case.engine.name, "case": case.spec.as_dict(), **row}
            for group in groups.values() for case, row in group]  # fmt: skip
    timing.write_results(out, rows, peers=races.versions(), gpu=timing.gpu(), unit="bytes")


if __name__ == "__main__":
    print("\n" + json.dumps(child(json.loads(sys.argv[1]))), flush=True)
