"""What is printed and written of a table: measured figures beside the paper's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vggfast.io import write_atomically, write_json


@dataclass(frozen=True)
class Figure:
    """A measured value beside the paper's, or whose table it is, in per cent.

    Attributes:
        paper: the paper's, None where it has none; paper_deviation: its deviation, where it has one.
        measured: None where it could not be.
        spread: (low, high) of the 95 % interval, or (deviation,) over splits, or ().
    """

    paper: float | None
    measured: float | None = None
    spread: tuple[float, ...] = ()
    paper_deviation: float | None = None

    def texts(self) -> tuple[str, str]:
        """(measured, the paper's)."""
        paper = "" if self.paper is None else f"{self.paper:.1f}"
        paper += "" if self.paper_deviation is None else f" ± {self.paper_deviation:.1f}"
        if self.measured is None:
            return "-", paper
        spread = {0: "", 1: " ± {:.1f}", 2: " ({:.1f}-{:.1f})"}[len(self.spread)].format(*self.spread)
        return f"{self.measured:.1f}{spread}", paper


@dataclass(frozen=True)
class Line:
    """A row: what it is of, its figures, and why these were not measured."""

    labels: tuple[str, ...]
    figures: tuple[Figure, ...]
    why: str = ""


@dataclass
class Result:
    """A table.

    Attributes:
        name: as on the command line.
        title: what it is, and of what data.
        columns: of the labels.
        figures: what the figures are; each has a column measured here, and the paper's.
        notes: what has to be known to read it.
        metadata: what else goes into the JSON.
        reference: whose figures the measured ones stand beside.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    figures: tuple[str, ...]
    lines: Sequence[Line]
    notes: list[str] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)
    reference: str = "paper"

    @property
    def _header(self) -> list[str]:
        return [*self.columns, *(text for name in self.figures for text in (name, self.reference))]

    def _cells(self, line: Line) -> list[str]:
        texts = [text for figure in line.figures for text in figure.texts()]
        if line.why:
            texts[0] = "not run"
        return [*line.labels, *texts]

    def remarks(self) -> list[str]:
        """Why lines were not run, then the notes."""
        return [f"not run: {' '.join(filter(None, line.labels))}: {line.why}" for line in self.lines if line.why] + [
            *self.notes
        ]

    def table(self) -> tuple[str, list[str], list[list[str]]]:
        """(title, columns, rows), in words."""
        return self.title, self._header, [self._cells(line) for line in self.lines]

    def markdown(self) -> str:
        title, header, cells = self.table()
        rows = [header, ["---"] * len(header), *cells]
        table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
        return f"# {title}\n\n{table}\n\n" + "".join(f"- {text}\n" for text in self.remarks())

    def content(self) -> dict[str, Any]:
        rows = [
            {
                **dict(zip(self.columns, line.labels, strict=True)), "not_run": line.why or None,
                "figures": {
                    name: {"measured": figure.measured, "spread": list(figure.spread),
                           self.reference: figure.paper, f"{self.reference}_deviation": figure.paper_deviation}
                    for name, figure in zip(self.figures, line.figures, strict=True)
                },
            }
            for line in self.lines
        ]  # fmt: skip
        return {"table": self.name, "title": self.title, **self.metadata, "rows": rows, "notes": self.notes}

    def write(self, out: Path) -> None:
        """<name>.json and <name>.md in a folder."""
        write_json(out / f"{self.name}.json", self.content())
        text = self.markdown()
        write_atomically(out / f"{self.name}.md", lambda temporary: temporary.write_text(text, encoding="utf-8"))
