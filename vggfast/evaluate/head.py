"""The FC layers as convolutions over feature maps: one product for the places of many maps, within a memory budget."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

_MOST_ROWS = 1024  # of a product: more would gain nothing


class Piece(NamedTuple):
    """A rectangle of the places of one map, and the class scores there."""

    map: int  # its number
    top: int
    left: int
    scores: Tensor  # (height, width, classes), float32


class Head:
    """`classifier` at every place of a window of `size` x `size` cells.

    Args:
        classifier: of FC layers, the first of which takes (C, row, column) of a window; in eval mode.
        memory: bytes for the rows that it reads, and what it makes of them.
    """

    def __init__(self, classifier: nn.Sequential, size: int, memory: int) -> None:
        self._classifier, self._size = classifier, size
        layers = [layer for layer in classifier if isinstance(layer, nn.Linear)]
        self.classes = layers[-1].out_features
        self.row_bytes = 4 * (layers[0].in_features + sum(layer.out_features for layer in layers))
        self._rows = min(memory // self.row_bytes, _MOST_ROWS)

    def places(self, height: int, width: int) -> tuple[int, int]:
        """Of the window on a map, down and across."""
        return height - self._size + 1, width - self._size + 1

    def __call__(self, maps: Sequence[Tensor]) -> Iterator[Piece]:
        """The scores of all maps (C, h, w), whose sizes may differ, in pieces."""
        band: list[tuple[int, int, int, Tensor]] = []
        rows = 0
        for number, each in enumerate(maps):
            windows = each.unfold(1, self._size, 1).unfold(2, self._size, 1).permute(1, 2, 0, 3, 4)
            for top, left, height, width in rectangles(windows.shape[0], windows.shape[1], self._rows):
                if rows + height * width > self._rows:
                    yield from self._scores(band)
                    band, rows = [], 0
                band.append((number, top, left, windows[top : top + height, left : left + width]))
                rows += height * width
        yield from self._scores(band)

    def _scores(self, band: Sequence[tuple[int, int, int, Tensor]]) -> Iterator[Piece]:
        if not band:
            return
        sizes = [windows.shape[:2] for *_, windows in band]
        counts = [height * width for height, width in sizes]
        first = band[0][-1]
        rows = torch.empty((sum(counts), first[0, 0].numel()), device=first.device)
        for room, (*_, windows) in zip(rows.split(counts), band, strict=True):
            room.view(windows.shape).copy_(windows)
        scores = self._classifier(rows).split(counts)
        for (number, top, left, _), (height, width), each in zip(band, sizes, scores, strict=True):
            yield Piece(number, top, left, each.view(height, width, -1))


def rectangles(height: int, width: int, most: int) -> Iterator[tuple[int, int, int, int]]:
    """(top, left, height, width) of rectangles of at most `most` places that together are height x width."""
    across = min(width, most)
    down = max(most // across, 1) if across == width else 1
    for top in range(0, height, down):
        for left in range(0, width, across):
            yield top, left, min(down, height - top), min(across, width - left)
