"""Learning the classes of images, and what such a run ends with: the dense evaluation of its best weights, figures,
metrics.json and a report.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vggfast._progress import StageProgress
from vggfast.data import ImageSet, open_splits
from vggfast.environment import environment
from vggfast.evaluate import Settings, errors, evaluate_set, hits
from vggfast.evaluate.metrics import with_accuracies
from vggfast.io import shown, write_json
from vggfast.report import confusion, contact_sheet, most_confused, write_report
from vggfast.report.confused import distinct
from vggfast.runs.config import TrainConfig
from vggfast.runs.summary import summary
from vggfast.tasks.base import FinalEval
from vggfast.training.trainer import Trainer
from vggfast.weights import load_model

_SHEET_IMAGES = 40
_FILES = {
    "report.html": "all of this to look at, in one file", "metrics.json": "these figures",
    "metrics.csv": "validation after each epoch", "steps.csv": "training between", "log.jsonl": "both, and events",
    "curves.png": "loss, errors, rate and speed", "confusion.png": "what is taken for what",
    "predictions.png": "contact sheet of predictions", "model.safetensors": "the best weights",
}  # fmt: skip


class Classification:
    """The softmax of the classes, the multinomial logistic loss, the top-1 and top-5 error."""

    error_names = ("top-1", "top-5")

    def open_splits(self, config: TrainConfig) -> tuple[ImageSet, ImageSet]:
        """(training images, validation images) of `config`.

        Raises:
            ValueError: there are fewer than two classes, or the data cannot be opened; the text says why.
        """
        train, val = open_splits(config.data, config.val_data or None)
        if len(train.classes) < 2:  # such as of the folder above the class folders
            raise ValueError(f"{shown(config.data)} must have at least two classes to tell apart, got {train.classes}")
        return train, val

    def boxes(self, images: ImageSet) -> None:
        """None: no boxes are learnt."""
        return None

    def outputs(self, classes: int) -> int:
        """Outputs of the last layer: one a class."""
        return classes

    def metadata(self, images: ImageSet) -> dict[str, Any]:
        """Nothing beside what the files of all networks say."""
        return {}

    def measure(self, outputs: Tensor, smoothing: float, labels: Tensor, *boxes: Tensor) -> tuple[Tensor, ...]:
        """Each (n,): losses of `outputs`, (n, classes) logits; whether the first, and the first five, are wrong."""
        losses = F.cross_entropy(outputs, labels, reduction="none", label_smoothing=smoothing)
        return losses, ~hits(outputs, labels, 1), ~hits(outputs, labels, 5)


def final_eval(trainer: Trainer, progress: StageProgress) -> FinalEval | None:
    """See :func:`vggfast.tasks.final_eval`."""
    out, config, context = trainer.out, trainer.config, trainer.context
    images = replace(trainer.val_set, classes=distinct(trainer.val_set.classes))
    model, _ = load_model(out / "model.safetensors")
    model = model.to(context.device)
    settings = Settings(on_bad_image=config.on_bad_image)
    scales = config.test_scales()
    protocols = {"dense, one scale": scales[1:2], f"dense, {len(scales)} scales": scales}
    posteriors: dict[str, Any] = {}
    for name, used in protocols.items():
        posteriors[name], _ = evaluate_set(
            model, images, used, settings, context, progress=functools.partial(progress, name)
        )
    if not context.main:
        return None

    seen = np.flatnonzero(~posteriors[name].isnan().any(1).numpy())  # all that decode
    labels = images.labels[seen]
    of_seen = torch.from_numpy(labels)
    results: dict[str, dict[str, Any]] = {
        name: {"scales": list(used), "flip": True, **with_accuracies(errors(posteriors[name][seen], of_seen))}
        for name, used in protocols.items()
    }
    confidences, predicted = (t.numpy() for t in posteriors[name][seen].max(1))
    problems: dict[str, str] = {}

    def attempt(name: str, write: Callable[..., Any], *args: Any) -> None:
        """What cannot be written, on a full disk say, keeps nothing else from being written."""
        try:
            write(*args)
        except OSError as error:
            problems[name] = str(error)

    attempt("confusion.png", confusion, labels, predicted, images.classes, out / "confusion.png")
    attempt("predictions.png", _draw_sheet, images, seen, predicted, confidences, out / "predictions.png")
    figures = summary(trainer.progress.epochs)
    best = figures.pop("best")
    centre_crop = with_accuracies({name: best[f"val_{name}"] for name in ("top1_error", "top5_error")})
    metrics = {
        **figures, "best_epoch": best["epoch"],
        "centre_crop": centre_crop, "evaluation": results,
        "confused": most_confused(labels, predicted, images.classes),
        "environment": environment(context.size, context.device),
    }  # fmt: skip
    attempt("metrics.json", write_json, out / "metrics.json", metrics)
    attempt("report.html", write_report, out)

    rows = [("centre crop", str(scales[1]), *_cells(centre_crop))]
    rows += [(f"{name}, flips", " ".join(map(str, found["scales"])), *_cells(found)) for name, found in results.items()]
    return FinalEval(
        f"{config.config} on {config.data}, {len(seen)} held-out images, {figures['train_seconds']:.0f} s of training",
        ("evaluation", "scales Q", "top-1 error %", "top-5 error %"),
        rows,
        {out / name: what for name, what in _FILES.items() if name not in problems},
        [*problems.values()],
    )


def _cells(found: Mapping[str, float]) -> list[str]:
    return [f"{found[f'{name}_error']:.2f}\naccuracy {found[f'{name}_accuracy']:.2f} %" for name in ("top1", "top5")]


def _draw_sheet(images: ImageSet, seen: np.ndarray, predicted: np.ndarray, confidences: np.ndarray, path: Path) -> None:
    """A random sample of the images `seen`, with every mistake that fits shown first."""
    order = np.random.default_rng(0).permutation(len(seen))
    is_wrong = (predicted != images.labels[seen])[order]
    wrong = order[is_wrong][: _SHEET_IMAGES // 2].tolist()
    chosen = wrong + order[~is_wrong][: _SHEET_IMAGES - len(wrong)].tolist()
    contact_sheet(
        [images.image(seen[i]) for i in chosen],
        [images.classes[images.labels[seen[i]]] for i in chosen],
        [images.classes[predicted[i]] for i in chosen],
        [confidences[i].item() for i in chosen],
        path,
    )
