"""Figures as PNG files, written whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from PIL import Image

from vggfast.io import write_atomically

_COLOURS = {
    "training": "#4477aa", "validation": "#cc3311", "speed": "#117733", "wait": "#aa3377",
    "right": "#4477aa", "wrong": "#cc3311",
}  # fmt: skip
_POINTS = 1000  # of a curve; more would not show
_RATES = 8  # learning rates up to which each is named


def save(figure: Figure, path: str | Path) -> None:
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=120))


def curves(steps: Sequence[Mapping[str, float]], epochs: Sequence[Mapping[str, float]], path: str | Path) -> None:
    """Loss, top-1 and top-5 error of training and validation, the rate, the speed and the data wait, over steps.

    Training is what its batches gave, augmented and with dropout, so that validation may well be the better one.

    Args:
        steps: rows of vggfast.runs.log.STEP_COLUMNS; thinned to the means of neighbours where they are very many.
        epochs: rows of vggfast.runs.log.EPOCH_COLUMNS.
        path: where the PNG goes.
    """
    figure = Figure(figsize=(12, 7), layout="constrained")
    (loss, top1, top5), (rate, speed, wait) = figure.subplots(2, 3)
    rows, thin = list(steps), thinned(steps)
    at = [row["step"] for row in thin]
    for axes, name, validation, what in (
        (loss, "loss", "val_loss", "loss (nats)"),
        (top1, "top1_error", "val_top1_error", "top-1 error (%)"),
        (top5, "top5_error", "val_top5_error", "top-5 error (%)"),
    ):
        axes.plot(at, [row[name] for row in thin], color=_COLOURS["training"], label="training", linewidth=1)
        axes.plot([row["step"] for row in epochs], [row[validation] for row in epochs], ".-",
                  color=_COLOURS["validation"], label="validation")  # fmt: skip
        axes.set(title=what, ylim=(0, None))
        axes.legend()
    rate.step(at, [row["lr"] for row in thin], where="post", color=_COLOURS["training"])
    rate.set(title="learning rate")
    rates = sorted({row["lr"] for row in rows})
    if 1 < len(rates) <= _RATES and rates[0] > 0:  # steps down; a cosine goes to 0 and is plain on a linear axis
        rate.set_yscale("log")
        rate.minorticks_off()
        rate.set_yticks(rates, [f"{value:g}" for value in rates])
    speed.plot(at, [row["images_per_s"] for row in thin], color=_COLOURS["speed"], linewidth=1)
    speed.set(title="images per second", ylim=(0, None))
    wait.plot(at, [row["data_wait"] for row in thin], color=_COLOURS["wait"], linewidth=1)
    wait.set(title="share of the time spent waiting for data")
    wait.set_ylim(0, max(0.1, wait.get_ylim()[1]))
    wait.yaxis.set_major_formatter(PercentFormatter(1))
    for axes in figure.axes:
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    _mark_drops((loss, top1, top5), rows)
    save(figure, path)


def _mark_drops(panels: Sequence[Any], rows: Sequence[Mapping[str, float]]) -> None:
    """Dotted lines where a rate that stood falls by a factor; a cosine's or a warm-up's steps are none."""
    rates = [row["lr"] for row in rows]
    fallen = [i for i in range(2, len(rows)) if rates[i] < 0.5 * rates[i - 1] and rates[i - 1] == rates[i - 2]]
    for step in [rows[i]["step"] for i in fallen][:20]:
        for axes in panels:
            axes.axvline(step, color="grey", linestyle=":", zorder=0)


def thinned(rows: Sequence[Mapping[str, float]], most: int = _POINTS) -> list[Mapping[str, float]]:
    """At most `most` rows: each the means of as many neighbours, but the step and the rate of the last of them."""
    width = -(-len(rows) // most)
    if width <= 1:
        return list(rows)
    groups = (rows[begin : begin + width] for begin in range(0, len(rows), width))
    return [
        {name: group[-1][name] if name in ("step", "lr") else sum(row[name] for row in group) / len(group)
         for name in group[-1]}
        for group in groups
    ]  # fmt: skip


def contact_sheet(
    images: Sequence[Image.Image],
    labels: Sequence[str],
    predictions: Sequence[str],
    confidences: Sequence[float],
    path: str | Path,
    columns: int = 8,
) -> None:
    """Writes a PNG of pictures, each over its label, the prediction and the confidence; mistakes are red, with a cross.

    Args:
        images, labels, predictions: one of each a picture.
        confidences: 0 to 1.
        path: where the PNG goes.
        columns: pictures in a row.
    """
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(1.6 * columns, 2.0 * rows), layout="constrained")
    for axes in figure.subplots(rows, columns, squeeze=False).flat:
        axes.axis("off")
    for axes, image, label, prediction, confidence in zip(
        figure.axes, images, labels, predictions, confidences, strict=False
    ):
        axes.imshow(image)
        axes.set_anchor("N")
        right = label == prediction
        text = f"is: {label[:18]}\n{'' if right else '✗ '}says: {prediction[:18]}\n{confidence:.1%}"
        colour = _COLOURS["right" if right else "wrong"]
        axes.set_title(text, fontsize=8, color=colour, parse_math=False)  # a class may have a dollar in its name
    save(figure, path)
