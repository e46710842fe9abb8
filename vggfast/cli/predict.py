"""``vggfast predict``: classes of image files."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vggfast.cli.errors import write_all
from vggfast.cli.help import describe
from vggfast.cli.options import add_machine, add_models, drawn, open_models

if TYPE_CHECKING:
    from vggfast.data import ImageFiles
    from vggfast.evaluate.evaluation import Predictions
    from vggfast.evaluate.networks import Network


def add_arguments(parser: argparse.ArgumentParser) -> None:
    describe(
        parser, "Prints the likeliest classes of each image. Images are evaluated densely, as vggfast eval does; "
        "several networks decide by the average of their posteriors.",
        "vggfast predict a.png b.png --model runs/demo/model.safetensors",
    )  # fmt: skip
    add_models(parser)
    parser.add_argument("--scales", metavar="Q", type=int, nargs="+",
                        help="shorter sides of the rescaled images (default: those of each network's training, or the "
                        "paper's)")  # fmt: skip
    parser.add_argument("--top", metavar="K", type=int,
                        help="number of classes to print (default 5, or all if there are fewer)")  # fmt: skip
    parser.add_argument("--csv", metavar="FILE", type=Path,
                        help="write the predictions to this file: image, the class by each network, the final class, "
                        "its confidence")  # fmt: skip
    parser.add_argument("--sheet", metavar="FILE", type=Path,
                        help="write a page (.html) or a picture (.png) that shows each image, its likeliest classes, "
                        "and heat maps of where the first network sees them")  # fmt: skip
    add_machine(parser)
    parser.add_argument("images", metavar="IMAGE", nargs="+", type=Path, help="image files")


def run(parsed: argparse.Namespace) -> int:
    from vggfast.console import ProgressBars
    from vggfast.distributed import DistributedContext
    from vggfast.evaluate.dataset import Settings
    from vggfast.evaluate.evaluation import predict_networks
    from vggfast.evaluate.fusion import average

    networks = open_models(parsed)
    images = _open(parsed.images, networks)
    top = min(5, len(images.classes)) if parsed.top is None else parsed.top
    if not 1 <= top <= len(images.classes):
        raise ValueError(f"--top must be 1 to {len(images.classes)}, the number of classes, got {top}")
    if parsed.sheet:
        from vggfast.report.sheet import check_sheet, write_sheet

        check_sheet(parsed.sheet, len(images))
    scales = [tuple(parsed.scales or network.scales("dense")) for network in networks]
    settings = Settings(memory=parsed.memory)
    with DistributedContext.start(parsed.device) as context:
        with drawn(context) as told:
            done = predict_networks(networks, scales, settings, images, context, **told)
        if done is None:
            return 0
        _print(done, top)

        def write_shown() -> None:
            model = networks[0].load().to(context.device)
            with ProgressBars() as bars:
                write_sheet(
                    parsed.sheet, model, images, average(done.posteriors), top,
                    progress=functools.partial(bars, "heat maps"),
                )  # fmt: skip

        writes = [functools.partial(done.write_csv, parsed.csv, parsed.fusion)] if parsed.csv else []
        return write_all(*writes, *([write_shown] if parsed.sheet else []))


def _open(paths: Sequence[Path], networks: Sequence[Network]) -> ImageFiles:
    from vggfast.data import ImageFiles

    classes = next((network.classes for network in networks if network.classes is not None), None)
    if classes is None:
        raise ValueError(f"{networks[0].path} has no names of its classes: give --classes FILE")
    return ImageFiles([str(path) for path in paths], classes)


def _print(done: Predictions, top: int) -> None:
    from vggfast.evaluate.fusion import average
    from vggfast.io import on_one_line

    best = average(done.posteriors).topk(top)
    for i, (values, indices) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True)):
        print(on_one_line(done.images.source(i)))
        for value, index in zip(values, indices, strict=True):
            print(f"  {value:7.2%}  {done.images.classes[index]}")
