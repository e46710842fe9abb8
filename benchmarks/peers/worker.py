"""The child process of one engine: reads requests from standard input, a JSON line each, and answers likewise.

build: makes the engine. check: its relative error against a reference file. run: seconds per call over some calls,
and those of each call where the engine has a clock of its own.
It ends with its input. Whatever the engine prints goes to standard error.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import signal
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from peers.face import Runner
from peers.network import Spec, images, relative_error

WARM_UPS = 3  # calls before the first that counts, of an engine with a clock of its own


class Worker:
    def __init__(self) -> None:
        self.runner: Runner | None = None
        self.spec = Spec()
        self.images: Any = None
        self.warm = False

    def build(self, module: str, spec: dict[str, Any], cache: str, options: dict[str, Any]) -> dict[str, Any]:
        self.spec = Spec(**spec)
        began = time.perf_counter()
        self.runner = importlib.import_module(module).build(self.spec, Path(cache), **options)
        self.images = self.runner.prepare(images(self.spec))
        return {"seconds": time.perf_counter() - began}

    def check(self, reference: str) -> dict[str, Any]:
        """The answer's error and how long it took; the reference may have more images than ours, not fewer."""
        assert self.runner is not None
        exact = np.load(reference, mmap_mode="r")
        if self.runner.check:
            return {"error": relative_error(self.runner.check(), exact), "seconds": None}
        began = time.perf_counter()
        answer = self.runner.run(self.images)
        seconds = time.perf_counter() - began
        got = np.asarray(self.runner.result(answer))
        if self.runner.samples:  # what the host's clock saw was the start
            return {"error": relative_error(got[: len(exact)], exact[: self.spec.batch]), "seconds": None}
        return {"error": relative_error(got, exact[: self.spec.batch]), "seconds": seconds}

    def run(self, calls: int) -> dict[str, Any]:
        assert self.runner is not None
        if self.runner.samples:
            return self._timed_by_itself(calls)
        began = time.perf_counter()
        for _ in range(calls):
            self.runner.run(self.images)
        return {"seconds": (time.perf_counter() - began) / calls}

    def _timed_by_itself(self, calls: int) -> dict[str, Any]:
        assert self.runner is not None
        assert self.runner.samples is not None
        run, images = self.runner.run, self.images
        for _ in range(0 if self.warm else WARM_UPS):
            run(images)
        self.warm = True
        samples = self.runner.samples(lambda: run(images), calls)
        return {"seconds": statistics.median(samples), "samples": samples}


def serve(requests: Any, answers: Any) -> None:
    """Answers each request; a failure is an answer too, and its text fits on a line."""
    worker = Worker()
    for line in requests:
        request = json.loads(line)
        try:
            answer = {"ok": True, **getattr(worker, request.pop("do"))(**request)}
        except Exception as error:
            text = " ".join(str(error).split())
            answer = {"ok": False, "reason": f"{type(error).__name__}: {text}"[:300]}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def end_with_parent() -> None:
    """Has the kernel end this process with the one that started it: a stopped process sees no end of its input."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def main() -> None:
    end_with_parent()
    # Engines print to standard output, some of them from C: the pipe moves out of their way.
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)
        serve(sys.stdin, answers)


if __name__ == "__main__":
    main()
