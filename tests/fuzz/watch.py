"""Watches the process that runs a kind's cases, counts the outcomes, and starts it anew where a case ends it."""

from __future__ import annotations

import collections
import json
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

SECONDS = 10.0  # that a case may take
START_SECONDS = 120.0  # that the process may take to start
GOOD = ("accepted", "refused")
BAD = ("crash", "hang", "memory", "traceback", "different")
_ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Finding:
    """A case that went wrong: its number, its outcome (one of BAD), and what there is to say about it."""

    number: int
    outcome: str
    detail: str


@dataclass
class Result:
    """How many cases of a kind had each outcome, and those that went wrong."""

    kind: str
    seed: int
    counts: collections.Counter[str] = field(default_factory=collections.Counter)
    findings: list[Finding] = field(default_factory=list)

    @property
    def cases(self) -> int:
        return sum(self.counts.values())

    def add(self, number: int, outcome: str, detail: str) -> None:
        self.counts[outcome] += 1
        if outcome in BAD:
            self.findings.append(Finding(number, outcome, detail))


class _Worker:
    """A process that runs cases from a number on."""

    def __init__(self, kind: str, seed: int, first: int) -> None:
        self._log = tempfile.NamedTemporaryFile("r", prefix="vggfast-fuzz-", suffix=".log")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.fuzz.worker", kind, str(seed), str(first), self._log.name],
            stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, bufsize=0, cwd=_ROOT,  # no line may wait in a buffer
        )  # fmt: skip
        self._selector = selectors.DefaultSelector()
        assert self._process.stdout is not None
        self._selector.register(self._process.stdout, selectors.EVENT_READ)

    def line(self, seconds: float) -> dict | None:
        """The next line, None where the process has ended; TimeoutError."""
        assert self._process.stdout is not None
        if not self._selector.select(seconds):
            raise TimeoutError
        text = self._process.stdout.readline()
        return json.loads(text) if text else None

    def how_it_ended(self) -> str:
        code = self._process.wait()
        name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return f"{name}\n{self._log.read()}"

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        self._selector.close()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._log.close()


def run(
    kind: str,
    seed: int = 0,
    *,
    seconds: float = float("inf"),
    cases: float = float("inf"),
    progress: Callable[[Result], None] = lambda result: None,
) -> Result:
    """Runs a kind's cases from number 0 on, for a time or up to a number of them.

    Args:
        kind: the name of a module of this package.
        seed: with the number, it decides each case.
        seconds, cases: when to stop.
        progress: called after each case.
    """
    result, end = Result(kind, seed), time.monotonic() + seconds
    while result.cases < cases and time.monotonic() < end:
        worker = _Worker(kind, seed, result.cases)
        try:
            _watch(worker, result, cases, end, progress)
        finally:
            worker.stop()
    return result


def _watch(worker: _Worker, result: Result, cases: float, end: float, progress: Callable[[Result], None]) -> None:
    """Until the process ends, a case takes too long, or there have been enough."""
    begun: int | None = None
    while result.cases < cases and (begun is not None or time.monotonic() < end):
        try:
            line = worker.line(START_SECONDS if begun is None else SECONDS)
        except TimeoutError:
            if begun is None:
                raise
            result.add(begun, "hang", f"more than {SECONDS:g} s")
            return progress(result)
        if line is None:
            if begun is not None:
                result.add(begun, "crash", worker.how_it_ended())
                progress(result)
            elif not result.cases:
                raise RuntimeError(f"the process of {result.kind} did not start: {worker.how_it_ended()}")
            return
        if "begin" in line:
            begun = line["begin"]
        else:
            result.add(line["end"], line["outcome"], line["detail"])
            begun = None
            progress(result)
