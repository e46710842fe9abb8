"""How a picture too large for the memory at hand is cut, so that its feature map comes out as if it were whole.

A cell of the map of a trunk with `stride` (32: five pools) sees its own stride x stride pixels and `reach` more on each
side. A tile reads whole strides around its cells, at least `reach` pixels, so that its pools stay aligned and what the
padding at its cut edges spoils lies outside of its cells; it ends where the picture does, and nowhere else is padded.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple


class Span(NamedTuple):
    """Of a tile, along one axis: it makes the cells [first, end) of the map from the pixels [top, bottom)."""

    first: int
    end: int
    top: int
    bottom: int


def spans(extent: int, parts: int, reach: int, stride: int) -> list[Span]:
    """`extent` pixels in `parts` tiles of equal cells, give or take one.

    Args:
        extent: pixels; what is left after whole strides makes no cell, but is seen by the last ones.
        parts: 1 to extent // stride.
    """
    cells, margin = extent // stride, -(-reach // stride)
    cuts = [part * cells // parts for part in range(parts + 1)]
    return [
        Span(first, end, max(first - margin, 0) * stride, extent if end + margin >= cells else (end + margin) * stride)
        for first, end in pairwise(cuts)
    ]


def longest(cut: list[Span]) -> int:
    """Pixels of the longest tile."""
    return max(span.bottom - span.top for span in cut)


def choose(
    height: int, width: int, reach: int, stride: int, fits: Callable[[int, int], bool]
) -> tuple[list[Span], list[Span]] | None:
    """(spans down, spans across) of the tiles that read the fewest pixels in all, among those that fit; or None.

    Args:
        fits: whether a tile of this height and width does; so does, then, any smaller one.
    """
    best, fewest = None, 0
    ways_across = [spans(width, parts, reach, stride) for parts in range(1, width // stride + 1)]
    widths = sorted({longest(across) for across in ways_across})
    for rows in range(1, height // stride + 1):
        down = spans(height, rows, reach, stride)
        tall = longest(down)
        fitting = bisect.bisect_left(widths, True, key=lambda wide: not fits(tall, wide))
        if fitting == 0:
            continue
        across = next(across for across in ways_across if longest(across) <= widths[fitting - 1])
        read = sum(s.bottom - s.top for s in down) * sum(s.bottom - s.top for s in across)
        if best is None or read < fewest:
            best, fewest = (down, across), read
        if len(across) == 1:
            break  # more rows would read more
    return best
