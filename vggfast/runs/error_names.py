"""What errors are called in the files of runs and evaluations: top1_error, in an older vggfast's files top1."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from vggfast.io import read_json

_OLD = re.compile(r"((?:train_|val_|best_)?top[15])(_interval)?")


def with_error_names(content: Any) -> Any:
    """What a file holds, with val_top1_error for an older file's val_top1, top5_error_interval for top5_interval."""
    if isinstance(content, dict):
        return {_today(name): with_error_names(value) for name, value in content.items()}
    return [with_error_names(each) for each in content] if isinstance(content, list) else content


def _today(name: str) -> str:
    match = _OLD.fullmatch(name)
    return f"{match[1]}_error{match[2] or ''}" if match else name


def read_results(path: Path) -> dict[str, Any]:
    """A run's metrics.json or an evaluation's results.json; empty where there is no such file.

    Raises:
        ValueError: it is no JSON object; the text names it.
    """
    return with_error_names(read_json(path))
