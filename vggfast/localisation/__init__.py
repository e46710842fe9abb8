"""Localisation, as in the paper's appendix A: a network that predicts boxes, dense boxes merged, both test protocols.

Training is that of :mod:`vggfast.training`, with ``predict`` set to "box" or "boxes". Importing this is light; a name
brings its module when it is first asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vggfast.localisation.boxes import centre_form, corner_form, iou, merge
    from vggfast.localisation.data import BoxSet, open_boxes
    from vggfast.localisation.evaluation import Error, Evaluation, centre_boxes, dense_boxes, evaluate

__all__ = [
    "BoxSet",
    "Error",
    "Evaluation",
    "centre_boxes",
    "centre_form",
    "corner_form",
    "dense_boxes",
    "evaluate",
    "iou",
    "merge",
    "open_boxes",
]

_HOME = {
    "boxes": ("centre_form", "corner_form", "iou", "merge"),
    "data": ("BoxSet", "open_boxes"),
    "evaluation": ("Error", "Evaluation", "centre_boxes", "dense_boxes", "evaluate"),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOME.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
