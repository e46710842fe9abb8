"""The process that runs cases: ``python -m tests.fuzz.worker KIND SEED FIRST LOG``.

For each case it writes the lines {"begin": number} and {"end": number, "outcome": ..., "detail": ...} to its standard
output; whatever the cases themselves print goes nowhere. LOG gets Python's stack where the process dies.
"""

from __future__ import annotations

import faulthandler
import importlib
import itertools
import json
import os
import random
import resource
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

from tests.fuzz.harness import Different

MOST_MIB = 1024  # that a case may take beyond what the process had


def run_case(kind: str, seed: int, number: int) -> tuple[str, str]:
    """(outcome, what there is to say about it) of one case: "accepted", "refused", "different" or "traceback"."""
    case = importlib.import_module(f"tests.fuzz.{kind}").case
    with tempfile.TemporaryDirectory(prefix="vggfast-fuzz-") as folder:
        try:
            return "accepted" if case(random.Random(f"{kind} {seed} {number}"), Path(folder)) else "refused", ""
        except Different as error:
            return "different", str(error)
        except Exception:
            return "traceback", traceback.format_exc()


def _status(field: str) -> int:
    """A figure of /proc/self/status, in MiB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) >> 10


def main(kind: str, seed: str, first: str, log: str) -> None:
    out = os.fdopen(os.dup(1), "w")
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    importlib.import_module(f"tests.fuzz.{kind}")  # is no part of the first case
    with open(log, "w") as file:
        faulthandler.enable(file)
        for number in itertools.count(int(first)):
            _say(out, begin=number)
            Path("/proc/self/clear_refs").write_text("5")  # the most memory is counted anew
            before = _status("VmRSS")
            outcome, detail = run_case(kind, int(seed), number)
            children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10
            taken = max(_status("VmHWM") - before, children)
            if taken > MOST_MIB and outcome in ("accepted", "refused"):
                outcome, detail = "memory", f"{taken} MiB ({outcome})"
            _say(out, end=number, outcome=outcome, detail=detail)
            if outcome == "memory":
                return  # what children took is counted over the process' life


def _say(out: Any, **what: Any) -> None:
    out.write(json.dumps(what) + "\n")
    out.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
