"""What a run looks like: curves, confusion, contact sheets, the HTML report. Needs the extra ``vggfast[train]``.

Importing this is light, so that the command line can be; a name brings its module when it is first asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vggfast.report.confused import confusion, most_confused
    from vggfast.report.facts import environment
    from vggfast.report.figures import contact_sheet, curves
    from vggfast.report.html import write_report

__all__ = ["confusion", "contact_sheet", "curves", "environment", "most_confused", "write_report"]

_MODULES = {
    "confusion": "confused", "most_confused": "confused", "environment": "facts", "contact_sheet": "figures",
    "curves": "figures", "write_report": "html",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'vggfast.report' has no attribute {name!r}")
    return getattr(importlib.import_module(f"vggfast.report.{_MODULES[name]}"), name)
