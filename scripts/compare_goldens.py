#!/usr/bin/env python3
"""Compares what a GPU does with what the simulator takes it to do: two outputs of csrc/tests/cuda/dump_goldens.cu.

`make sim` builds the simulator's; scripts/gpu_session.sh brings a GPU's home. Lists named precision_* may differ: they
say how the hardware rounds sums, and are printed side by side. The exit status is 1 where any other list differs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SIMULATED = ROOT / "build" / "sim" / "csrc" / "sim" / "dump_goldens_sim"
MAY_DIFFER = "precision_"


def simulated() -> dict[str, list[float]]:
    """The simulator's answers."""
    if not SIMULATED.exists():
        sys.exit(f"compare_goldens: {SIMULATED} is not built: make sim")
    return json.loads(subprocess.run([SIMULATED], check=True, capture_output=True, text=True).stdout)


def differences(gpu: dict[str, list[float]], sim: dict[str, list[float]]) -> list[str]:
    """A line for each list that one lacks or that differs, but for those that may."""
    found = [
        f"{name}: the {'simulator' if name in gpu else 'GPU'} has no such list" for name in sorted(gpu.keys() ^ sim)
    ]
    for name in sorted(gpu.keys() & sim):
        if name.startswith(MAY_DIFFER) or gpu[name] == sim[name]:
            continue
        if len(gpu[name]) != len(sim[name]):
            found.append(f"{name}: {len(gpu[name])} values on the GPU, {len(sim[name])} simulated")
            continue
        wrong = [i for i, (a, b) in enumerate(zip(gpu[name], sim[name], strict=True)) if a != b]
        first = wrong[0]
        found.append(f"{name}: {len(wrong)} of {len(gpu[name])} values differ, the first at {first}: "
                     f"{gpu[name][first]:g} on the GPU, {sim[name][first]:g} simulated")  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gpu", type=Path, help="a GPU's output, JSON")
    parser.add_argument("--sim", type=Path, help="the simulator's (default: ask it now)")
    arguments = parser.parse_args()
    gpu = json.loads(arguments.gpu.read_text())
    sim = json.loads(arguments.sim.read_text()) if arguments.sim else simulated()
    for name in sorted(gpu.keys() & sim):
        if name.startswith(MAY_DIFFER):
            print(f"{name}, GPU:       {gpu[name]}\n{name}, simulated: {sim[name]}")
    found = differences(gpu, sim)
    print("\n".join(found) or f"{len(gpu)} lists are equal")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
