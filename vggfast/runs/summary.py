"""A run's files, and the figures that sum it up."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def summary(epochs: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """What the rows of vggfast.runs.log.EPOCH_COLUMNS add up to; empty without rows.

    Returns:
        "steps"; "epochs"; "train_seconds" and "core_seconds" (the processors', None where the log does not have it),
        without validation; "images_per_s" and "data_wait" (share of the time, 0 to 1) over all of them; "best", the
        row with the lowest validation top-1 error.
    """
    if not epochs:
        return {}
    # An epoch that was validated half-way, at the last step of a session, has a second row that includes the first.
    last = {row["epoch"]: row for row in epochs}.values()
    seconds = sum(row["seconds"] for row in last)
    cores = sum(row.get("core_seconds", math.nan) for row in last)

    def mean(name: str) -> float:
        return sum(row[name] * row["seconds"] for row in last) / max(seconds, 1e-9)

    return {
        "steps": epochs[-1]["step"], "epochs": epochs[-1]["epoch"] + 1, "train_seconds": seconds,
        "core_seconds": None if math.isnan(cores) else cores,
        "images_per_s": mean("images_per_s"), "data_wait": mean("data_wait"),
        "best": min(epochs, key=lambda row: row["val_top1_error"]),
    }  # fmt: skip


def read_events(path: Path) -> list[dict[str, Any]]:
    """The events of log.jsonl; none where there is no such file. A torn last line is left out.

    Raises:
        ValueError: a line is no JSON; the text names the file.
    """
    if not path.exists():
        return []
    with path.open(encoding="utf-8") as file:
        try:
            lines = [json.loads(line) for line in file if line.endswith("\n")]
        except ValueError as error:
            raise ValueError(f"{path} has a line that is no JSON: {error}") from error
    return [line for line in lines if isinstance(line, dict) and line.get("kind") == "event"]
