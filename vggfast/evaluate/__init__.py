"""The paper's evaluation: dense, multi-scale, multi-crop and both; several networks' answers as one; errors.

Nothing is imported before it is asked for, so that the command line can describe itself without torch's networks.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vggfast.evaluate.evaluator import MEMORY, PROTOCOLS, SCALES, Evaluator, ScoreMap
    from vggfast.evaluate.fusion import average, vote
    from vggfast.evaluate.metrics import (
        ClassRow,
        Reliability,
        errors,
        evaluate_dense,
        hits,
        interval,
        per_class,
        reliability,
    )
    from vggfast.evaluate.protocols import dense, multi_crop, posteriors, score_maps

__all__ = [
    "MEMORY",
    "PROTOCOLS",
    "SCALES",
    "ClassRow",
    "Evaluator",
    "Reliability",
    "ScoreMap",
    "average",
    "dense",
    "errors",
    "evaluate_dense",
    "hits",
    "interval",
    "multi_crop",
    "per_class",
    "posteriors",
    "reliability",
    "score_maps",
    "vote",
]

_HOME = {
    "evaluator": ("MEMORY", "PROTOCOLS", "SCALES", "Evaluator", "ScoreMap"),
    "fusion": ("average", "vote"),
    "metrics": ("ClassRow", "Reliability", "errors", "evaluate_dense", "hits", "interval", "per_class", "reliability"),
    "protocols": ("dense", "multi_crop", "posteriors", "score_maps"),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOME.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
