"""What runs, evaluations and predictions look like: figures, heat maps, boxes, pages. Needs ``vggfast[train]``.

Importing this is light, so that the command line can be; a name brings its module when it is first asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from vggfast._deprecated import renamed

if TYPE_CHECKING:
    from vggfast.report.boxes import draw_boxes
    from vggfast.report.calibration import reliability_curve
    from vggfast.report.confused import confusion, most_confused
    from vggfast.report.evaluation import write_evaluation
    from vggfast.report.figures import contact_sheet, curves
    from vggfast.report.heatmap import class_probabilities, heat_map
    from vggfast.report.html import write_report
    from vggfast.report.sheet import write_sheet

__all__ = [
    "class_probabilities", "confusion", "contact_sheet", "curves", "draw_boxes", "heat_map",
    "most_confused", "reliability_curve", "write_evaluation", "write_report", "write_sheet",
]  # fmt: skip

_MODULES = {
    "draw_boxes": "boxes", "reliability_curve": "calibration", "confusion": "confused", "most_confused": "confused",
    "write_evaluation": "evaluation", "contact_sheet": "figures", "curves": "figures",
    "class_probabilities": "heatmap", "heat_map": "heatmap", "write_report": "html", "write_sheet": "sheet",
}  # fmt: skip

_moved = renamed(__name__, {"environment": "vggfast.environment:environment"})


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        return _moved(name)
    return getattr(importlib.import_module(f"vggfast.report.{_MODULES[name]}"), name)
