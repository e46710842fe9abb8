"""The FC layers as convolutions over feature maps: one product for the places of many maps, within a memory budget."""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from vggfast import graph
from vggfast.engine import Engine

_MOST_ROWS = 1024  # of a product: more would gain nothing


class Piece(NamedTuple):
    """A rectangle of the places of one map, and the class scores there."""

    map: int  # its number
    top: int
    left: int
    scores: Tensor  # (height, width, classes), float32


class Head:
    """An engine of a network's head, run on every window of a map.

    Args:
        head: the FC layers; whether they are dense does not matter.
        memory: bytes for the windows that it reads, the engine's arena, and the scores.

    Attributes:
        size: cells along an axis of a window.
        classes: how many scores a window has.

    Raises:
        ValueError, TypeError: the engine has no such layer; the text names it.
    """

    def __init__(self, head: graph.Head, memory: int) -> None:
        self._engine = Engine(graph.Network((), replace(head, dense=False)), graph=False)
        weights = head.weights
        self.size = head.size
        self._channels = weights[0].shape[1] // head.size**2
        self.classes = weights[-1].shape[0]
        self._rows = bisect.bisect_right(range(1, _MOST_ROWS + 1), memory, key=self._bytes)

    @property
    def least(self) -> int:
        """The least memory that does."""
        return self._bytes(1)

    def places(self, height: int, width: int) -> tuple[int, int]:
        """Of the window on a map, down and across."""
        return height - self.size + 1, width - self.size + 1

    def __call__(self, maps: Sequence[Tensor]) -> Iterator[Piece]:
        """The scores of all maps (C, h, w), whose sizes may differ, in pieces. `memory` is at least `least`."""
        band: list[tuple[int, int, int, Tensor]] = []
        rows = 0
        for number, each in enumerate(maps):
            windows = each.unfold(1, self.size, 1).unfold(2, self.size, 1).permute(1, 2, 3, 4, 0)
            for top, left, height, width in rectangles(windows.shape[0], windows.shape[1], self._rows):
                if rows + height * width > self._rows:
                    yield from self._scores(band)
                    band, rows = [], 0
                band.append((number, top, left, windows[top : top + height, left : left + width]))
                rows += height * width
        if band:
            yield from self._scores(band)

    def _scores(self, band: Sequence[tuple[int, int, int, Tensor]]) -> Iterator[Piece]:
        """Of the windows (height, width, row, column, C) of each rectangle."""
        sizes = [windows.shape[:2] for *_, windows in band]
        counts = [height * width for height, width in sizes]
        first = band[0][-1]
        rows = torch.empty((sum(counts), *first.shape[2:]), dtype=torch.float32, device=first.device)
        for room, (*_, windows) in zip(rows.split(counts), band, strict=True):
            room.view(windows.shape).copy_(windows)
        scores = self._engine(rows.permute(0, 3, 1, 2)).split(counts)
        for (number, top, left, _), (height, width), each in zip(band, sizes, scores, strict=True):
            yield Piece(number, top, left, each.view(height, width, -1))

    def _bytes(self, rows: int) -> int:
        arena = self._engine.workspace(rows, self.size, self.size, self._channels)
        return arena + 4 * rows * (self._channels * self.size**2 + self.classes)


def rectangles(height: int, width: int, most: int) -> Iterator[tuple[int, int, int, int]]:
    """(top, left, height, width) of rectangles of at most `most` places that together are height x width."""
    across = min(width, most)
    down = max(most // across, 1) if across == width else 1
    for top in range(0, height, down):
        for left in range(0, width, across):
            yield top, left, min(down, height - top), min(across, width - left)
