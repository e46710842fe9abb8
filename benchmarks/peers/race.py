"""The parent: starts a process per engine, checks each answer, then lets them take turns under the clock."""

from __future__ import annotations

import json
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peers.load import Neighbours
from peers.network import Spec
from peers.registry import Engine

BUILD_LIMIT, CALL_LIMIT = 900.0, 600.0  # seconds; an engine that takes longer is ended and reported
SAMPLE_SECONDS = 0.1  # a sample is the mean over as many calls as fill this
FEWEST_ROUNDS = 3


class EngineError(Exception):
    """An engine that could not be had; the text says why."""


class Child:
    """An engine's process.

    It is stopped by a signal whenever it owes no answer: whatever its idle threads do, spinning included, nobody else
    pays for it, and each engine may wait between its layers as it does by default.
    """

    def __init__(self, engine: Engine, threads: int, isa: str, wait: str) -> None:
        self.errors = tempfile.TemporaryFile(mode="w+")  # noqa: SIM115 (open as long as the process is)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "peers.worker"], env=engine.environment(threads, isa, wait), cwd=engine.checkout,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True,
        )  # fmt: skip

    def ask(self, limit: float, **request: Any) -> dict[str, Any]:
        """The answer to a request.

        Raises:
            EngineError: the engine failed, died or took longer than `limit` seconds.
        """
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin is not None
        assert stdout is not None
        self.process.send_signal(signal.SIGCONT)
        try:
            stdin.write(json.dumps(request) + "\n")
            stdin.flush()
        except BrokenPipeError:
            raise EngineError(self._last_words()) from None
        if not select.select([stdout], [], [], limit)[0]:
            self.process.kill()
            raise EngineError(f"{request['do']} took longer than {limit:.0f} s")
        line = stdout.readline()
        if not line:
            raise EngineError(self._last_words())
        self.process.send_signal(signal.SIGSTOP)
        answer = json.loads(line)
        if not answer.pop("ok"):
            raise EngineError(answer["reason"])
        return answer

    def _last_words(self) -> str:
        code = self.process.wait()
        self.errors.seek(0)
        said = self.errors.read().split("\n")
        last = [line for line in said if line.strip()][-1:]
        return f"its process ended with status {code}" + "".join(f": {line.strip()[:200]}" for line in last)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe:
                pipe.close()
        self.errors.close()


@dataclass
class Outcome:
    """What became of an engine: `status` is "timed", "wrong" or "not available", and `reason` says why it is not."""

    engine: Engine
    status: str = "timed"
    reason: str = ""
    error: float | None = None
    build_seconds: float | None = None
    calls: int = 1
    samples: list[float] = field(default_factory=list)
    neighbours: Neighbours = field(default_factory=Neighbours)

    def as_row(self, spec: Spec, isa: str) -> dict[str, Any]:
        case = {**spec.as_dict(), "dtype": self.engine.dtype, "isa": isa}
        return {
            "engine": self.engine.name, "case": case, "status": self.status, "reason": self.reason,
            "relative_error": self.error, "build_seconds": self.build_seconds, "calls_per_sample": self.calls,
            "taken_by_others": self.neighbours.share, "seconds": self.samples,
        }  # fmt: skip


def race(
    engines: Sequence[Engine], spec: Spec, cache: Path, reference: Path, *, rounds: int, seconds: float = 90.0,
    isa: str = "best", wait: str = "own", builders: int = 2, say: Callable[[str], None] = lambda text: None,
) -> list[Outcome]:  # fmt: skip
    """Every engine's outcome. All are built and checked before any is timed; in each round each runs once, in turn.

    Args:
        rounds: samples of each engine; fewer, but at least 3, where they would take longer than `seconds`.
        builders: engines that build at a time, which is mostly reading and packing.
        say: is told what is going on.
    """
    outcomes = [Outcome(engine) for engine in engines]
    with ExitStack() as stack:
        children: dict[str, Child] = {}

        def start(outcome: Outcome) -> None:
            children[outcome.engine.name] = child = Child(outcome.engine, spec.threads, isa, wait)
            stack.callback(child.close)

        def build(outcome: Outcome) -> None:
            say(f"builds {outcome.engine.name}")
            _attempt(outcome, children, lambda: _build(outcome, children[outcome.engine.name], spec, cache))

        # Started by this thread, for a child ends with the thread that started it.
        for outcome in outcomes:
            _attempt(outcome, children, lambda o=outcome: start(o))
        with ThreadPoolExecutor(builders) as pool:
            list(pool.map(build, [outcome for outcome in outcomes if outcome.status == "timed"]))
        for outcome in outcomes:
            if outcome.status == "timed":
                say(f"checks {outcome.engine.name}")
                _attempt(outcome, children, lambda o=outcome: _check(o, children[o.engine.name], reference))
        _take_turns(outcomes, children, rounds, seconds, say)
    return outcomes


def _attempt(outcome: Outcome, children: dict[str, Child], step: Callable[[], None]) -> None:
    """Runs a step of an engine; one that fails is out, and the others go on with the memory it leaves."""
    try:
        step()
    except (EngineError, ValueError) as error:
        outcome.status, outcome.reason, outcome.samples = "not available", str(error), []
    if outcome.status != "timed" and outcome.engine.name in children:
        children[outcome.engine.name].close()


def _build(outcome: Outcome, child: Child, spec: Spec, cache: Path) -> None:
    engine = outcome.engine
    request = {**spec.as_dict(), "dtype": engine.dtype}
    answer = child.ask(BUILD_LIMIT, do="build", module=engine.module, spec=request, cache=str(cache),
                       options=dict(engine.options))  # fmt: skip
    outcome.build_seconds = answer["seconds"]


def _check(outcome: Outcome, child: Child, reference: Path) -> None:
    """Compares with float64; an engine that is not right is not timed."""
    answer = child.ask(BUILD_LIMIT, do="check", reference=str(reference))
    outcome.error = error = answer["error"]
    limit, alone = outcome.engine.error_limit, answer["seconds"]
    if not error <= limit:
        outcome.status, outcome.reason = "wrong", f"relative error must be at most {limit:.0e}, got {error:.1e}"
    else:
        # A first call is a slow one, which matters where it decides how many calls fill a sample.
        if alone is None or alone < 1:
            alone = child.ask(CALL_LIMIT, do="run", calls=1)["seconds"]
        outcome.calls = max(1, round(SAMPLE_SECONDS / alone))
        outcome.samples = [alone]


def _take_turns(
    outcomes: list[Outcome], children: dict[str, Child], rounds: int, seconds: float, say: Callable[[str], None]
) -> None:
    racing = [outcome for outcome in outcomes if outcome.status == "timed"]
    one_round = sum(outcome.samples[0] * outcome.calls for outcome in racing)
    for outcome in racing:
        outcome.samples = []
    rounds = min(rounds, max(FEWEST_ROUNDS, int(seconds / max(one_round, 1e-9))))
    for number in range(rounds):
        say(f"round {number + 1} of {rounds}")
        for outcome in racing:
            if outcome.status == "timed":
                _attempt(outcome, children, lambda o=outcome: _sample(o, children[o.engine.name]))


def _sample(outcome: Outcome, child: Child) -> None:
    outcome.neighbours.start(child.process.pid)
    answer = child.ask(CALL_LIMIT, do="run", calls=outcome.calls)
    outcome.samples += answer.get("samples", [answer["seconds"]])
    outcome.neighbours.stop(child.process.pid)
