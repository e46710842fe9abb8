"""Where a file rounds what its layers read to 8 bits: what the readers of quantised networks share.

The engine's layers of 8 bits read 0 to 255 of a scale. Everything else that a file may round is computed as it says, or
refused by name: its images and its output are rounded apart, and the first layer, which reads the images, is one of
float32. A rounding to 0 to 255 right behind a convolution or FC layer is a ReLU too, which exporters leave out there.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from vggfast.quantisation import LARGEST, Quantisation, Rounding, Scales
from vggfast.weights.formats._sequence import BATCH_NORM, CONV, FC, FLATTEN, MAX_POOL, RELU, SOFTMAX

_KEEPING = (RELU, MAX_POOL, FLATTEN)  # of rounded values they give rounded values
_ALLOWED = "a layer reads uint8 with zero point 0, or int8 with -128"


class Roundings:
    """The roundings of a network whose layers are met in turn."""

    def __init__(self) -> None:
        self._scales: dict[str, np.ndarray] = {}  # of weights of 8 bits, by the layer's place: "conv3_1"
        self._sources: dict[str, float] = {}  # of layers that read 8 bits
        self._input: Rounding | None = None
        self._output: Rounding | None = None
        self._current: Rounding | None = None  # of what the next layer reads
        self._said, self._maker = "", ""  # what it is in the file's terms, and what makes it
        self._last = ""  # the kind of the last layer
        self._bare = False  # whether no ReLU stands between that and the rounding
        self._source: float | None = None  # of the layer that is being met
        self._has_fc = False

    def round(self, name: str, said: str, rounding: Rounding) -> None:
        """What the last layer gave, or the images, by a node that is called `name`; `said`: "int8 with zero point 3".

        Raises:
            ValueError: it was rounded otherwise before.
        """
        if self._last == SOFTMAX:  # which is left out
            return
        if self._current is None:
            self._current, self._said, self._maker = rounding, said, name
            self._bare = self._last in (CONV, FC, BATCH_NORM)
        elif self._current != rounding:
            raise ValueError(
                f"{name} rounds to {said}, scale {rounding.scale:.6g}, what {self._maker} rounded to {self._said}, "
                f"scale {self._current.scale:.6g}: between two layers there must be one rounding"
            )

    def enter(self, name: str, kind: str) -> str:
        """A layer of one of the kinds of :class:`Step`; returns what is the ReLU that stands before it, if unsaid.

        Raises:
            ValueError: it reads what is rounded as no layer of ours does.
        """
        rounding, last, self._last = self._current, self._last, kind
        self._has_fc |= kind == FC
        if kind == BATCH_NORM and self._source is not None:
            raise ValueError(f"{name} is a batch norm behind a layer of 8 bits, into which it must be folded")
        self._source = None
        if rounding is None:
            return ""
        if kind == SOFTMAX:
            self._output, self._current = rounding, None
            return ""
        at = f"{self._maker} rounds to {self._said} what {name}, {kind}, reads"
        if not last:
            if kind not in (CONV, FC):
                raise ValueError(f"{at}: images are rounded before the first convolution alone")
            self._input, self._current = rounding, None
            return ""
        if rounding.zero_point or rounding.largest != LARGEST:
            raise ValueError(f"{at}: {_ALLOWED}")
        if kind in (CONV, FC):
            self._source, self._current = rounding.scale, None
        elif kind not in _KEEPING:
            raise ValueError(f"{at}: such a layer is computed in float32, of values that are not rounded")
        bare, self._bare = self._bare, False
        return self._maker if bare and kind != RELU else ""

    def weigh(self, place: str, name: str, scales: np.ndarray | None) -> None:
        """The layer that was entered last is at this place, and has these scales of a weight of 8 bits, (outputs,).

        Raises:
            ValueError: it reads 8 bits, and its weight has none; FC layers behind the first may.
        """
        if scales is not None:
            self._scales[place] = scales
        elif self._source is not None and (place == "fc1" or not place.startswith("fc")):
            raise ValueError(
                f"{name} reads 8 bits, and its weight must be of 8 bits too: less a zero point, -128 to 127 of a scale "
                "for each output or for all"
            )
        if self._source is not None:
            self._sources[place] = self._source

    @property
    def found(self) -> bool:
        """Whether anything is of 8 bits."""
        return bool(self._scales or self._input or self._output or self._current)

    def of(self, paths: Mapping[str, str]) -> Quantisation:
        """The network's.

        Args:
            paths: of its modules, by their places. Without FC layers, the output is rounded as the first would read it.
        """
        output = self._output or self._current
        if self._has_fc and not any(place.startswith("fc") for place in paths):
            output = Rounding(self._sources["fc1"]) if "fc1" in self._sources else None
        layers = {
            path: Scales(self._weight(place), self._sources.get(place))
            for place, path in paths.items() if place in self._scales or place in self._sources
        }  # fmt: skip
        return Quantisation(layers, self._input, output)

    def _weight(self, place: str) -> torch.Tensor | None:
        return torch.from_numpy(self._scales[place]) if place in self._scales else None
