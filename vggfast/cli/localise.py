"""``vggfast localise``: what a network that predicts boxes finds, and its error."""

from __future__ import annotations

import argparse
import functools
from pathlib import Path
from typing import Any

from vggfast.cli.help import describe
from vggfast.cli.options import add_device, start_alone
from vggfast.localisation.boxes import MERGE_THRESHOLD

_EXAMPLES = {
    "eval": "vggfast localise eval --model boxes.safetensors --classifier a.safetensors",
    "predict": "vggfast localise predict a.png --model boxes.safetensors --classifier a.safetensors",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    describe(
        parser, "Finds the boxes of objects in images, or measures how often they are wrong, with a network that "
        "vggfast train --predict box or --predict boxes has made of a classification network.",
        *_EXAMPLES.values(),
    )  # fmt: skip
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="what")
    _add_eval(
        commands.add_parser("eval", help="measure the error by the paper's two protocols, beside that of the mean box")
    )
    _add_predict(commands.add_parser("predict", help="print the classes and boxes of image files"))


def _add_networks(parser: argparse.ArgumentParser, classifier_required: bool, text: str) -> None:
    parser.add_argument("--model", metavar="FILE", type=Path, required=True,
                        help="model.safetensors of a run that learnt boxes, or one of its checkpoints")  # fmt: skip
    parser.add_argument("--classifier", metavar="FILE", type=Path, required=classifier_required, help=text)
    parser.add_argument("--scales", metavar="Q", type=int, nargs="+",
                        help="shorter sides of the rescaled images where whole images are evaluated (default: those "
                        "of the training)")  # fmt: skip
    parser.add_argument("--merge", metavar="X", type=float, default=MERGE_THRESHOLD,
                        help="largest distance of two boxes that are merged into one (default "
                        f"{MERGE_THRESHOLD:g})")  # fmt: skip
    add_device(parser)


def _add_eval(parser: argparse.ArgumentParser) -> None:
    describe(
        parser, "Measures the error of boxes by the paper's two protocols: that of the box that the network gives for "
        "the true class, from the centre crop; and, with --classifier, that of the five likeliest classes and their "
        "boxes, from the whole image. Beside them stands the error of the mean box of the training images.",
        _EXAMPLES["eval"],
    )  # fmt: skip
    _add_networks(parser, False, "classification network that gives the five likeliest classes of an image; without "
                                 "it, only the box of the true class is evaluated")  # fmt: skip
    parser.add_argument("--data", metavar="SPEC", help="images with boxes, tiny-imagenet:DIR or imagenet:DIR (default: "
                        "those of the training)")  # fmt: skip
    parser.add_argument(
        "--split", choices=("train", "val"), default="val", help="which images of the data set (default val)"
    )
    parser.add_argument("--threshold", metavar="IOU", type=float, default=0.5,
                        help="a box is right if its intersection over union with a true box is larger than this "
                        "(default 0.5)")  # fmt: skip
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the errors and settings to this file, too")


def _add_predict(parser: argparse.ArgumentParser) -> None:
    describe(
        parser, "Prints the likeliest classes of each image, and a box for each of them: left, top, right and bottom "
        "in pixels.", _EXAMPLES["predict"],
    )  # fmt: skip
    _add_networks(parser, True, "classification network that gives the likeliest classes of an image")
    parser.add_argument("--top", metavar="K", type=int,
                        help="number of classes to print (default 5, or all if there are fewer)")  # fmt: skip
    parser.add_argument("--draw", metavar="DIR", type=Path,
                        help="write each image to this folder with the box of its likeliest class drawn in, as "
                        "<name>-boxes.png")  # fmt: skip
    parser.add_argument("images", metavar="IMAGE", nargs="+", type=Path, help="image files")


def run(parsed: argparse.Namespace) -> int:
    return _eval(parsed) if parsed.what == "eval" else _predict(parsed)


def _networks(parsed: argparse.Namespace) -> tuple[Any, dict[str, Any], Any]:
    """(network, its metadata, classification network or None), on the device.

    Raises:
        FileNotFoundError, ValueError: no such file, or a network of another kind; the text names it.
    """
    from vggfast.weights import load_model

    model, metadata = load_model(parsed.model)
    if missing := {"predict", "classes", "mean_box", "scales"} - metadata.keys():
        raise ValueError(f"{parsed.model} has no {', '.join(sorted(missing))}: --model must be a network that predicts "
                         "boxes, as vggfast train --predict boxes makes it")  # fmt: skip
    device = start_alone(parsed, "localise").device
    if parsed.classifier is None:
        return model.to(device), metadata, None
    classifier, theirs = load_model(parsed.classifier)
    if theirs.get("classes") != metadata["classes"] or "predict" in theirs:
        raise ValueError(f"--classifier must predict the classes of {parsed.model}, and {parsed.classifier} does not")
    return model.to(device), metadata, classifier.to(device)


def _eval(parsed: argparse.Namespace) -> int:
    from vggfast.console import ProgressBars, print_table
    from vggfast.environment import environment
    from vggfast.io import write_json
    from vggfast.localisation import evaluate, open_boxes
    from vggfast.localisation.report import as_dict, error_table

    model, metadata, classifier = _networks(parsed)
    data = parsed.data or metadata["data"]
    images = open_boxes(data, parsed.split).ordered(metadata["classes"])
    if images.classes != metadata["classes"]:
        raise ValueError(f"{parsed.model} knows {len(metadata['classes'])} classes that are not the "
                         f"{len(images.classes)} of {data}")  # fmt: skip
    scale, scales = metadata["scales"][1], parsed.scales or metadata["scales"]
    with ProgressBars() as bars:
        found = evaluate(
            model, images, scale=scale, classifier=classifier, scales=scales, mean_box=metadata["mean_box"],
            threshold=parsed.threshold, merge_threshold=parsed.merge,
            progress=functools.partial(bars, "localising"),
        )  # fmt: skip
    print_table(*error_table(f"{parsed.model} on {data} ({parsed.split})", found))
    if parsed.json:
        dense = {"classifier": str(parsed.classifier), "scales": scales, "merge": parsed.merge} if classifier else {}
        write_json(parsed.json, {"model": str(parsed.model), "predict": metadata["predict"], "data": data,
                                 "split": parsed.split, "scale": scale, **dense, **as_dict(found),
                                 "environment": environment(1, next(model.parameters()).device)})  # fmt: skip
    return 0


def _predict(parsed: argparse.Namespace) -> int:
    from vggfast.data import ImageFiles
    from vggfast.io import on_one_line, write_atomically
    from vggfast.localisation import dense_boxes
    from vggfast.report.boxes import draw_boxes

    model, metadata, classifier = _networks(parsed)
    classes = metadata["classes"]
    stems = [path.stem for path in parsed.images]
    if parsed.draw and (twice := next((stem for stem in stems if stems.count(stem) > 1), None)):
        raise ValueError(f"--draw must write each file once, and two images are called {on_one_line(twice)}")
    top = min(5, len(classes)) if parsed.top is None else parsed.top
    for path in parsed.images:
        images = ImageFiles([str(path)], classes)
        scales = parsed.scales or metadata["scales"]
        found = dense_boxes(model, classifier, images, scales, top=top, merge_threshold=parsed.merge)
        photo = images.image(0)
        boxes = found.boxes[0].clip(0, 1) * (photo.size * 2)
        labels = [classes[label] for label in found.classes[0]]
        print(f"{on_one_line(path)}  (left, top, right, bottom in pixels)")
        for label, posterior, box in zip(labels, found.posteriors[0], boxes, strict=True):
            print(f"  {posterior:7.2%}  {label}  {' '.join(f'{value:.1f}' for value in box)}")
        if parsed.draw:
            save = functools.partial(draw_boxes(photo, boxes[:1], labels=labels[:1]).save, format="PNG")
            write_atomically(parsed.draw / f"{path.stem}-boxes.png", save)
    return 0
