"""What training asks of a task; :mod:`vggfast.tasks` has the tasks that there are."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from torch import Tensor

from vggfast.runs.config import TrainConfig


class Task(Protocol):
    """What differs between runs that learn different things.

    Attributes:
        error_names: what the two errors of `measure` are called; the log has them as top1_error and top5_error.
    """

    error_names: tuple[str, str]

    def open_splits(self, config: TrainConfig) -> tuple[Any, Any]:
        """(training images, validation images), two of :class:`vggfast.data.ImageSet`."""

    def boxes(self, images: Any) -> np.ndarray | None:
        """(n, 4) boxes of the images, as :class:`vggfast.data.Batches` takes them, or None."""

    def outputs(self, classes: int) -> int:
        """Outputs of the last layer."""

    def metadata(self, images: Any) -> dict[str, Any]:
        """What the file of a network says beside what all say; `images` are the training images."""

    def measure(self, outputs: Tensor, smoothing: float, labels: Tensor, *boxes: Tensor) -> tuple[Tensor, ...]:
        """Each (n,): the losses, and whether the image counts in the first and in the second error."""
