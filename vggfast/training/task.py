"""What a run teaches its network: the images' classes, or the boxes of their objects (vggfast.localisation.task)."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from vggfast.data import ImageSet, open_splits
from vggfast.evaluate.metrics import hits
from vggfast.runs.config import TrainConfig


class Task(Protocol):
    """What differs between runs that learn different things.

    Attributes:
        error_names: what the two errors of `measure` are called; the log has them as top1 and top5.
    """

    error_names: tuple[str, str]

    def open_splits(self, config: TrainConfig) -> tuple[ImageSet, ImageSet]:
        """(training images, validation images)."""

    def boxes(self, images: Any) -> np.ndarray | None:
        """(n, 4) boxes of the images, as :class:`vggfast.data.Batches` takes them, or None."""

    def outputs(self, classes: int) -> int:
        """Outputs of the last layer."""

    def metadata(self, images: Any) -> dict[str, Any]:
        """What the file of a network says beside what all say; `images` are the training images."""

    def measure(self, outputs: Tensor, smoothing: float, labels: Tensor, *boxes: Tensor) -> tuple[Tensor, ...]:
        """Each (n,): the losses, and whether the image counts in the first and in the second error."""

    def finish(self, trainer: Any) -> None:
        """Evaluates and reports a run that has ended; called by all ranks."""


class Classification:
    """The softmax of the classes, the multinomial logistic loss, the top-1 and top-5 error."""

    error_names = ("top-1", "top-5")

    def open_splits(self, config: TrainConfig) -> tuple[ImageSet, ImageSet]:
        return open_splits(config.data, config.val_data or None)

    def boxes(self, images: ImageSet) -> None:
        return None

    def outputs(self, classes: int) -> int:
        return classes

    def metadata(self, images: ImageSet) -> dict[str, Any]:
        return {}

    def measure(self, outputs: Tensor, smoothing: float, labels: Tensor, *boxes: Tensor) -> tuple[Tensor, ...]:
        losses = F.cross_entropy(outputs, labels, reduction="none", label_smoothing=smoothing)
        return losses, ~hits(outputs, labels, 1), ~hits(outputs, labels, 5)

    def finish(self, trainer: Any) -> None:
        from vggfast.training.finish import finish

        finish(trainer)


def task_of(config: TrainConfig) -> Task:
    """The task that `config.predict` names."""
    if config.predict == "classes":
        return Classification()
    from vggfast.localisation.task import Localisation

    return Localisation(config.predict)
