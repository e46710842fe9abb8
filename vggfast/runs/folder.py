"""What belongs to a run in its folder: taken away when a run is overwritten, and after a kill."""

from __future__ import annotations

import shutil
from pathlib import Path

_FOLDERS = ("checkpoints", "tensorboard")
_FILES = (
    "model.safetensors", "steps.csv", "metrics.csv", "log.jsonl", "metrics.json", "report.html", "curves.png",
    "predictions.png", "confusion.png", "config.yaml",
)  # fmt: skip


def remove_run(out: Path) -> None:
    """Takes a run away, and leaves whatever else the folder holds.

    Checkpoints go first and config.yaml last, so that no kill leaves them to a new run.
    """
    for folder in (out / name for name in _FOLDERS):
        if folder.exists():
            shutil.rmtree(folder)
    for name in _FILES:
        (out / name).unlink(missing_ok=True)


def remove_unfinished(out: Path) -> None:
    """Takes away the temporary files that :func:`vggfast.io.write_atomically` left when the process was killed."""
    for path in (*out.glob(".*.??*"), *(out / "checkpoints").glob(".step-*")):
        if path.name.startswith((".step-", *(f".{name}." for name in _FILES))):
            path.unlink(missing_ok=True)
