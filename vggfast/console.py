"""Live progress: a bar on a terminal, a line now and then elsewhere; and tables."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Sequence

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from vggfast._deprecated import renamed
from vggfast._progress import duration

console = Console(highlight=False, soft_wrap=True, markup=False)


def say(text: str | Table) -> None:
    """Prints a line or a table. A full disk behind ``vggfast train > out.txt`` stops nothing."""
    with contextlib.suppress(OSError):
        console.print(text)


class _Bar(Progress):
    """A bar over the text of its one task, which together fit 80 columns."""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        for task in self.tasks:
            yield Text(task.fields["text"], no_wrap=True, overflow="ellipsis")


class ProgressBar:
    """Progress of `total` units, with a text under the bar.

    Args:
        name: what goes on.
        total: units in all.
        done: those that an earlier session did.
        quiet: print nothing, as all ranks but the first.
    """

    seconds_between_lines = 15.0

    def __init__(self, name: str, total: int, done: int = 0, quiet: bool = False) -> None:
        self.name, self.total, self.done, self.quiet = name, total, done, quiet
        self._bar = _Bar(
            TextColumn("{task.description}", markup=False), BarColumn(), TextColumn("{task.completed}/{task.total}"),
            TimeElapsedColumn(), TextColumn("{task.fields[left]}"),
            console=console, transient=True, disable=quiet or not console.is_terminal,
        )  # fmt: skip
        self._task = self._bar.add_task(name, total=total, completed=done, text="", left="")
        self._first_done, self._began = done, time.monotonic()
        self._last_line = self._began

    def __enter__(self) -> ProgressBar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def to(self, done: int, text: str = "") -> None:
        """Shows that `done` units are done, with the lines of `text` under the bar."""
        self.done = done
        now = time.monotonic()
        left = self._left(now)
        self._bar.update(self._task, completed=done, text=text, left=left)
        if not self.quiet and not console.is_terminal and now - self._last_line > self.seconds_between_lines:
            self._last_line = now
            say("  ".join([f"{self.name} {done}/{self.total}", left, *text.splitlines()]).rstrip())

    def _left(self, now: float) -> str:
        """The time left, from the rate of this session alone."""
        done = self.done - self._first_done
        return f"ETA {duration((now - self._began) / done * (self.total - self.done))}" if done > 0 else "ETA -:--:--"

    def line(self, text: str) -> None:
        """Prints a line that stays."""
        if not self.quiet:
            say(text)


class ProgressBars:
    """A bar for each stage of a function in turn: a :class:`vggfast._progress.StageProgress` that draws.

    Args:
        quiet: print nothing, as all ranks but the first.
    """

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self._bar: ProgressBar | None = None

    def __enter__(self) -> ProgressBars:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def __call__(self, stage: str, done: int, total: int, text: str = "") -> None:
        if self._bar is None or self._bar.name != stage:
            self._end()
            self._bar = ProgressBar(stage, total, done, self.quiet).__enter__()
        self._bar.to(done, text)
        if done >= total:
            self._end()

    def _end(self) -> None:
        if self._bar is not None:
            self._bar.__exit__()
        self._bar = None

    def line(self, text: str) -> None:
        """Prints a line that stays."""
        if not self.quiet:
            say(text)


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    table = Table(title=title, title_justify="left")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    say(table)


__getattr__ = renamed(__name__, {"Live": "vggfast.console:ProgressBar"})
