"""Learning to predict boxes: the paper's Euclidean loss on the box of the true class, and the evaluation of such a run.

Source: Simonyan & Zisserman, appendix A.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from torch import Tensor

from vggfast._progress import StageProgress
from vggfast.data.sources.base import check_classes
from vggfast.environment import environment
from vggfast.io import write_json
from vggfast.localisation.boxes import corner_form, iou, true_class_boxes
from vggfast.localisation.data import BoxSet, open_boxes
from vggfast.localisation.evaluation import evaluate
from vggfast.localisation.report import as_dict, error_table
from vggfast.runs.config import TrainConfig
from vggfast.runs.summary import summary
from vggfast.tasks.base import FinalEval
from vggfast.training.trainer import Trainer
from vggfast.weights import load_model

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
        """(training images, validation images) of `config`, with their boxes.

        Raises:
            ValueError: the data has no boxes, or its splits have other classes; the text says why.
        """
        train = open_boxes(config.data, "train")
        val = open_boxes(config.val_data or config.data, "val")
        check_classes(val.name, val.classes, train.classes, "val")
        return train, val

    def boxes(self, images: BoxSet) -> np.ndarray:
        """(n, 4) corners relative to the picture: the largest box of each image."""
        return images.largest

    def outputs(self, classes: int) -> int:
        """Outputs of the last layer: four numbers for each box."""
        return 4 * (classes if self.predict == "boxes" else 1)

    def metadata(self, images: BoxSet) -> dict[str, Any]:
        """`predict`, and the training images' mean box, to which an evaluation compares."""
        return {"predict": self.predict, "mean_box": images.mean_box().tolist()}

    def measure(self, outputs: Tensor, smoothing: float, labels: Tensor, *boxes: Tensor) -> tuple[Tensor, ...]:
        """Half the squared distance between the true class's box and the true one, as Caffe's Euclidean loss has it."""
        (expected,) = boxes
        own = true_class_boxes(outputs, labels)
        overlaps = iou(corner_form(own.detach())[:, None], corner_form(expected)[:, None])[:, 0, 0]
        return (own - expected).square().sum(1) / 2, *(overlaps <= threshold for threshold in _THRESHOLDS)


def final_eval(trainer: Trainer, progress: StageProgress) -> FinalEval | None:
    """The protocol of the true class, on the first rank alone; see :func:`vggfast.tasks.final_eval`."""
    if not trainer.context.main:
        return None
    out, config, images = trainer.out, trainer.config, trainer.val_set
    model, metadata = load_model(out / "model.safetensors")
    found = evaluate(
        model.to(trainer.context.device), images, scale=config.test_scales()[1], mean_box=metadata["mean_box"],
        progress=functools.partial(progress, "true class"),
    )  # fmt: skip
    figures = summary(trainer.progress.epochs)
    figures["best_epoch"] = figures.pop("best")["epoch"]
    computed_with = environment(trainer.context.size, trainer.context.device)
    write_json(out / "metrics.json", {**figures, "localisation": as_dict(found), "environment": computed_with})
    table = error_table(f"{config.config} on {config.data}, {figures['train_seconds']:.0f} s of training", found)
    files = {"metrics.json": "these figures", "model.safetensors": "the best weights, for vggfast localise"}
    return FinalEval(*table, {out / name: what for name, what in files.items()})
