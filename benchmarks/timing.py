"""The only clock of the benchmarks, and what every result file records."""

from __future__ import annotations

import json
import os
import platform
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from processor import first_processor, processor_class

import vggfast
from vggfast import _native
from vggfast.io import write_atomically

WARM_UPS, MOST_CALLS = 3, 10
# Newer drivers call the reasons for lower clocks "event", older ones "throttle".
STATE = ("clocks.sm", "clocks.mem", "temperature.gpu", "power.draw", "clocks_{}_reasons.active")


def interleaved(
    candidates: Mapping[str, Callable[[], Any]], rounds: int, seconds: float = 0.02, processor: bool = False
) -> dict[str, list[float]]:
    """Seconds per call of each candidate, a sample per round; in a round each runs once, in turn.

    A sample is the mean over as many calls as fill `seconds`, so that short calls are not lost in the clock.
    With `processor` they are of this process' processor time, which leaves out what others take: for calls on one
    thread that wait for nothing.
    """
    clock = time.process_time if processor else time.perf_counter
    calls = {}
    for name, run in candidates.items():
        run()
        began = clock()
        run()
        calls[name] = max(1, round(seconds / max(clock() - began, 1e-9)))
    samples: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, run in candidates.items():
            began = clock()
            for _ in range(calls[name]):
                run()
            samples[name].append((clock() - began) / calls[name])
    return samples


def in_turns(
    samplers: Mapping[str, Callable[[int], list[float]]], rounds: int, seconds: float = 0.01
) -> dict[str, list[float]]:
    """Seconds of every call of each candidate; `samplers` take a number of calls and return the seconds of each.

    All are warmed up first. In a round each makes as many calls as fill `seconds`, in turn.
    """
    calls = {}
    for name, sample in samplers.items():
        sample(WARM_UPS)
        calls[name] = min(MOST_CALLS, max(1, round(seconds / statistics.median(sample(3)))))
    samples: dict[str, list[float]] = {name: [] for name in samplers}
    for _ in range(rounds):
        for name, sample in samplers.items():
            samples[name] += sample(calls[name])
    return samples


def flusher() -> Callable[[], Any]:
    """A call that overwrites several times the GPU's L2: what comes next finds nothing of its own there.

    The buffer is so large that the host has queued a short call before the GPU is through with it.
    """
    l2 = torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
    return torch.empty(max(1 << 30, 4 * l2), dtype=torch.uint8, device="cuda").zero_


def on_cuda(run: Callable[[], Any], calls: int, flush: Callable[[], Any]) -> list[float]:
    """Seconds of each of `calls` calls by the GPU's events, on the current stream; `flush` runs before each."""
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(calls)]
    for begin, end in events:
        flush()
        begin.record()
        run()
        end.record()
    torch.cuda.synchronize()
    return [round(begin.elapsed_time(end) * 1e-3, 9) for begin, end in events]


def by_host(run: Callable[[], Any], calls: int, flush: Callable[[], Any]) -> list[float]:
    """The same by the host's clock, for a `run` that returns when its work is done and uses streams of its own."""
    samples = []
    for _ in range(calls):
        flush()
        torch.cuda.synchronize()
        began = time.perf_counter()
        run()
        samples.append(round(time.perf_counter() - began, 9))
    return samples


def median_and_spread(samples: list[float]) -> tuple[float, float]:
    """(median, half the distance between the quartiles, as a share of the median)."""
    low, middle, high = statistics.quantiles(samples, n=4)
    return middle, (high - low) / 2 / middle


def environment() -> dict[str, Any]:
    """Versions, flags and machine: what a figure is worth nothing without."""
    said = first_processor()
    return {
        "vggfast": vggfast.__version__, "commit": _commit(),
        "build": dict(_native.load().build_info()), "isa": _native.cpu_isa(),
        "torch": torch.__version__, "threads": torch.get_num_threads(), "python": platform.python_version(),
        "machine": said.get("model name", platform.machine()), "processor": processor_class(said),
    }  # fmt: skip


def gpu() -> dict[str, Any]:
    """The GPU and what drives it."""
    device = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "name": device.name, "capability": f"{device.major}.{device.minor}", "memory": device.total_memory,
        "num_sms": device.multi_processor_count, "l2": device.L2_cache_size, "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(), "driver": _nvidia_smi(["driver_version"])[0],
    }  # fmt: skip


def gpu_state() -> dict[str, str]:
    """Clocks (MHz), temperature (degrees C), power (W) and reasons for lower clocks, as nvidia-smi has them now."""
    for word in ("event", "throttle"):
        found = _nvidia_smi([field.format(word) for field in STATE])
        if len(found) == len(STATE):
            break
    else:
        return {"unknown": found[0]}
    return dict(zip(("sm", "memory", "temperature", "power", "reasons"), found, strict=True))


def _nvidia_smi(fields: list[str]) -> list[str]:
    """The values of the fields; one text that says why where there are none."""
    uuid = getattr(torch.cuda.get_device_properties(torch.cuda.current_device()), "uuid", None)
    one = [f"--id=GPU-{uuid}"] if uuid else []
    command = ["nvidia-smi", *one, f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        return [str(error)]
    if done.returncode:
        return [" ".join((done.stdout + done.stderr).split())[:200]]
    return [value.strip() for value in done.stdout.splitlines()[0].split(",")]


def _commit() -> str:
    """The sources' commit, "-dirty" where they have changed since; earlier results that a run replaces do not count.

    VGGFAST_COMMIT says it where the sources travelled without their history.
    """
    if said := os.environ.get("VGGFAST_COMMIT"):
        return said
    if shutil.which("git") is None:
        return "unknown"

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], capture_output=True, text=True).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":(top,exclude)benchmarks/results")
    return (git("describe", "--always") or "unknown") + ("-dirty" if changed else "")


def write_results(path: Path, rows: list[dict[str, Any]], **more: Any) -> None:
    """Every sample of every row, with the environment and what `more` adds to it, as JSON."""
    text = json.dumps({"environment": {**environment(), **more}, "rows": rows}, indent=1) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text))
