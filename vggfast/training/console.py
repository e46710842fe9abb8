"""Live progress: a bar on a terminal, a line now and then elsewhere; and tables."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

console = Console(highlight=False, soft_wrap=True, markup=False)


class Live:
    """Progress of `total` units, with a text beside the bar."""

    seconds_between_lines = 15.0

    def __init__(self, name: str, total: int, done: int = 0) -> None:
        self.name, self.total, self.done = name, total, done
        self._bar = Progress(
            TextColumn("{task.description}", markup=False), BarColumn(), TextColumn("{task.completed}/{task.total}"),
            TextColumn("{task.fields[text]}", markup=False), TimeElapsedColumn(), TimeRemainingColumn(),
            console=console, transient=True, disable=not console.is_terminal,
        )  # fmt: skip
        self._task = self._bar.add_task(name, total=total, completed=done, text="")
        self._last_line = time.monotonic()

    def __enter__(self) -> Live:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def to(self, done: int, text: str = "") -> None:
        self.done = done
        self._bar.update(self._task, completed=done, text=text)
        now = time.monotonic()
        if not console.is_terminal and now - self._last_line > self.seconds_between_lines:
            self._last_line = now
            console.print(f"{self.name} {done}/{self.total}  {text}")

    def line(self, text: str) -> None:
        console.print(text)


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    table = Table(title=title, title_justify="left")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right")
    for row in rows:
        table.add_row(*row)
    console.print(table)
