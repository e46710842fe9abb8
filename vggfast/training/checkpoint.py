"""Checkpoints of a run: everything that its next step depends on, in one file that is replaced whole."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from vggfast.weights.files import write_atomically

_FORMAT = 1


@dataclass
class Progress:
    """Where a run stands.

    Attributes:
        step: optimiser steps done.
        epoch: the epoch that the next step belongs to, from 0.
        batch: batches of it done.
        epoch_loss, epoch_seconds: sum of the losses, and time, of those batches.
        best_top1: lowest validation top-1 error so far, per cent.
        epochs: a row per finished validation.
        window: losses since the last row of steps.csv.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    epoch_loss: float = 0.0
    epoch_seconds: float = 0.0
    best_top1: float = float("inf")
    epochs: list[dict[str, float]] = field(default_factory=list)
    window: list[float] = field(default_factory=list)


def save(path: Path, model: Any, optimiser: Any, schedule: Any, progress: Progress, run: dict[str, Any]) -> None:
    """Writes a checkpoint. `run` is what `predict` and `eval` need: classes, preprocessing, scales."""
    content = {
        "format": _FORMAT,
        "arguments": {**model.arguments, "extra": run},
        "model": model.state_dict(),
        "optimiser": optimiser.state_dict(),
        "schedule": schedule.state_dict(),
        "progress": dict(progress.__dict__),
        "rng": torch.get_rng_state(),
    }
    write_atomically(path, lambda temporary: torch.save(content, temporary))


def restore(path: Path, model: Any, optimiser: Any, schedule: Any) -> Progress:
    """Puts a run back to where `save` found it.

    Raises:
        FileNotFoundError, ValueError: no such file, not a checkpoint, or one of another network; the text names it.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not there, so there is no run to resume")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(content, dict) or "format" not in content:
            raise ValueError(f"{path} is not a checkpoint of a run: a file that training wrote is wanted")
        if content["format"] != _FORMAT:
            raise ValueError(f"{path} is a checkpoint of format {content['format']}: {_FORMAT} is wanted")
        saved = {name: value for name, value in content["arguments"].items() if name != "extra"}
        if saved != model.arguments:
            different = [name for name in saved if saved[name] != model.arguments.get(name)]
            raise ValueError(
                f"{path} is of another network: "
                + ", ".join(
                    f"{name} is {saved[name]!r} there and {model.arguments.get(name)!r} here" for name in different
                )
            )
        model.load_state_dict(content["model"])
        optimiser.load_state_dict(content["optimiser"])
        schedule.load_state_dict(content["schedule"])
        torch.set_rng_state(content["rng"])
        return Progress(**content["progress"])
    except (RuntimeError, pickle.UnpicklingError, EOFError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a checkpoint of this run that can be read: {error}") from error
