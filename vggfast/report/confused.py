"""Which classes a network takes for which: the matrix as a picture, and the pairs that it confuses most."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from vggfast.report.figures import save

_MOST_NUMBERS = 12  # classes up to which the cells hold numbers
_MOST_NAMES = 40  # and up to which the axes hold names
_MOST_CELLS = 400  # along a side; further classes share cells


def distinct(classes: Sequence[str]) -> list[str]:
    """Class names, with their indices where two classes have one name, as two of ImageNet's are called crane."""
    counts = Counter(classes)
    return [name if counts[name] == 1 else f"{name} ({i})" for i, name in enumerate(classes)]


def most_confused(
    labels: np.ndarray, predicted: np.ndarray, classes: Sequence[str], most: int = 20
) -> list[dict[str, Any]]:
    """The pairs of classes with the most mistakes, the commonest first.

    Args:
        labels, predicted: (N,), indices into `classes`.
        classes: their names.
        most: how many pairs.

    Returns:
        Rows with "is" and "says", names of classes; "images", how many; "percent" of the images of the class.
    """
    labels, predicted = np.asarray(labels, np.int64), np.asarray(predicted, np.int64)
    wrong = labels != predicted
    pairs, counts = np.unique(labels[wrong] * len(classes) + predicted[wrong], return_counts=True)
    of_class = np.bincount(labels, minlength=len(classes))
    rows = []
    for i in np.argsort(-counts, kind="stable")[:most]:
        label, other = divmod(int(pairs[i]), len(classes))
        share = 100 * int(counts[i]) / int(of_class[label])
        rows.append({"is": classes[label], "says": classes[other], "images": int(counts[i]), "percent": share})
    return rows


def confusion(labels: np.ndarray, predicted: np.ndarray, classes: Sequence[str], path: str | Path) -> None:
    """The confusion matrix: a row per class, with the share of its images that each column's class was said of.

    Few classes have names and numbers, many have indices alone, and very many share cells, which then hold means.

    Args:
        labels, predicted: (N,), indices into `classes`.
        classes: their names.
        path: where the PNG goes.
    """
    shares, per_cell = _shares(np.asarray(labels), np.asarray(predicted), len(classes))
    side = len(shares)
    size = min(max(4.5, 0.3 * side + 2), 10)
    figure = Figure(figsize=(size + 1, size), layout="constrained")
    axes = figure.subplots()
    extent = (-0.5, side * per_cell - 0.5, side * per_cell - 0.5, -0.5)
    # The root of the share, so that a mistake of a few per cent can be seen beside the diagonal.
    picture = axes.imshow(100 * shares, norm=PowerNorm(0.5, 0, 100), cmap="Blues", extent=extent,
                          interpolation="nearest")  # fmt: skip
    axes.set(xlabel="the network says", ylabel="the image is")
    if len(classes) <= _MOST_NAMES:
        names = [name if len(name) <= 18 else name[:17] + "…" for name in classes]
        upright = max(map(len, names)) > 3
        axes.set_xticks(range(side), names, rotation=90 if upright else 0, fontsize=8, parse_math=False)
        axes.set_yticks(range(side), names, fontsize=8, parse_math=False)
    else:
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(10, integer=True))
        axes.set(xlabel="the network says (index of the class)", ylabel="the image is (index of the class)")
    if len(classes) <= _MOST_NUMBERS:
        for i, j in np.argwhere(shares > 0):
            colour = "white" if shares[i, j] > 0.4 else "black"
            axes.text(j, i, f"{100 * shares[i, j]:.0f}", ha="center", va="center", fontsize=8, color=colour)
    figure.colorbar(picture, ax=axes, shrink=0.8, label="% of the images of the class", ticks=[0, 1, 5, 20, 50, 100])
    save(figure, path)


def _shares(labels: np.ndarray, predicted: np.ndarray, classes: int) -> tuple[np.ndarray, int]:
    """(rows that sum to 1, or to 0 without images; classes that share a row)."""
    per_cell = -(-classes // _MOST_CELLS)
    side = -(-classes // per_cell)
    places = (labels // per_cell) * side + predicted // per_cell
    counts = np.bincount(places, minlength=side * side).reshape(side, side)
    return counts / np.maximum(counts.sum(1, keepdims=True), 1), per_cell
