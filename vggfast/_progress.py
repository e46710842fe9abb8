"""How long functions tell how far they are. They print nothing themselves: who calls them may draw it."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """What a function of one stage calls, before anything is done and then after each step."""

    def __call__(self, done: int, total: int, text: str = "", /) -> object:
        """`done` of `total` units are done; `text` says more."""


class StageProgress(Protocol):
    """What a function of several stages calls; ``functools.partial(progress, stage)`` is a :class:`Progress`."""

    def __call__(self, stage: str, done: int, total: int, text: str = "", /) -> object:
        """`done` of `total` units of this stage are done; `text` says more."""


def silent(*_: object) -> None:
    """Shows nothing."""


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, such as 0:01:30."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
