"""Checkpoints of a run: everything that its next step depends on.

A file is written beside its place and renamed, and its name carries the start of its SHA-256, so that a reader finds it
whole or knows that it is not. The newest ones are kept; the first that is whole, from the newest on, is where a run
resumes. Order of images, augmentation and dropout follow from (seed, epoch, step, rank), so that no generator's state
is in there.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from vggfast.io import sha256, write_atomically
from vggfast.runs.error_names import with_error_names

FORMAT = 2
_NAME = re.compile(r"step-(\d{8,})-([0-9a-f]{16})\.pt")


@dataclass
class Progress:
    """Where a run stands.

    Attributes:
        step: optimiser steps done.
        epoch: the epoch that the next step belongs to, from 0.
        batch: batches of it done.
        sums: of those batches: loss, images that count in the task's first and in its second error, images.
        seconds, waited: time that they took, and the part of it spent waiting for images.
        core_seconds: processors' time that they took, of all ranks and of workers that have ended.
        bad_images: images of them that did not decode.
        best_top1_error: lowest first error of a validation so far, per cent.
        epochs: a row per finished validation.
        window: as `sums`, since the last row of steps.csv.
        first_loss: the first mean training loss, of a row of steps.csv or of an epoch; 0 before it.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    sums: list[float] = field(default_factory=lambda: [0.0] * 4)
    seconds: float = 0.0
    waited: float = 0.0
    core_seconds: float = 0.0
    bad_images: int = 0
    best_top1_error: float = float("inf")
    epochs: list[dict[str, float]] = field(default_factory=list)
    window: list[float] = field(default_factory=lambda: [0.0] * 4)
    first_loss: float = 0.0


def _step(path: Path) -> int:
    return int(path.name.split("-")[1])


def _digest(path: Path) -> str:
    return sha256(path)[:16]


class Checkpoints:
    """The checkpoints in a folder.

    Args:
        folder: made when the first one is written.
        keep: how many of the newest stay.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder, self.keep = folder, keep

    def paths(self) -> list[Path]:
        """All that are there, the newest first."""
        found = [(int(match[1]), path.stat().st_mtime_ns, path) for path in self.folder.glob("step-*.pt")
                 if (match := _NAME.fullmatch(path.name))]  # fmt: skip
        return [path for *_, path in sorted(found, reverse=True)]

    def save(self, step: int, content: dict[str, Any]) -> None:
        """Writes one and removes those that are too many, and those of this step and later: the run went back.

        Raises:
            OSError: it could not be written; the text names the path. The others are still there.
        """
        new = ""

        def rename(temporary: Path) -> str:
            nonlocal new
            new = f"step-{step:08d}-{_digest(temporary)}.pt"
            return new

        write_atomically(
            self.folder / f"step-{step:08d}.pt",
            lambda temporary: torch.save({"format": FORMAT, **content}, temporary),
            rename,
        )
        others = [path for path in self.paths() if path.name != new]
        kept = [path for path in others if _step(path) < step][: self.keep - 1]
        for path in others:
            if path not in kept:
                path.unlink(missing_ok=True)

    def newest(self, warn: Callable[[str], Any]) -> dict[str, Any] | None:
        """The content of the newest whole checkpoint, None where there is none at all; `warn` hears of broken ones.

        Raises:
            ValueError: there are some, and none is whole.
        """
        paths = self.paths()
        for path in paths:
            try:
                return _load(path)
            except (ValueError, OSError) as error:
                warn(str(error))
        if paths:
            raise ValueError(f"{self.folder} has {len(paths)} checkpoints and none is whole: nothing to resume from")
        return None


def _load(path: Path) -> dict[str, Any]:
    match = _NAME.fullmatch(path.name)
    if match is None or _digest(path) != match[2]:
        raise ValueError(f"{path} is damaged: its checksum is not the one in its name")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, KeyError) as error:
        raise ValueError(f"{path} is not a checkpoint that can be read: {error}") from error
    if content.get("format") != FORMAT:
        raise ValueError(f"{path} must be a checkpoint of format {FORMAT}, got {content.get('format')}")
    return {name: with_error_names(value) if name == "progress" else value for name, value in content.items()}
