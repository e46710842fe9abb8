"""The report of an evaluation: errors, the surest right and wrong answers, confusion, classes, calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import ImageOps
from torch import Tensor

from vggfast.data import ImageSet, open_dataset
from vggfast.evaluate.fusion import average
from vggfast.evaluate.metrics import per_class, reliability
from vggfast.report.calibration import reliability_curve
from vggfast.report.confused import confusion, distinct, most_confused
from vggfast.report.figures import contact_sheet
from vggfast.report.page import embedded, embedded_photo, error_and_accuracy, write_page
from vggfast.runs.error_names import read_results

_SHEET = 24  # photos of a contact sheet
_PAIRS, _OF_PAIR = 6, 4  # most confused pairs that are shown, and photos of each
_EXPECTED = {"data", "split", "images", "bad_images", "classes", "protocol", "scales", "flip", "models", "rows",
           "environment"}  # fmt: skip
_SIDE = 160  # pixels of the longer side of a photo on the page


class Answers(NamedTuple):
    """The images that decode, and what the networks say of them.

    Attributes:
        images: all of them.
        numbers: (n,), which of them these are.
        labels, predicted: (n,), classes.
        posteriors: (n, classes), the average of the networks'.
    """

    images: ImageSet
    numbers: np.ndarray
    labels: np.ndarray
    predicted: np.ndarray
    posteriors: Tensor

    @property
    def confidence(self) -> np.ndarray:
        return self.posteriors.max(1).values.numpy()


def write_evaluation(folder: str | Path) -> Path:
    """Writes evaluation.html and evaluation-*.png into a folder of ``vggfast eval --out``, from the files there.

    Reads results.json, labels.npy and posteriors-*.npy, and the data set itself for its images.

    Returns:
        The page's path.

    Raises:
        FileNotFoundError: the folder holds no finished evaluation, or the data set is gone.
        ValueError: a file is not what the evaluation writes, or the data set is another one now; the text names it.
        OSError: a file could not be written; the text names it.
    """
    folder = Path(folder)
    if not (folder / "results.json").is_file():
        raise FileNotFoundError(f"{folder} holds no finished evaluation: results.json is not there")
    results = read_results(folder / "results.json")
    if missing := _EXPECTED - results.keys():
        raise ValueError(
            f"{folder / 'results.json'} must be that of vggfast eval --out, and has no {', '.join(sorted(missing))}"
        )
    answers = _read(folder, results)
    classes = answers.images.classes
    curve = reliability(answers.posteriors, torch.from_numpy(answers.labels))
    paths = {name: folder / f"evaluation-{name}.png" for name in ("confusion", "reliability")}
    confusion(answers.labels, answers.predicted, classes, paths["confusion"])
    reliability_curve(curve, paths["reliability"])
    pairs = most_confused(answers.labels, answers.predicted, classes)
    rows = per_class(answers.posteriors, torch.from_numpy(answers.labels), classes)
    return write_page(
        folder / "evaluation.html",
        "evaluation.html",
        title=f"Evaluation on {results['data']} ({results['split']})",
        state=_state(results),
        headline=_headline(results, answers, curve.error),
        rows=results["rows"],
        of_average=len(results["models"]) > 1,
        images={name: embedded(path) for name, path in paths.items()},
        calibration_error=100 * curve.error,
        confused=pairs,
        sheets=[_sheet(answers, *each, folder) for each in _chosen(answers, pairs)],
        classes=sorted(rows, key=lambda row: (-row.top1_error if row.images else 1, row.name)),
        environment=results["environment"],
        models=results["models"],
    )


def _read(folder: Path, results: Mapping[str, Any]) -> Answers:
    """What the folder's arrays say, checked against results.json and the data set as it is now."""
    try:
        labels = np.load(folder / "labels.npy")
        posteriors = average(
            [torch.from_numpy(np.load(folder / f"posteriors-{k}.npy")) for k in range(len(results["models"]))]
        )
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{folder} holds no whole evaluation: {error}") from error
    if posteriors.shape != (len(labels), len(results["classes"])):
        raise ValueError(
            f"{folder}: posteriors have shape {tuple(posteriors.shape)}; {len(labels)} labels and "
            f"{len(results['classes'])} classes are there"
        )
    seen = ~posteriors.isnan().any(1)
    numbers = np.flatnonzero(seen.numpy())
    return Answers(
        _open(results, labels), numbers, labels[numbers], posteriors[seen].argmax(1).numpy(), posteriors[seen]
    )


def _open(results: Mapping[str, Any], labels: np.ndarray) -> ImageSet:
    """The data set; of one that holds a part out, all or that part, whichever has these labels."""
    for whole in (True, False):
        images = open_dataset(results["data"], results["split"], whole).ordered(results["classes"])
        if images.classes == results["classes"] and np.array_equal(images.labels, labels):
            return replace(images, classes=distinct(images.classes))
    raise ValueError(
        f"{results['data']} ({results['split']}) has other images now than when it was evaluated: it must have "
        f"{len(labels)} images of {len(results['classes'])} classes, labelled as in labels.npy"
    )


def _state(results: Mapping[str, Any]) -> str:
    scales = " ".join(map(str, results["scales"] or ())) or "of each network"
    views = "images and mirror images" if results["flip"] else "no mirror images"
    bad = f" {results['bad_images']} do not decode and count in no error." if results["bad_images"] else ""
    return f"{results['images']:,} images, protocol {results['protocol']}, scales {scales}, {views}.{bad}"


def _headline(results: Mapping[str, Any], answers: Answers, error: float) -> list[tuple[str, str]]:
    row = results["rows"][len(results["models"]) if len(results["models"]) > 1 else 0]  # of several, the average's
    return [
        *error_and_accuracy("top-1", row["top1_error"]), *error_and_accuracy("top-5", row["top5_error"]),
        ("images", f"{len(answers.labels):,}"), ("classes", f"{len(results['classes']):,}"),
        ("mean confidence", f"{100 * answers.confidence.mean():.1f} %"), ("calibration error", f"{100 * error:.1f} %"),
    ]  # fmt: skip


def _chosen(answers: Answers, pairs: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str, np.ndarray]]:
    """Name, heading, explanation and places among the answers of each contact sheet."""
    surest = np.argsort(-answers.confidence, kind="stable")
    right = answers.labels[surest] == answers.predicted[surest]
    places = {name: i for i, name in enumerate(answers.images.classes)}
    of_pairs = [
        surest[(answers.labels[surest] == places[pair["is"]]) & (answers.predicted[surest] == places[pair["says"]])]
        for pair in pairs[:_PAIRS]
    ]
    return [
        ("best", "Surest and right", "Those of the right answers that the network is most confident of.",
         surest[right][:_SHEET]),
        ("worst", "Surest and wrong", "Those of the wrong answers that the network is most confident of: mistakes, or "
         "wrong labels.", surest[~right][:_SHEET]),
        ("confused", "Most confused", f"Of the most confused pairs of classes, up to {_OF_PAIR} images each.",
         np.concatenate([each[:_OF_PAIR] for each in of_pairs]) if of_pairs else surest[:0]),
    ]  # fmt: skip


def _sheet(answers: Answers, name: str, heading: str, meaning: str, places: np.ndarray, folder: Path) -> dict[str, Any]:
    """A contact sheet, as a PNG and as what the page shows of it; without photos, no PNG."""
    path = folder / f"evaluation-{name}.png"
    path.unlink(missing_ok=True)
    photos = [answers.images.image(answers.numbers[i]) for i in places]
    classes, confidence = answers.images.classes, answers.confidence
    labels, predicted = ([classes[each[i]] for i in places] for each in (answers.labels, answers.predicted))
    if photos:
        contact_sheet(photos, labels, predicted, [confidence[i].item() for i in places], path)
    cards = [
        {"photo": embedded_photo(ImageOps.contain(photo, (_SIDE, _SIDE))), "is": label, "says": said,
         "right": label == said, "confidence": 100 * confidence[i].item()}
        for photo, label, said, i in zip(photos, labels, predicted, places, strict=True)
    ]  # fmt: skip
    return {"name": name, "heading": heading, "meaning": meaning, "cards": cards}
