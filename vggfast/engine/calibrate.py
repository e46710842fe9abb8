"""What sample images show of a network in float32, for those whose layers are quantised; and what quantising costs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from vggfast.engine.options import Deviation, Network
from vggfast.engine.plan import fuse, output_shapes
from vggfast.graph.layers import Layer

IMAGES_AT_A_TIME = 8  # every layer's output is kept in float32 meanwhile

Outputs = Callable[[Tensor], Iterable[Tensor]]  # of each step, for these images, in float32


class Calibration:
    """A network of float32 and sample images for it.

    Args:
        exact: a network of float32 without layers, on the images' device.
        images: (N, C, H, W).
    """

    def __init__(self, exact: Network, images: Tensor) -> None:
        if 0 in images.shape:
            raise ValueError(f"calibration must have no empty axis, got shape {tuple(images.shape)}")
        self._exact = exact
        self._images = images
        self._given: list[Layer] = []
        self._runs: list[Any] = []  # of layers that one kernel computes, as `fuse` finds them

    def add(self, layer: Layer) -> None:
        """The network's next layer, its weights as they were given."""
        self._given.append(layer)
        self._exact.add(layer)

    @property
    def ends(self) -> tuple[int, ...]:
        """The number of each run's last layer."""
        return tuple(run.last for run in self._runs)

    def deviation(self, outputs: Outputs, names: Sequence[str]) -> Deviation:
        """Of the network whose runs put out what `outputs` says, from the exact one."""
        sums = torch.zeros(len(self._runs), 2, dtype=torch.float64, device=self._images.device)
        agreeing = 0
        for images in self._batches():
            y = expected = images
            for i, (y, expected) in enumerate(zip(outputs(images), self._outputs(images), strict=True)):
                exact = expected.double()
                sums[i] += torch.stack([(y - exact).square().sum(), exact.square().sum()])
            if len(self._given) > len(names):
                agreeing += int((y.argmax(1) == expected.argmax(1)).sum())
        errors = [(off / (total or 1)) ** 0.5 for off, total in sums.tolist()]
        layers = {names[end]: error for end, error in zip(self.ends, errors, strict=True) if end < len(names)}
        top1 = agreeing / len(self._images) if len(self._given) > len(names) else None
        return Deviation(errors[-1], top1, layers)

    def _find_runs(self, layers: Sequence[Layer]) -> None:
        """Raises ValueError where the layers cannot take the images."""
        last = len(layers) - 1
        try:
            output_shapes(layers, tuple(self._images.shape), (last,))
        except ValueError as error:
            raise ValueError(f"calibration does not fit: {error}") from None
        self._runs = fuse(layers, (last,))

    def _batches(self) -> Iterator[Tensor]:
        return iter(self._images.split(IMAGES_AT_A_TIME))

    def _outputs(self, images: Tensor) -> list[Tensor]:
        """Of each run, exactly."""
        return self._exact.run(images, self.ends)

    def _largest(self, names: Sequence[str]) -> list[float]:
        """The largest absolute value that each run puts out.

        Raises:
            ValueError: it is not finite.
        """
        batches = [torch.stack([y.abs().amax() for y in self._outputs(images)]) for images in self._batches()]
        found: list[float] = torch.stack(batches).amax(0).tolist()  # which keeps NaN
        for end, value in zip(self.ends, found, strict=True):
            if not value < float("inf"):
                name = names[end] if end < len(names) else "the head"
                raise ValueError(f"calibration must make {name} put out finite values, got {value}")
        return found
