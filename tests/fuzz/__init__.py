"""Fuzzers: random inputs for whatever vggfast reads or is called with; each is read rightly, or refused by name.

    python -m tests.fuzz                                 every kind, for ten minutes
    python -m tests.fuzz weights --minutes 5 --seed 1    one kind
    python -m tests.fuzz weights --seed 1 --case 123     one case again, in this process

A kind is a module with ``case(random, folder) -> bool``: it makes one input, hands it to vggfast by `harness.attempt`,
compares what was accepted with a reference, and says whether it was accepted. Cases run in a process of their own
(worker.py), which watch.py watches from outside: a crash, a hang or too much memory is counted, and the next case runs.
"""

from pathlib import Path

_PARTS = {
    "__init__",
    "__main__",
    "calls",
    "harness",
    "planted",
    "tensors",
    "test_harness",
    "test_smoke",
    "watch",
    "worker",
}
KINDS = tuple(sorted({path.stem for path in Path(__file__).parent.glob("*.py")} - _PARTS))
