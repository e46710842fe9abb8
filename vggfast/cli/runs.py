"""What eval and predict read of a run."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_model(parser: argparse.ArgumentParser) -> None:
    """The option --model."""
    parser.add_argument("--model", metavar="FILE", type=Path, required=True,
                        help="a run's model.safetensors, or one of its checkpoints")  # fmt: skip


def load_run(path: Path, boxes: bool = False) -> tuple[Any, dict[str, Any]]:
    """(network, its facts: classes, preprocessing, data and scales) of a file that training wrote.

    Args:
        path: of the file.
        boxes: a network that predicts boxes is wanted; its facts have predict and mean_box too.

    Raises:
        FileNotFoundError, ValueError: no such file, none of a training run, or one that predicts something else; the
            text names it.
    """
    from vggfast.weights import load_model

    model, facts = load_model(path)
    if missing := {"classes", "preprocessing", "data", "scales"} - facts.keys():
        raise ValueError(f"{path} has weights but no {', '.join(sorted(missing))}: a file of a training run is wanted")
    if ("predict" in facts) is not boxes:
        kinds = ("classes", "boxes (vggfast train --predict boxes)")
        raise ValueError(
            f"{path} has a network that predicts {facts.get('predict', 'classes')!r}: one of {kinds[boxes]} is wanted"
        )
    return model, facts
