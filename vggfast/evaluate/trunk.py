"""The convolutional layers on pictures of any size, within a budget of memory: in batches, or tile by tile."""

from __future__ import annotations

import bisect
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from vggfast.engine import Engine
from vggfast.evaluate.images import View
from vggfast.evaluate.tiles import Span, choose, longest, spans
from vggfast.graph import Network, geometry

_MOST_VIEWS = 64  # of a batch: more would gain nothing
_PREPARING = 15  # floats of a pixel that come and go while a view of it is made


class Trunk:
    """An engine of a network's convolutional layers, and the memory that it may take.

    Args:
        network: the layers; its head is left out.
        memory: bytes for the engine's arena, its input and its output.

    Raises:
        ValueError, TypeError: the engine has no such layer; the text names it.
    """

    def __init__(self, network: Network, memory: int) -> None:
        self._engine = Engine(replace(network, head=None), graph=False)
        self._memory = memory
        self._device = network.device
        seen = geometry(network.trunk)
        self.in_channels, self._channels = seen.in_channels, seen.out_channels
        self.stride, self._reach = seen.stride, seen.reach
        self._batches: dict[tuple[int, int], int] = {}
        self._tiles: dict[tuple[int, int], tuple[list[Span], list[Span]]] = {}

    def map_bytes(self, height: int, width: int) -> int:
        """Of the map of a view of this size."""
        return 4 * self._channels * (height // self.stride) * (width // self.stride)

    def least(self, height: int, width: int) -> int:
        """The least memory that does for a view of this size, in tiles of one cell."""
        down, across = (longest(spans(e, e // self.stride, self._reach, self.stride)) for e in (height, width))
        return self._bytes(1, down, across)

    def maps(self, views: Sequence[View]) -> list[Tensor]:
        """The map (C, height // stride, width // stride) of each view, float32, on the model's device.

        `memory` is at least what `least` says of each.
        """
        by_size = defaultdict(list)
        for number, view in enumerate(views):
            by_size[view.height, view.width].append(number)
        made: dict[int, Tensor] = {}
        for size, numbers in by_size.items():
            most = self._batch(size)
            if most == 0:
                made.update((number, self._in_tiles(views[number])) for number in numbers)
                continue
            for begin in range(0, len(numbers), most):
                part = numbers[begin : begin + most]
                maps = self._run([views[number] for number in part], 0, 0, *size)
                made.update(zip(part, maps, strict=True))
        return [made[number] for number in range(len(views))]

    def _in_tiles(self, view: View) -> Tensor:
        size = view.height, view.width
        if size not in self._tiles:
            tiles = choose(*size, self._reach, self.stride, lambda *tile: self._bytes(1, *tile) <= self._memory)
            assert tiles is not None
            self._tiles[size] = tiles
        cells = (view.height // self.stride, view.width // self.stride, self._channels)
        stitched = torch.empty(cells, dtype=torch.float32, device=self._device).permute(2, 0, 1)
        down, across = self._tiles[size]
        for rows in down:
            for columns in across:
                made = self._run([view], rows.top, columns.top, rows.bottom - rows.top, columns.bottom - columns.top)[0]
                mine = [slice(s.first - s.top // self.stride, s.end - s.top // self.stride) for s in (rows, columns)]
                stitched[:, rows.first : rows.end, columns.first : columns.end] = made[:, mine[0], mine[1]]
        return stitched

    def _run(self, views: Sequence[View], top: int, left: int, height: int, width: int) -> Tensor:
        """The maps (N, C, h, w) of a part of each view, as if it were all."""
        shape = (len(views), self.in_channels, height, width)
        batch = torch.empty(shape, dtype=torch.float32, device=self._device, memory_format=torch.channels_last)
        for room, view in zip(batch, views, strict=True):
            room.copy_(view.part(top, left, height, width))
        made = self._engine.features(batch)
        assert isinstance(made, Tensor)
        return made

    def _batch(self, size: tuple[int, int]) -> int:
        """How many views of this size run together; 0 where not even one does."""
        if size not in self._batches:
            counts = range(1, _MOST_VIEWS + 1)
            self._batches[size] = bisect.bisect_right(counts, self._memory, key=lambda n: self._bytes(n, *size))
        return self._batches[size]

    def _bytes(self, count: int, height: int, width: int) -> int:
        arena = self._engine.workspace(count, height, width, self.in_channels)
        pixels = height * width * self.in_channels
        return arena + count * self.map_bytes(height, width) + 4 * pixels * count + _PREPARING * 4 * pixels
