#!/usr/bin/env python3
"""What a GPU session comes to, in at most ten lines: built, right, fastest, where it loses.

usage: gpu_verdict.py FOLDER CARD, the folder of scripts/gpu_session.sh and what its result files call the GPU. A stage
that did not run is said to be unknown; ratios are a peer's median time over ours, above 1 where ours is faster.
"""

from __future__ import annotations

import json
import re
import statistics
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

SHOWN = 3  # of the layers where a peer is faster


def rows(folder: Path, name: str) -> list[dict[str, Any]]:
    path = folder / "results" / name
    return json.loads(path.read_text())["rows"] if path.exists() else []


def built(folder: Path) -> str:
    code = folder / "build.code"
    if not code.exists():
        return "built: unknown"
    return "built: yes" if code.read_text().strip() == "0" else f"built: no, {last_line(folder / 'build.log')}"


def last_line(path: Path) -> str:
    lines = [line for line in path.read_text().splitlines() if line.strip()] if path.exists() else []
    return lines[-1][:100] if lines else "nothing was printed"


def right(folder: Path) -> str:
    said = []
    for stage in ("quick_tests", "tests", "memcheck"):
        if (folder / f"{stage}.code").exists():
            log = (folder / f"{stage}.log").read_text()
            counts = re.findall(r"\d+ (?:passed|failed|errors?)\b", log.splitlines()[-1] if log.strip() else "")
            said.append(f"{stage} {', '.join(counts) or last_line(folder / f'{stage}.log')}")
    return f"right: {'; '.join(said) or 'unknown'}"


def best_peer(seconds: Mapping[str, float]) -> tuple[str, float] | None:
    """(name, its time over ours) of the fastest peer of "vggfast"; None where either is missing."""
    peers = {name: each for name, each in seconds.items() if not name.startswith("vggfast")}
    if "vggfast" not in seconds or not peers:
        return None
    name = min(peers, key=peers.__getitem__)
    return name, peers[name] / seconds["vggfast"]


def layers(found: Iterable[Mapping[str, Any]]) -> list[str]:
    """Of the convolutions: how many are faster than the best peer, a line a pass; then where a peer is."""
    lines, lost = [], []
    by_pass: dict[str, list[float]] = {}
    for row in found:
        if (best := best_peer({name: statistics.median(each) for name, each in row["seconds"].items()})) is not None:
            by_pass.setdefault(row["which"], []).append(best[1])
            if best[1] < 1:
                lost.append((best[1], f"{row['which']} {row['title']} {best[1]:.2f} of {best[0]}"))
    for which, ratios in by_pass.items():
        faster = sum(ratio >= 1 for ratio in ratios)
        median = statistics.median(ratios)
        lines.append(f"{which}: faster than the best peer in {faster} of {len(ratios)} layers, median {median:.2f}x")
    if lines:
        lines.append("loses: " + ("; ".join(text for _, text in sorted(lost)[:SHOWN]) or "nowhere"))
    return lines


def networks(found: Iterable[Mapping[str, Any]], what: str) -> list[str]:
    """A line for whole networks: at each batch the ratio to the best peer."""
    cases: dict[str, dict[str, float]] = {}
    for row in found:
        if row["seconds"]:
            # A race in several groups has ours in each: a peer is compared within its own.
            cases.setdefault(row["what"], {})[row["engine"]] = statistics.median(row["seconds"])
    best: dict[str, tuple[str, float]] = {}
    for title, seconds in cases.items():
        name = re.sub(r", \d+ of \d+$", "", title)
        if (peer := best_peer(seconds)) is not None and (name not in best or peer[1] < best[name][1]):
            best[name] = peer
    if not best:
        return []
    return [f"{what}: " + "; ".join(f"{name}: {ratio:.2f}x {peer}" for name, (peer, ratio) in best.items())]


def verdict(folder: Path, card: str) -> list[str]:
    convolutions = [row for row in rows(folder, f"conv-{card}.json") if row["which"] != "others"]
    lines = [built(folder), right(folder), *layers(convolutions)]
    lines += networks(rows(folder, f"model-{card}.json"), "forward")
    lines += networks(rows(folder, f"train-{card}.json"), "step")
    measured = {"layers": len(convolutions), **{name: len(rows(folder, f"{name}-{card}.json")) for name in
                                                 ("model", "train", "memory", "tune")}}  # fmt: skip
    missing = [name for name, count in measured.items() if not count]
    return [*lines, f"unknown: {', '.join(missing)}"] if missing else lines


if __name__ == "__main__":
    print("\n".join(["", *verdict(Path(sys.argv[1]), sys.argv[2])]))
