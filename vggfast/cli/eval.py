"""``vggfast eval``: top-1 and top-5 error of a trained network."""

from __future__ import annotations

import argparse
from pathlib import Path

from vggfast.cli.runs import add_model, load_run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Evaluates densely, as the paper does: whole images, the FC layers as convolutions, the class score map "
        "averaged, image and mirror image averaged."
    )
    parser.epilog = "example: vggfast eval --model runs/demo/model.safetensors --protocol dense"
    add_model(parser)
    parser.add_argument("--data", metavar="SPEC",
                        help="images, in any form that vggfast train --data takes (default: the run's)")  # fmt: skip
    parser.add_argument("--split", choices=("train", "val"), default="val", help="which images (default val)")
    parser.add_argument("--protocol", choices=("single", "dense"), default="dense",
                        help="dense at one scale, or averaged over several (default dense)")  # fmt: skip
    parser.add_argument("--scales", metavar="Q", type=int, nargs="+",
                        help="shorter sides of the rescaled images (default: those of the training)")  # fmt: skip
    parser.add_argument("--no-flip", dest="flip", action="store_false", help="leave the mirror image out")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the figures there too")


def run(parsed: argparse.Namespace) -> int:
    from vggfast.console import Live, print_table
    from vggfast.data import Preprocessing, open_dataset
    from vggfast.evaluate import evaluate_dense
    from vggfast.training.finish import write_json

    model, facts = load_run(parsed.model)
    data = parsed.data or facts["data"]
    # Validation data that were given apart from the training data are taken whole, as in training.
    images = open_dataset(data, parsed.split, whole=parsed.data is None and facts.get("whole", False))
    if images.classes != facts["classes"]:
        raise ValueError(
            f"{parsed.model} knows {len(facts['classes'])} classes that are not the {len(images.classes)} of {data}"
        )
    scales = parsed.scales or (facts["scales"][1:2] if parsed.protocol == "single" else facts["scales"])
    if parsed.protocol == "single" and len(scales) != 1:
        raise ValueError(f"--scales is {scales}: the protocol 'single' wants one")
    preprocessing = Preprocessing.from_dict(facts["preprocessing"])
    with Live("evaluating", len(images)) as live:
        found, _ = evaluate_dense(model, images, preprocessing, scales, flip=parsed.flip, progress=live.to)
    print_table(
        f"{parsed.model} on {data} ({parsed.split}, {len(images)} images)",
        ("protocol", "scales Q", "top-1 error %", "top-5 error %"),
        [(parsed.protocol, " ".join(map(str, scales)), f"{found['top1']:.2f}", f"{found['top5']:.2f}")],
    )
    if parsed.json:
        write_json(
            parsed.json, {"protocol": parsed.protocol, "data": data, "scales": scales, "flip": parsed.flip, **found}
        )
    return 0
