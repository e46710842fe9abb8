"""An evaluation of localisation as a table and as a dictionary for JSON."""

from __future__ import annotations

from typing import Any

from vggfast.localisation.evaluation import Error, Evaluation

_ROWS = {
    "true_class": "true class, centre crop", "true_class_mean_box": "true class, the mean box",
    "full": "five classes and boxes, dense", "full_mean_box": "five classes, the mean box",
    "classes": "five classes, any box",
}  # fmt: skip


def _errors(evaluation: Evaluation) -> dict[str, Error]:
    found = {name: getattr(evaluation, name) for name in _ROWS}
    return {name: error for name, error in found.items() if error is not None}


def as_dict(evaluation: Evaluation) -> dict[str, Any]:
    """For JSON: images, threshold, and by protocol the error in per cent with its 95 % interval."""
    return {
        "images": evaluation.n, "threshold": evaluation.threshold,
        "errors": {
            name: {"percent": error.percent, "interval": list(error.interval())}
            for name, error in _errors(evaluation).items()
        },
    }  # fmt: skip


def error_table(title: str, evaluation: Evaluation) -> tuple[str, tuple[str, ...], list[tuple[str, ...]]]:
    """(title, columns, rows) of an evaluation, in words."""
    rows: list[tuple[str, ...]] = []
    for name, error in _errors(evaluation).items():
        low, high = error.interval()
        rows.append((_ROWS[name], f"{error.percent:.2f}", f"{low:.2f} to {high:.2f}"))
    columns = (f"right: IoU > {evaluation.threshold:g}", "error %", "95 % interval")
    return f"{title}, {evaluation.n} images", columns, rows
