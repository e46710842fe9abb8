"""What a run looks like: curves and contact sheets. Needs the extra ``vggfast[train]``."""

from vggfast.report.figures import contact_sheet, curves

__all__ = ["contact_sheet", "curves"]
