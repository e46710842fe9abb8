"""Figures as PNG files, written whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

from vggfast.weights.files import write_atomically

_COLOURS = {"loss": "#4477aa", "top1": "#cc3311", "top5": "#ee9955", "right": "#117733", "wrong": "#cc3311"}


def _save(figure: Figure, path: str | Path) -> None:
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=120))


def curves(steps: Sequence[Mapping[str, float]], epochs: Sequence[Mapping[str, float]], path: str | Path) -> None:
    """Training loss over steps, and validation loss and errors over epochs, with the learning rate's drops.

    Args:
        steps: rows with "step", "loss", "lr".
        epochs: rows with "step", "val_loss", "val_top1", "val_top5" (errors in per cent).
        path: where the PNG goes.
    """
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot([row["step"] for row in steps], [row["loss"] for row in steps], color=_COLOURS["loss"], label="training")
    at = [row["step"] for row in epochs]
    left.plot(at, [row["val_loss"] for row in epochs], ".-", color=_COLOURS["top1"], label="validation")
    left.set(xlabel="step", ylabel="loss (nats)", title="Loss")
    right.plot(at, [row["val_top1"] for row in epochs], ".-", color=_COLOURS["top1"], label="top-1")
    right.plot(at, [row["val_top5"] for row in epochs], ".-", color=_COLOURS["top5"], label="top-5")
    right.set(xlabel="step", ylabel="error (%)", title="Validation error, centre crop", ylim=(0, None))
    drops = [now["step"] for before, now in pairwise(steps) if now["lr"] < before["lr"]]
    for axes in (left, right):
        for i, step in enumerate(drops):
            axes.axvline(step, color="grey", linestyle=":", label="learning rate / 10" if i == 0 else None)
        axes.grid(alpha=0.3)
        axes.legend()
    _save(figure, path)


def contact_sheet(
    images: Sequence[Image.Image],
    labels: Sequence[str],
    predictions: Sequence[str],
    confidences: Sequence[float],
    path: str | Path,
    columns: int = 8,
) -> None:
    """A sheet of pictures, each over its label, the prediction and the confidence; mistakes are red."""
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(1.6 * columns, 2.0 * rows), layout="constrained")
    for axes in figure.subplots(rows, columns, squeeze=False).flat:
        axes.axis("off")
    for axes, image, label, prediction, confidence in zip(
        figure.axes, images, labels, predictions, confidences, strict=False
    ):
        axes.imshow(image)
        colour = _COLOURS["right" if label == prediction else "wrong"]
        axes.set_title(f"is: {label[:18]}\nsays: {prediction[:18]}\n{confidence:.1%}", fontsize=8, color=colour)
    _save(figure, path)
