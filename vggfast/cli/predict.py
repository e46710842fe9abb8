"""``vggfast predict``: classes of image files."""

from __future__ import annotations

import argparse
from pathlib import Path

from vggfast.cli.runs import add_model, load_run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Prints the likeliest classes of each image, evaluated densely as by vggfast eval."
    parser.epilog = "example: vggfast predict --model runs/demo/model.safetensors a.png"
    add_model(parser)
    parser.add_argument("--scales", metavar="Q", type=int, nargs="+", help="as for eval")
    parser.add_argument("--top", metavar="K", type=int, default=5, help="classes to print (default 5)")
    parser.add_argument("images", metavar="IMAGE", nargs="+", type=Path)


def run(parsed: argparse.Namespace) -> int:
    from vggfast.data import Preprocessing
    from vggfast.evaluate import dense

    model, facts = load_run(parsed.model)
    classes = facts["classes"]
    if not 1 <= parsed.top <= len(classes):
        raise ValueError(f"--top is {parsed.top}: 1 to {len(classes)}, the number of classes, is wanted")
    preprocessing = Preprocessing.from_dict(facts["preprocessing"])
    for path in parsed.images:
        posteriors = dense(model, [path], parsed.scales or facts["scales"], preprocessing=preprocessing)[0]
        best = posteriors.topk(parsed.top)
        print(path)
        for value, index in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            print(f"  {value:7.2%}  {classes[index]}")
    return 0
