"""What the final evaluation of a run gives, whatever its task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class FinalEval:
    """The closing table of a run, in words.

    Attributes:
        title, columns, rows: the table.
        files: what was written into the run's folder, and what each file holds.
        problems: which files could not be written, and why.
    """

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    files: dict[Path, str]
    problems: Sequence[str] = ()
