"""What an engine is asked for, and the face that its networks have on every kind of device."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from vggfast.engine._layers import Layer


@dataclass(frozen=True)
class Options:
    """The arguments of :class:`vggfast.Engine`."""

    dtype: str
    weights: str
    threads: int | None
    batch: int
    size: int
    graph: bool

    def one_of(self, name: str, allowed: Iterable[str], device: torch.device) -> str:
        """The option of this name, which must be one of `allowed`."""
        value = getattr(self, name)
        if value not in allowed:
            names = ", ".join(map(repr, allowed))
            raise ValueError(f"{name} is {value!r}: one of {names} is wanted on {device.type}")
        return value


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

    def finish(self) -> None:
        """Called once, after the last layer."""

    def run(self, x: Tensor, wanted: Sequence[int]) -> list[Tensor]:
        """The outputs of the layers of these numbers, ascending: float32, NHWC or rows. x: (N, C, H, W), of a dtype in
        `inputs`, on the network's device, of any strides.

        Raises:
            ValueError: x does not fit.
        """
