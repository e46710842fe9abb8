"""What an engine is asked for, and the face that its networks have on every kind of device."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from vggfast.graph.layers import Layer


@dataclass(frozen=True)
class Options:
    """The arguments of :class:`vggfast.Engine`."""

    dtype: str
    weights: str
    threads: int | None
    batch: int
    size: int
    graph: bool
    calibration: Tensor | None
    scaled: bool = False  # whether the layers come with scales of their own

    def one_of(self, name: str, allowed: Iterable[str], device: torch.device) -> str:
        """The option of this name, which must be one of `allowed`."""
        value = getattr(self, name)
        if value not in allowed:
            names = ", ".join(map(repr, allowed))
            raise ValueError(f"{name} must be one of {names} on {device.type}, got {value!r}")
        return value

    def refuse_calibration(self) -> None:
        """For a dtype that has no scales."""
        if self.calibration is not None:
            raise ValueError(f"calibration must be None with dtype {self.dtype!r}, got images")

    def images(self) -> Tensor:
        """Those for calibration, for a dtype that has scales."""
        if self.calibration is None:
            what = f"calibration must be images (N, C, H, W) with dtype {self.dtype!r}, got None"
            own = ", and the model has no quantisation of its own, as no part of one has"
            raise ValueError(what + own if self.dtype == "int8" else what)
        return self.calibration


@dataclass(frozen=True)
class Deviation:
    """How far an engine of "fp8" or "int8" is from float32 on its calibration images, all of them together.

    Attributes:
        output: relative L2 error of what a call returns: logits, or without a head the last layer's map.
        top1: the share of images whose largest logit is the same one; None without a head.
        layers: relative L2 errors after the trunk's layers, by the names that :meth:`vggfast.Engine.features` takes.
            There is one for each kernel's output, as the next kernel reads it: "pool1" where a pool is fused.
    """

    output: float
    top1: float | None
    layers: Mapping[str, float]


class Network(Protocol):
    """The layers of an engine on one kind of device. Any number of threads may call `run`; they take turns."""

    @property
    def inputs(self) -> tuple[torch.dtype, ...]:
        """What `run` takes."""

    @property
    def threads(self) -> int:
        """CPU threads of the next call."""

    @property
    def bytes(self) -> int:
        """Memory that is held: packed weights and arena."""

    def add(self, layer: Layer) -> None:
        """Adds a layer that reads the one before. Its weights are copied."""

    def finish(self, names: Sequence[str]) -> Deviation | None:
        """Called once, after the last layer; what quantising costs, where something is.

        Args:
            names: of the layers of the trunk; those after them are the head's.

        Raises:
            ValueError: the images for calibration do not fit.
        """

    def workspace(self, shape: tuple[int, ...], last: int) -> int:
        """Bytes that a run of images of `shape` (N, C, H, W) works on, at most, where layer `last` alone is put out.

        Raises:
            ValueError: a layer cannot take its input.
        """

    def run(self, x: Tensor, outputs: Sequence[int]) -> list[Tensor]:
        """The outputs of the layers of these numbers, ascending: float32, NHWC or rows. x: (N, C, H, W), of a dtype in
        `inputs`, on the network's device, of any strides.

        Raises:
            ValueError: x does not fit.
        """
