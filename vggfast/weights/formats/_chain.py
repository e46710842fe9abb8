"""The layers of a file that says its graph, each with its place in a VGG: what the readers of such formats share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vggfast.preprocessing import Preprocessing
from vggfast.weights.formats._parts import Raw, named_by_place
from vggfast.weights.formats._roundings import Roundings
from vggfast.weights.formats._sequence import (
    AVERAGE,
    BATCH_NORM,
    BATCH_NORM_KINDS,
    CONV,
    EPSILON,
    FC,
    FLATTEN,
    LRN,
    LRN_SETTINGS,
    MAX_POOL,
    RELU,
    SOFTMAX,
    STAGES,
    Step,
    with_article,
)

_SHRINK = 32  # what the pools divide H and W by
_KNOWN = (AVERAGE, BATCH_NORM, CONV, FC, FLATTEN, LRN, MAX_POOL, RELU, SOFTMAX)

# Of a layer: by kind of ours, "weight", the file's name and the array.
Tensors = Mapping[str, tuple[str, np.ndarray]]


class Chain:
    """A network that a reader goes along, a call for each layer.

    A setting that no VGG has is a ValueError that names the layer. Behind the fifth pool it is kept as `stranger`
    instead, as whoever takes the convolutions alone does not mind.

    Args:
        path: the file, for errors.
        size: H and W of the input, where the file says them.
        fcs_alone: whether it has no convolutional layers, so that its first convolution is an FC layer.
        flat: whether its input is a row.

    Attributes:
        steps: the layers so far.
        tensors: by the file's name, what they have.
        stranger, dense, notes, roundings: as of :class:`Raw`.
    """

    def __init__(
        self, path: Path, size: tuple[int, int] | None = None, fcs_alone: bool = False, flat: bool = False
    ) -> None:
        self._path = path
        self.size = size
        self.steps: list[Step] = []
        self.tensors: dict[str, np.ndarray] = {}
        self.stranger = ""
        self.dense = False
        self.notes: list[str] = []
        self.roundings = Roundings()
        self._fcs_alone = fcs_alone
        self._strange = ""  # what is said of the first layer that no VGG has
        self._names: dict[tuple[str, str], str] = {}
        self._stage, self._index, self._fc = 1, 0, 0
        self._inputs = 0  # channels of the first convolution
        self._channels = 0  # of the last convolution
        self._window = 0  # extent of the first FC layer as a convolution; 0 where it is none
        self._flat, self._averaged = flat, False
        self._padding: tuple[str, list[int]] = ("", [0] * 4)

    @property
    def in_head(self) -> bool:
        """Whether what comes is no part of the convolutional layers."""
        return self._fcs_alone or self._stage > STAGES

    @property
    def has_begun(self) -> bool:
        return bool(self.steps) or any(self._padding[1])

    @property
    def has_fc(self) -> bool:
        return self._fc > 0

    def refuse(self, what: str) -> None:
        what = self._strange or what  # which is why what follows does not fit
        if not self.in_head:
            raise ValueError(f"{self._path}: {what}")
        self.stranger = self.stranger or what

    def expect(self, layer: str, **settings: tuple[Any, Any]) -> None:
        """Refuses a layer whose settings, (found, allowed) each, are others."""
        for name, (found, allowed) in settings.items():
            if found != allowed:
                return self.refuse(f"{layer} must have {name} {allowed}, got {found}")
        return None

    def add(self, layer: str, kind: str) -> None:
        """A layer of any kind; see :class:`Step`."""
        padding, self._padding = self._padding, ("", [0] * 4)
        if any(padding[1]):
            self.steps.append(Step(padding[0], "a padding"))
        if kind not in _KNOWN:
            self._strange = self._strange or f"{layer} is {kind}, which no VGG has there"
            if self.in_head:
                self.refuse(self._strange)
        try:
            if relu := self.roundings.enter(layer, kind):
                self.steps.append(Step(relu, RELU))
        except ValueError as error:
            self.refuse(str(error))
        self.steps.append(Step(layer, kind))

    def activation(self, layer: str, name: str) -> None:
        """ "linear", "relu", "softmax", or another."""
        if name != "linear":
            self.add(layer, {"relu": RELU, "softmax": SOFTMAX}.get(name) or with_article(f"{name} activation"))

    def pad(self, layer: str, pads: Sequence[int]) -> None:
        """Zeros around a map (top, bottom, left, right), which the next convolution may count as its own."""
        self._padding = (layer, [old + new for old, new in zip(self._padding[1], pads, strict=True)])

    def conv(
        self, layer: str, tensors: Tensors, shape: Sequence[int], *,
        strides: Sequence[int], pads: Sequence[int], dilation: Sequence[int], groups: int,
        scales: np.ndarray | None = None,
    ) -> None:  # fmt: skip
        """A convolution, or an FC layer kept as one.

        Args:
            layer: what errors call it.
            tensors: by kind, "weight" and "bias", the file's name and the array; a bias that is left out is zero.
            shape: of the weight as ours, (out, in, H, W).
            strides, dilation: (H, W).
            pads: (top, bottom, left, right).
            scales: of a weight of 8 bits, (out,).
        """
        pads = [own + before for own, before in zip(pads, self._padding[1], strict=True)]
        self._padding = ("", [0] * 4)
        height, width = shape[2:]
        named = f"{layer}, a {height}x{width} convolution,"
        if self.in_head:
            self._fc += 1
            place, kind, extents, expected = f"fc{self._fc}", FC, {(1, 1)}, [0] * 4
            if self._fc == 1:
                extents, self._window = {(height, height)}, height
            if self._flat:
                self.refuse(f"{layer} is a convolution of what is flat")
        else:
            self._index += 1
            self._inputs = self._inputs or shape[1]
            self._channels = shape[0]
            place, kind = f"conv{self._stage}_{self._index}", CONV
            extents, expected = {(1, 1), (3, 3)}, [height // 2] * 4
        if (height, width) not in extents:
            self.refuse(f"{named} must be one of {' or '.join(f'{h}x{w}' for h, w in sorted(extents))}")
        self.expect(
            named, pads=(pads, expected), strides=(list(strides), [1, 1]), dilation=(list(dilation), [1, 1]),
            groups=(groups, 1),
        )  # fmt: skip
        self._enter(place, layer, kind, tensors, shape[0], scales)

    def fc(
        self, layer: str, tensors: Tensors, inputs: int, outputs: int, flattens: bool = False,
        scales: np.ndarray | None = None,
    ) -> None:  # fmt: skip
        """An FC layer of a row; `tensors` and `scales` as of :meth:`conv`. `flattens`: it makes a row of a map."""
        self._fc += 1
        if self._fc == 1:
            self._check_inputs(layer, inputs)
        self._flat = self._flat or flattens
        if not self._flat:
            self.refuse(f"{layer} reads a map that is not flattened")
        self._enter(f"fc{self._fc}", layer, FC, tensors, outputs, scales)

    def _check_inputs(self, layer: str, inputs: int) -> None:
        """That the first FC layer reads the map of this input, or its mean, and a square one."""
        grid = self._grid()
        if grid is None:
            return
        if grid[0] != grid[1]:
            self.refuse(f"{layer} must read a square map, got {grid[0]}x{grid[1]}")
        elif self._channels and inputs != grid[0] * grid[1] * self._channels:
            self.refuse(
                f"{layer} must read {grid[0]}x{grid[1]} places of {self._channels} channels, got {inputs} inputs"
            )

    def _grid(self) -> tuple[int, int] | None:
        """H and W of the map that the first FC layer reads, where they are known."""
        if self._averaged:
            return 1, 1
        if self.size is None or self._fcs_alone:
            return self.size
        return self.size[0] // _SHRINK, self.size[1] // _SHRINK

    @property
    def values(self) -> int | None:
        """Of an image, in the map that the first FC layer reads; None for other layers, or where it is not known."""
        grid = None if self._flat or self._fc or not self.in_head else self._grid()
        return grid and grid[0] * grid[1] * self._channels

    def _enter(
        self, place: str, layer: str, kind: str, tensors: Tensors, out: int, scales: np.ndarray | None
    ) -> None:  # fmt: skip
        self.add(layer, kind)
        try:
            self.roundings.weigh(place, layer, scales)
        except ValueError as error:
            self.refuse(str(error))
        tensors = dict(tensors)
        tensors.setdefault("bias", (f"{tensors['weight'][0]} (no bias)", np.zeros(out, np.float32)))
        self._keep(place, tensors)

    def _keep(self, place: str, tensors: Tensors) -> None:
        for kind, (name, value) in tensors.items():
            self.tensors[name] = value
            self._names.setdefault((place, kind), name)

    def batch_norm(
        self, layer: str, names: Sequence[str], mean: np.ndarray, variance: np.ndarray, epsilon: float,
        scale: np.ndarray | None = None, shift: np.ndarray | None = None,
    ) -> None:  # fmt: skip
        """A batch norm: the file's names of scale, shift, mean and variance, and these; None for ones and zeros."""
        self.add(layer, BATCH_NORM)
        scale = np.ones_like(mean) if scale is None else scale
        shift = np.zeros_like(mean) if shift is None else shift
        variance = (variance.astype(np.float64) + (epsilon - EPSILON)).astype(np.float32)
        values = zip(BATCH_NORM_KINDS, zip(names, (scale, shift, mean, variance), strict=True), strict=True)
        self._keep(f"bn{self._stage}_{self._index}", dict(values))

    def lrn(self, layer: str, **settings: float) -> None:
        """A local response normalisation across channels: size, alpha (divided by size), beta and k."""
        if any(not np.isclose(settings[name], value) for name, value in LRN_SETTINGS.items()):
            self.refuse(f"{layer} must have {LRN_SETTINGS}, got {settings}")
        self.add(layer, LRN)

    def max_pool(
        self, layer: str, extents: Sequence[int], strides: Sequence[int], pads: Sequence[int], up: bool = False
    ) -> None:
        """A max-pool.

        Args:
            layer: what errors call it.
            extents, strides: (H, W).
            pads: (top, bottom, left, right).
            up: whether it rounds odd extents up, as ours does not.
        """
        self.expect(
            f"{layer}, a max-pool,", extents=(list(extents), [2, 2]), strides=(list(strides), [2, 2]),
            pads=(list(pads), [0] * 4),
        )  # fmt: skip
        if self._stage > STAGES:
            self.refuse(f"{layer} is a max-pool behind the fifth")
        if up and self.size is None:
            note = f"its pools round odd extents up, ours down: the same for H and W that are multiples of {_SHRINK}"
            self.notes += [note] if note not in self.notes else []
        elif up and self.size and any(extent % _SHRINK for extent in self.size):
            self.refuse(
                f"{layer} rounds odd extents up, as ours does not: the input must have multiples of {_SHRINK}, "
                f"got {self.size[0]}x{self.size[1]}"
            )
        self.add(layer, MAX_POOL)
        self._stage, self._index = self._stage + 1, 0

    def average(self, layer: str, flat: bool = True) -> None:
        """A mean over all places; `flat` where a row comes out."""
        if self._flat:
            self.refuse(f"{layer} averages what is flat")
        self.add(layer, AVERAGE)
        self._flat = flat
        self._averaged = not self._fc
        self.dense = self._fc > 0

    def flatten(self, layer: str) -> None:
        self.add(layer, FLATTEN)
        self._flat = True

    def raw(
        self, layout: Callable[..., Any], preprocessing: Preprocessing | None, origin: str, prepared_by: str = "",
        **more: Any,
    ) -> Raw:  # fmt: skip
        """What the reader gives, when the last layer was met. `prepared_by`: the layer that says the preprocessing."""
        if prepared_by and self._inputs not in (0, 3):
            raise ValueError(
                f"{self._path}: {prepared_by} prepares {self._inputs} channels: only images of 3 have a preprocessing"
            )
        if any(self._padding[1]):
            self.steps.append(Step(self._padding[0], "a padding"))
        if self._window and not self.dense:
            if self.size is None:
                extent = _SHRINK * self._window
                self.notes.append(f"its FC layers are convolutions: one row of scores for {extent}x{extent}")
            elif any(extent // _SHRINK != self._window for extent in self.size):
                self.refuse(
                    f"its FC layers are convolutions of {self._window}x{self._window} places, which must be all that "
                    f"the pools leave, got {' x '.join(str(extent // _SHRINK) for extent in self.size)}"
                )
        lrn = any(step.kind == LRN for step in self.steps)
        return Raw(
            self.tensors, named_by_place(self._names), layout, preprocessing, origin, lrn=lrn, stranger=self.stranger,
            steps=self.steps, dense=self.dense, notes=self.notes, roundings=self.roundings, **more,
        )  # fmt: skip
