"""Training a network to predict boxes: the paper's Euclidean loss on the box of the true class.

Source: Simonyan & Zisserman, appendix A.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from vggfast.data.sources.base import check_classes
from vggfast.localisation.boxes import corner_form, iou
from vggfast.localisation.data import BoxSet, open_boxes
from vggfast.runs.config import TrainConfig

# Of the two errors of the log; the paper's is the first.
_THRESHOLDS = (0.5, 0.75)


class Localisation:
    """Boxes of the centre form, relative to the crop; the log's errors are shares of boxes that do not fit well enough.

    Args:
        predict: "box", one for all classes (the paper's SCR), or "boxes", one a class (PCR).
    """

    error_names = (f"IoU {_THRESHOLDS[0]}", f"IoU {_THRESHOLDS[1]}")

    def __init__(self, predict: str) -> None:
        self.predict = predict

    def open_splits(self, config: TrainConfig) -> tuple[BoxSet, BoxSet]:
        train = open_boxes(config.data, "train")
        val = open_boxes(config.val_data or config.data, "val")
        check_classes(val.name, val.classes, train.classes, "val")
        return train, val

    def boxes(self, images: BoxSet) -> np.ndarray:
        return images.largest

    def outputs(self, classes: int) -> int:
        return 4 * (classes if self.predict == "boxes" else 1)

    def metadata(self, images: BoxSet) -> dict[str, Any]:
        """`predict`, and the training images' mean box, to which an evaluation compares."""
        return {"predict": self.predict, "mean_box": images.mean_box().tolist()}

    def measure(self, outputs: Tensor, smoothing: float, labels: Tensor, *boxes: Tensor) -> tuple[Tensor, ...]:
        """Half the squared distance between the true class's box and the true one, as Caffe's Euclidean loss has it."""
        (wanted,) = boxes
        own = true_class_boxes(outputs, labels)
        overlaps = iou(corner_form(own.detach())[:, None], corner_form(wanted)[:, None])[:, 0, 0]
        return (own - wanted).square().sum(1) / 2, *(overlaps <= threshold for threshold in _THRESHOLDS)

    def finish(self, trainer: Any) -> None:
        from vggfast.localisation.report import finish

        finish(trainer)


def true_class_boxes(outputs: Tensor, labels: Tensor) -> Tensor:
    """(n, 4): of (n, 4) outputs they are the box; of (n, 4 * classes), the four of each label's class."""
    boxes = outputs.unflatten(1, (-1, 4))
    return boxes[torch.arange(len(boxes), device=boxes.device), labels % boxes.shape[1]]
