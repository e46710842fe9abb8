#!/usr/bin/env python3
"""Whether the CUDA sources are those that `make resources` has checked, with this nvcc: then `make test` need not build
them again to find the same.

A digest of all that the kernels are built from, and of nvcc's version, is kept in csrc/cuda/checked.sha256. Without
--write the exit status is 1 where today's differs; --write keeps today's, and is for the end of `make resources`.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path

from kernel_resources import ROOT, nvcc_version

READ = ("CMakeLists.txt", "cmake", "csrc/core", "csrc/cuda", "csrc/include", "csrc/plan", "csrc/python",
        "scripts/kernel_resources.py", "scripts/stage_loops.py")  # fmt: skip
KEPT = Path("csrc/cuda/checked.sha256")


def digest(root: Path, nvcc: str) -> str:
    """Of the files' names and contents, in hexadecimal."""
    files = [path for name in READ for path in (root / name, *(root / name).rglob("*")) if path.is_file()]
    made = hashlib.sha256(nvcc.encode())
    for path in sorted(set(files) - {root / KEPT}):
        content = path.read_bytes()
        made.update(f"\n{path.relative_to(root)} {len(content)}\n".encode() + content)
    return made.hexdigest()


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="keep the digest of today's sources")
    options = parser.parse_args(arguments)
    nvcc, kept = nvcc_version(), root / KEPT
    now = digest(root, nvcc)
    if options.write:
        kept.write_text(now + "\n")
    same = kept.is_file() and kept.read_text().strip() == now
    how = "are those that `make resources` checked" if same else "are not those that `make resources` checked last"
    print(f"the CUDA sources {how} (nvcc {nvcc}, {KEPT})")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
