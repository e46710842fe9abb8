"""The only clock of the benchmarks, and what every result file records."""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

import vggfast
from vggfast import _native
from vggfast.weights.files import write_atomically


def interleaved(
    candidates: Mapping[str, Callable[[], Any]], rounds: int, seconds: float = 0.02
) -> dict[str, list[float]]:
    """Seconds per call of each candidate, a sample per round; in a round each runs once, in turn.

    A sample is the mean over as many calls as fill `seconds`, so that short calls are not lost in the clock.
    """
    calls = {}
    for name, run in candidates.items():
        run()
        began = time.perf_counter()
        run()
        calls[name] = max(1, round(seconds / max(time.perf_counter() - began, 1e-9)))
    samples: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, run in candidates.items():
            began = time.perf_counter()
            for _ in range(calls[name]):
                run()
            samples[name].append((time.perf_counter() - began) / calls[name])
    return samples


def median_and_spread(samples: list[float]) -> tuple[float, float]:
    """(median, half the distance between the quartiles, as a share of the median)."""
    low, middle, high = statistics.quantiles(samples, n=4)
    return middle, (high - low) / 2 / middle


def environment() -> dict[str, Any]:
    """Versions, flags and machine: what a figure is worth nothing without."""
    model = [line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")]
    return {
        "vggfast": vggfast.__version__, "commit": _commit(),
        "build": dict(_native.load().build_info()), "isa": _native.cpu_isa(),
        "torch": torch.__version__, "threads": torch.get_num_threads(), "python": platform.python_version(),
        "machine": model[0] if model else platform.machine(),
    }  # fmt: skip


def _commit() -> str:
    """The sources' commit, "-dirty" where they have changed since; earlier results that a run replaces do not count."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], capture_output=True, text=True).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":(top,exclude)benchmarks/results")
    return (git("describe", "--always") or "unknown") + ("-dirty" if changed else "")


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def write_results(path: Path, rows: list[dict[str, Any]], **more: Any) -> None:
    """Every sample of every row, with the environment and what `more` adds to it, as JSON."""
    text = json.dumps({"environment": {**environment(), **more}, "rows": rows}, indent=1) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text))
