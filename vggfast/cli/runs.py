"""What eval and predict read of a run."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_model(parser: argparse.ArgumentParser) -> None:
    """The option --model."""
    parser.add_argument("--model", metavar="FILE", type=Path, required=True,
                        help="a run's model.safetensors, or one of its checkpoints")  # fmt: skip


def load_run(path: Path) -> tuple[Any, dict[str, Any]]:
    """(network, its facts: classes, preprocessing, data and scales) of a file that training wrote.

    Raises:
        FileNotFoundError, ValueError: no such file, or none of a training run; the text names it.
    """
    from vggfast.weights import load_model

    model, facts = load_model(path)
    if missing := {"classes", "preprocessing", "data", "scales"} - facts.keys():
        raise ValueError(f"{path} has weights but no {', '.join(sorted(missing))}: a file of a training run is wanted")
    return model, facts
