"""What an engine's arena on the CPU takes at most: csrc/engine/plan.cpp again, but for the scratch memory of kernels,
which is bounded for every instruction set at once."""

from __future__ import annotations

import math
from collections.abc import Sequence

from vggfast.engine._layers import Conv, Layer, Linear
from vggfast.engine._plan import Shape, fuse, shape_after

_GROUP_BYTES = 60 << 20  # of plan.cpp: what passes between the steps of one group of images
_LANES = 16  # of the widest vectors
_HUGE_PAGE = 2 << 20
_STEM_PRODUCTS = 8 << 10  # floats of a thread, of stem.cpp
# Of winograd.cpp: floats of a task in cache, the least tiles of a task, weights from which all output channels go
# together, else so many vectors of them.
_CACHE_VALUES, _LEAST_TILES, _LARGE_VALUES, _SOME_BLOCKS = 160 << 10, 48, 6 << 20, 8


def cpu_workspace(
    layers: Sequence[Layer], algorithms: Sequence[str], shape: Shape, threads: int, value_bytes: int = 4
) -> int:
    """Bytes of the arena for images of `shape` (N, C, H, W), at most.

    Args:
        layers: up to the one that is wanted; of their weights, the shapes are read.
        algorithms: what the core says, one for each convolution.
        value_bytes: of an activation.
    """
    images = shape[0]
    steps: list[tuple[Layer, str, Shape, Shape]] = []  # layer, algorithm, input, output
    names = iter(algorithms)
    whole, inner = [value_bytes * _values(shape), 0], [0, 0]
    scratch = 0
    for run in fuse(layers, [len(layers) - 1]):
        name = next(names) if isinstance(layers[run.first], Conv) else ""
        parts = [(run.first, run.last)]
        if run.pool and name == "1x1":  # the pool is a step of its own
            parts = [(run.first, run.last - 1), (run.last, run.last)]
        for first, last in parts:
            before = shape
            for each in layers[first : last + 1]:
                shape = shape_after(each, shape, images)
            steps.append((layers[first], name, before, shape))
    stages = _stages([(before, after) for _, _, before, after in steps], images, value_bytes)
    for number, (begin, end, group) in enumerate(stages):
        for s in range(begin, end):
            layer, name, before, after = steps[s]
            value = 4 if _is_rows(after) else value_bytes
            if s + 1 == end:
                whole[(number + 1) % 2] = max(whole[(number + 1) % 2], value * _values(after))
            else:
                inner[(s - begin) % 2] = max(inner[(s - begin) % 2], value * _values(after) // images * group)
            if not _is_rows(after):
                before, after = (group, *before[1:]), (group, *after[1:])
            scratch = max(scratch, _scratch(layer, name, before, after, threads))
    return sum(whole) + sum(inner) + 4 * scratch + _HUGE_PAGE


def _values(shape: Shape) -> int:
    return math.prod(shape)


def _is_rows(shape: Shape) -> bool:
    return len(shape) == 2


def _stages(steps: Sequence[tuple[Shape, Shape]], images: int, value_bytes: int) -> list[tuple[int, int, int]]:
    """(first step, end, images of a group): a stage ends with each change of resolution, and with each step of rows."""
    stages: list[tuple[int, int, int]] = []
    for i, (before, after) in enumerate(steps):
        moved = (_values(before) + _values(after)) // images * value_bytes
        group = images if _is_rows(after) else min(max(_GROUP_BYTES // max(moved, 1), 1), images)
        if i == 0 or _is_rows(after) or before[2] != steps[i - 1][0][2]:
            stages.append((i, i + 1, group))
        else:
            begin, _, least = stages[-1]
            stages[-1] = (begin, i + 1, min(least, group))
    return stages


def _scratch(layer: Layer, algorithm: str, before: Shape, after: Shape, threads: int) -> int:
    """Floats of scratch memory, at most."""
    if isinstance(layer, Conv) and layer.weight.shape[1:] == (3, 3, 3) and algorithm == "direct":
        return threads * (4 * (before[3] + 2) * 3 + _STEM_PRODUCTS)
    if not isinstance(layer, Conv | Linear) or algorithm == "direct":
        return 2 * (max(_values(before), _values(after)) + _LANES)
    m = 1 if isinstance(layer, Linear) or algorithm == "1x1" else int(algorithm.removeprefix("winograd"))
    points = 1 if m == 1 else (m + 2) ** 2
    cout, cin = layer.weight.shape[:2]
    cin_padded, cout_padded = (-(-channels // _LANES) * _LANES for channels in (cin, cout))
    tiles = before[0] if _is_rows(before) else before[0] * -(-before[2] // m) * -(-before[3] // m)
    of_task = min(tiles, max(2 * _LEAST_TILES, _CACHE_VALUES // (points * cin)))
    group = cout_padded if points * cin * cout_padded > _LARGE_VALUES else min(cout_padded, _SOME_BLOCKS * _LANES)
    by_tiles = threads * points * ((cin_padded + group) * of_task + 2 * _LANES)
    if threads == 1:
        return by_tiles
    shared = min(tiles, _LEAST_TILES * threads)  # few tiles: the threads share their transforms
    by_blocks = points * (shared * (cin_padded + cout_padded + 4 * _LANES * threads) + 2 * _LANES * (threads + 1))
    return max(by_tiles, by_blocks)
