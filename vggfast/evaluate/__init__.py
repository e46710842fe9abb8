"""The paper's evaluation: dense, multi-scale, multi-crop and both; several networks' answers as one; errors;
whole data sets, resumable and shared by ranks.

Nothing is imported before it is asked for, so that the command line can describe itself without torch's networks.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from vggfast._deprecated import renamed

if TYPE_CHECKING:
    from vggfast.evaluate.dataset import Settings, evaluate_set
    from vggfast.evaluate.evaluation import Evaluation, Order, Predictions, evaluate_networks, predict_networks
    from vggfast.evaluate.evaluator import MEMORY, PROTOCOLS, SCALES, Evaluator, ScoreMap
    from vggfast.evaluate.fusion import average, vote
    from vggfast.evaluate.metrics import (
        ClassRow,
        Reliability,
        errors,
        hits,
        interval,
        per_class,
        reliability,
    )
    from vggfast.evaluate.networks import Network, open_networks
    from vggfast.evaluate.protocols import dense, multi_crop, posteriors, score_maps

__all__ = [
    "MEMORY",
    "PROTOCOLS",
    "SCALES",
    "ClassRow",
    "Evaluation",
    "Evaluator",
    "Network",
    "Order",
    "Predictions",
    "Reliability",
    "ScoreMap",
    "Settings",
    "average",
    "dense",
    "errors",
    "evaluate_networks",
    "evaluate_set",
    "hits",
    "interval",
    "multi_crop",
    "open_networks",
    "per_class",
    "posteriors",
    "predict_networks",
    "reliability",
    "score_maps",
    "vote",
]

_HOME = {
    "dataset": ("Settings", "evaluate_set"),
    "evaluation": ("Evaluation", "Order", "Predictions", "evaluate_networks", "predict_networks"),
    "evaluator": ("MEMORY", "PROTOCOLS", "SCALES", "Evaluator", "ScoreMap"),
    "fusion": ("average", "vote"),
    "metrics": ("ClassRow", "Reliability", "errors", "hits", "interval", "per_class", "reliability"),
    "networks": ("Network", "open_networks"),
    "protocols": ("dense", "multi_crop", "posteriors", "score_maps"),
}

_moved = renamed(
    __name__, {"extract": "vggfast.features:extract", "caltech_protocol": "vggfast.features:caltech_protocol"}
)


def __getattr__(name: str) -> Any:
    for module, names in _HOME.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    return _moved(name)
