"""Circles among the files of csrc/: which include each other by #include "...". Prints them, and exits with 1."""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1] / "csrc"
_SUFFIXES = {".h", ".cpp", ".cu", ".cuh"}
_INCLUDE = re.compile(r'^\s*#\s*include\s+["<]([^">]+)[">]', re.MULTILINE)


def included(root: Path) -> dict[Path, list[Path]]:
    """By file below `root`, the files there that it includes: beside it, below `root`, or below `root`/include."""
    files = sorted(path for path in root.rglob("*") if path.suffix in _SUFFIXES)
    known = set(files)
    found = {}
    for file in files:
        names = _INCLUDE.findall(file.read_text(encoding="utf-8"))
        places = [[(folder / name).resolve() for folder in (file.parent, root, root / "include")] for name in names]
        found[file] = [next(path for path in each if path in known) for each in places if known & set(each)]
    return found


def circles(graph: dict[Path, list[Path]]) -> list[list[Path]]:
    """Circles, each as the files on its way, the first one again at its end; none twice."""
    done: set[Path] = set()
    found: list[list[Path]] = []

    def visit(file: Path, way: list[Path]) -> None:
        if file in way:
            found.append([*way[way.index(file) :], file])
        elif file not in done:
            for other in graph[file]:
                visit(other, [*way, file])
            done.add(file)

    for file in graph:
        visit(file, [])
    return found


def main(root: Path = ROOT) -> int:
    root = root.resolve()
    graph = included(root)
    found = circles(graph)
    for circle in found:
        print("include circle: " + " -> ".join(str(path.relative_to(root)) for path in circle))
    if not found:
        print(f"no include circles in {len(graph)} files")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:])))
