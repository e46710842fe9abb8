"""The prediction sheet: photos with their likeliest classes, and where the network sees the first of these."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageOps
from torch import Tensor

from vggfast._progress import Progress, silent
from vggfast.data import Images, rescale
from vggfast.evaluate.evaluator import Evaluator
from vggfast.io import on_one_line
from vggfast.models import VGG
from vggfast.report.figures import save
from vggfast.report.heatmap import TICKS, bar, class_probabilities, heat_map
from vggfast.report.page import embedded_photo, write_page

KINDS = (".html", ".png")
_MAPS = 2  # classes that have a heat map
_SIDE = 360  # pixels of the longer side of what is shown
_MOST_PNG = 100  # photos; a taller picture is more than programs open
_MOST_LINES = 12  # of class names in a PNG


class Entry(NamedTuple):
    """A photo of the sheet.

    Attributes:
        name: what it is called.
        photo: RGB, up to 360 pixels long.
        classes: name and probability (0 to 1) of the likeliest ones, the first one first.
        maps: for the first of these, the photo with the heat map over it, and the map's largest value.
    """

    name: str
    photo: Image.Image
    classes: list[tuple[str, float]]
    maps: list[tuple[Image.Image, float]]


def write_sheet(
    path: str | Path, model: VGG, images: Images, posteriors: Tensor, top: int = 5, *, progress: Progress = silent
) -> Path:
    """Writes a sheet of photos, their likeliest classes, and heat maps of the first two of these.

    A heat map's value is what the network says of a window half as wide as the photo's shorter side (of 32 * pool_size
    pixels, in the photo rescaled to twice that).

    Args:
        path: a name that ends in .html (one file that needs no other) or in .png (up to 100 photos).
        model: with a head and its preprocessing; of several, the one whose maps are to be shown.
        images: N photos; their labels do not matter.
        posteriors: (N, classes), as :func:`vggfast.evaluate.dense` gives them.
        top: classes to list of each photo.
        progress: is told how many photos are done.

    Returns:
        The path.

    Raises:
        ValueError: another ending, or more photos than a PNG may have; the text names it.
        OSError: it could not be written; the text names it.
    """
    check_sheet(path, len(images))
    scale = 64 * model.arguments["pool_size"]
    evaluator = Evaluator(model)
    entries = []
    for i in range(len(images)):
        progress(i, len(images))
        entries.append(_entry(images, i, posteriors[i].topk(min(top, len(images.classes))), evaluator, scale))
    progress(len(images), len(images))
    number = len(images.classes)
    known = (
        f"Network {model.arguments['config']} knows {number} {'classes' if number > 1 else 'class'} and shares 100 % "
        "among them for every photo, whatever it shows."
    )
    meaning = (
        f"Heat maps: what the network makes of the {scale // 2} x {scale // 2} pixels around each place, in the photo "
        f"rescaled to a shorter side of {scale}. No such window has its middle outside the frame. Colours go with the "
        "root, so that small shares show."
    )
    write = _write_html if Path(path).suffix == ".html" else _write_png
    write(path, entries, sorted(images.classes), known, meaning)
    return Path(path)


def check_sheet(path: str | Path, photos: int) -> None:
    """Raises ValueError where no sheet of so many photos has such a name."""
    if Path(path).suffix not in KINDS:
        raise ValueError(f"sheet must be a name that ends in {' or '.join(KINDS)}, got {str(path)!r}")
    if Path(path).suffix == ".png" and photos > _MOST_PNG:
        raise ValueError(
            f"a sheet of more than {_MOST_PNG} photos must be .html, got {str(path)!r} for {photos} photos"
        )


def _entry(images: Images, index: int, best: Any, evaluator: Evaluator, scale: int) -> Entry:
    """`best`: values and indices of the likeliest classes."""
    photo = images.image(index)
    # Without the mirror image, whose windows lie elsewhere when the width is no multiple of 32.
    found = evaluator.score_maps([photo], scale, flip=False)[0]
    probabilities = class_probabilities(found.scores.numpy())
    seen = rescale(photo, scale)
    maps = [
        (_small(heat_map(seen, probabilities[i], found.window, found.stride)), float(probabilities[i].max()))
        for i in best.indices[:_MAPS].tolist()
    ]
    classes = [(images.classes[i], value) for i, value in zip(best.indices, best.values.tolist(), strict=True)]
    return Entry(on_one_line(images.source(index)), _small(photo), classes, maps)


def _small(image: Image.Image) -> Image.Image:
    return ImageOps.contain(image, (_SIDE, _SIDE))


def _write_html(path: str | Path, entries: Sequence[Entry], classes: Sequence[str], known: str, meaning: str) -> None:
    write_page(
        path,
        "sheet.html",
        title="Predictions",
        state=known,
        meaning=meaning,
        bar=embedded_photo(bar(600, 24)),
        ticks=[(100 * value**0.5, f"{100 * value:g} %") for value in TICKS],
        classes=classes,
        entries=[
            {"name": entry.name, "photo": embedded_photo(entry.photo), "classes": entry.classes,
             "maps": [(name, embedded_photo(image), most) for (name, _), (image, most) in
                      zip(entry.classes, entry.maps, strict=False)]}
            for entry in entries
        ],
    )  # fmt: skip


def _write_png(path: str | Path, entries: Sequence[Entry], classes: Sequence[str], known: str, meaning: str) -> None:
    texts = [known, meaning, f"The classes: {', '.join(classes)}"]
    lines = [line for text in texts for line in textwrap.wrap(text, 175, max_lines=_MOST_LINES, placeholder=" …")]
    heading = 0.17 * len(lines) + 0.75
    figure = Figure(figsize=(13, heading + 2.9 * len(entries)), layout="constrained")
    parts: Any = figure.subfigures(len(entries) + 1, 1, height_ratios=[heading] + [2.9] * len(entries))
    key, *rows = parts
    key.text(0.012, 1 - 0.1 / heading, "\n".join(lines), fontsize=9, va="top", linespacing=1.3, parse_math=False)
    axes = key.add_axes((0.02, 0.3 / heading, 0.5, 0.15 / heading))
    axes.imshow(np.asarray(bar(600, 12)), extent=(0, 1, 0, 1), aspect="auto")
    axes.set_yticks([])
    axes.set_xticks([value**0.5 for value in TICKS], [f"{100 * value:g} %" for value in TICKS], fontsize=9)
    for row, entry in zip(rows, entries, strict=True):
        photo, bars, *maps = row.subplots(1, 2 + _MAPS, width_ratios=[1, 1.2] + [1] * _MAPS)
        _picture(photo, entry.photo, Path(entry.name).name)
        _bars(bars, entry.classes)
        for axes in maps[len(entry.maps) :]:
            axes.axis("off")
        for axes, (name, _), (image, most) in zip(maps, entry.classes, entry.maps, strict=False):
            _picture(axes, image, f"{_short(name)}: up to {100 * most:.0f} %")
    save(figure, path)


def _picture(axes: Any, image: Image.Image, title: str) -> None:
    axes.imshow(image)
    axes.set_anchor("N")
    axes.axis("off")
    axes.set_title(_short(title, 30), fontsize=9, parse_math=False)


def _bars(axes: Any, classes: Sequence[tuple[str, float]]) -> None:
    values = [value for _, value in classes]
    places = range(len(classes))
    axes.barh(places, values, color="#4477aa", height=0.35)
    axes.set(xlim=(0, 1), ylim=(len(classes) - 0.5, -0.7), xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    for i, (name, value) in enumerate(classes):
        axes.text(0, i - 0.25, _short(name), fontsize=9, va="bottom", parse_math=False)
        axes.text(1, i - 0.25, f"{100 * value:.1f} %", fontsize=9, va="bottom", ha="right")


def _short(text: str, most: int = 24) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
