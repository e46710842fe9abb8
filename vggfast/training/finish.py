"""Deprecated: the final evaluation of a run is :func:`vggfast.tasks.final_eval`."""

from vggfast._deprecated import renamed

__getattr__ = renamed(__name__, {"finish": "vggfast.tasks:final_eval"})
