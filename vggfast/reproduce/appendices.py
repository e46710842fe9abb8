"""Appendix A, the boxes of a localisation network; appendix B, features elsewhere with a linear SVM on top."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vggfast._progress import StageProgress, silent
from vggfast.data import open_dataset
from vggfast.distributed import DistributedContext
from vggfast.environment import environment
from vggfast.evaluate.networks import paper_scales, trained_on
from vggfast.features import PENULTIMATE, Extractor, FeatureFile, caltech_protocol, extract_dataset, load_features
from vggfast.io import WeightFile
from vggfast.localisation import BoxSet, Evaluation, evaluate, open_boxes
from vggfast.models import VGG
from vggfast.reproduce import paper
from vggfast.reproduce.tables import Figure, Line, Result
from vggfast.weights import load_model
from vggfast.weights.files import model_of

_CALTECH_CLASSES = (101, 102)  # without and with its class of anything else
_CONVOLUTIONS = {"D": "vgg16-conv", "E": "vgg19-conv"}  # files of published convolutions without FC layers


# ---- appendix A ------------------------------------------------------------------------------------------------------


def run_localisation(
    weights: Path, data: str, split: str, context: DistributedContext, progress: StageProgress = silent
) -> Result:
    """Errors of the true class's box from the centre crop, of the networks in `weights`.

    Args:
        weights: holds the files of :data:`vggfast.reproduce.paper.LOCALISATION`.
        data, split: images with boxes, as :func:`vggfast.localisation.open_boxes` takes them.
        progress: is told by network how many images are done.
    """
    images = open_boxes(data, split)
    lines, trained = [], set()
    for cell in paper.LOCALISATION:
        path = weights / f"{cell.file}.safetensors"
        if not path.is_file():
            lines.append(Line(("D", cell.boxes, cell.tuned, ""), (Figure(cell.error),), f"no {path.name}"))
            continue
        model, metadata = load_model(path)
        trained.add(trained_on(metadata))
        found = box_errors(path, model, metadata, images, context, progress)
        mean_box = found.true_class_mean_box
        lines.append(
            Line(
                (model.arguments["config"], cell.boxes, cell.tuned, f"{mean_box.percent:.1f}" if mean_box else ""),
                (Figure(cell.error, found.true_class.percent, found.true_class.interval()),),
            )
        )
    on = f"networks trained on {', '.join(sorted(trained))}" if trained else "no network of it is there"
    return Result(
        "localisation", f"appendix A: box of the true class, centre crop; {data} ({split}, {len(images)} images); {on}",
        ("network", "boxes", "tuned layers", "mean box's error %"), ("error at IoU 0.5 %",), lines,
        ["The paper's column is of its network D on ImageNet's images."],
        {"data": data, "split": split, "images": len(images), "trained_on": sorted(trained),
         "environment": environment(context.size, context.device)},
    )  # fmt: skip


def box_errors(
    path: Path, model: VGG, metadata: dict[str, Any], images: BoxSet, context: DistributedContext,
    progress: StageProgress,
) -> Evaluation:  # fmt: skip
    """The errors of a network's boxes, beside those of the mean box of its training images."""
    if "predict" not in metadata or "scales" not in metadata:
        raise ValueError(f"{path} must be what vggfast train --predict box or boxes wrote, and does not predict boxes")
    mean_box = metadata.get("mean_box")
    return evaluate(
        model.to(context.device), images, scale=metadata["scales"][1], progress=functools.partial(progress, str(path)),
        mean_box=None if mean_box is None else np.array(mean_box),
    )  # fmt: skip


# ---- appendix B ------------------------------------------------------------------------------------------------------


class _Source(NamedTuple):
    """Where a network's features come from."""

    path: Path
    tap: str


def run_features(
    weights: Path, data: str, context: DistributedContext, scales: Sequence[int] = (), out: Path | None = None,
    progress: StageProgress = silent,
) -> Result:  # fmt: skip
    """Mean class recall of a linear SVM on the features of networks in `weights`, on Caltech-101 or another folder.

    D-*.safetensors and E-*.safetensors with FC layers give their penultimate layer; without such a file,
    vgg16-conv.safetensors and vgg19-conv.safetensors their last map. Features are kept in `out`/features.

    Args:
        data: images of whatever split, all of which are taken.
        scales: shorter sides, whose features are stacked; by default the paper's, as much smaller as the head is.
        progress: is told by network how many images, and by row of the table how many splits are done.

    Raises:
        ValueError: a class with too few images for the protocol; the text names it.
    """
    sets = [open_dataset(data, split) for split in ("train", "val")]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) if out is None else out / "features"
        kept: dict[str, tuple[_Source, FeatureFile]] = {}
        for config in ("D", "E"):
            source = _source(weights, config)
            if source:
                kept[config] = source, _extract(source, sets, data, context, scales, folder, progress)
        lines = [_recall(cell, kept, progress) for cell in paper.FEATURES]
    count, classes = sum(map(len, sets)), len(sets[0].classes)
    notes = ["The paper's column is of penultimate features of networks that were trained on ImageNet."]
    if classes not in _CALTECH_CLASSES:
        notes.append(f"{paper.CALTECH} has {_CALTECH_CLASSES[0]} classes, and these data {classes}: another task.")
    title = (
        f"appendix B: features and a linear SVM; {data} ({count} images, {classes} classes), {paper.TRAIN_IMAGES} "
        f"training images a class, {paper.SPLITS} splits"
    )
    return Result(
        "appendix-b", title, ("data", "networks", "features", "Q"), ("mean class recall or mAP %",), lines, notes,
        {"data": data, "images": count, "classes": classes,
         "weights": {name: str(source.path) for name, (source, _) in kept.items()},
         "environment": environment(context.size, context.device)},
    )  # fmt: skip


def _source(weights: Path, config: str) -> _Source | None:
    """The paper took the networks of jittered scales; without that file, another of the same configuration."""
    for regime in ("jitter", "384", "256"):
        path = weights / f"{config}-{regime}.safetensors"
        if path.is_file():
            return _Source(path, PENULTIMATE)
    path = weights / f"{_CONVOLUTIONS[config]}.safetensors"
    return _Source(path, "pool5") if path.is_file() else None


def _extract(
    source: _Source, sets: Sequence[Any], data: str, context: DistributedContext, scales: Sequence[int], folder: Path,
    progress: StageProgress,
) -> FeatureFile:  # fmt: skip
    file = WeightFile(source.path)
    model, metadata = model_of(file)
    requested = tuple(scales) or tuple(metadata.get("scales", ())) or paper_scales(model.arguments["pool_size"])
    extractor = Extractor(model.to(context.device), [source.tap], requested)
    digest = file.sha256
    path = folder / f"{source.path.stem}-{'-'.join(map(str, requested))}-{digest[:8]}.npz"
    of = {"model_sha256": digest, "data": data, "split": "all", "sets": [each.digest() for each in sets]}
    if path.exists():
        found = load_features(path)
        if any(found.metadata.get(name) != value for name, value in of.items()):
            raise ValueError(
                f"{path} holds features of other images ({found.metadata.get('data')}): choose another --out"
            )
        return found
    return extract_dataset(extractor, sets, path, of, progress=functools.partial(progress, str(source.path)))


def _recall(cell: paper.FeatureCell, kept: dict[str, tuple[_Source, FeatureFile]], progress: StageProgress) -> Line:
    figure = Figure(cell.figure, paper_deviation=cell.deviation)
    names = " + ".join(cell.networks)
    if cell.data != paper.CALTECH:
        return Line((cell.data, names, "", ""), (figure,), f"not without {cell.data}'s images")
    missing = [name for name in cell.networks if name not in kept]
    if missing:
        files = ", ".join(f"{name}-*.safetensors" for name in missing)
        return Line((cell.data, names, "", ""), (figure,), f"no {files}")
    sources = [kept[name] for name in cell.networks]
    features = np.concatenate([file.select() for _, file in sources], axis=1)
    labels = sources[0][1].labels
    found = caltech_protocol(
        features, labels, train=paper.TRAIN_IMAGES, test=paper.TEST_IMAGES, splits=paper.SPLITS,
        progress=functools.partial(progress, f"SVM on {names}"),
    )  # fmt: skip
    taps = ", ".join(dict.fromkeys(f"{source.tap} of {source.path.stem}" for source, _ in sources))
    scales = " ".join(dict.fromkeys(str(block.scale) for _, file in sources for block in file.blocks))
    spread = () if found.deviation is None else (found.deviation,)
    return Line((cell.data, names, taps, scales), (Figure(cell.figure, found.mean, spread, cell.deviation),))
