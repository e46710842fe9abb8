"""``vggfast eval``: top-1 and top-5 error of trained networks, alone and together."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vggfast.cli.errors import UsageError, write_all
from vggfast.cli.help import describe
from vggfast.cli.options import add_images, add_models, drawn, open_models

if TYPE_CHECKING:
    from vggfast.evaluate.networks import Network

_DESCRIPTION = (
    "Measures the top-1 and top-5 error of networks on a data set by one of the paper's protocols:\n"
    "  single      dense at one scale: the FC layers run as convolutions over the whole image, the class\n"
    "              score map is averaged, and the image's scores are averaged with its mirror image's\n"
    "  dense       the same, averaged over several scales\n"
    "  multi-crop  5 x 5 crops at each scale, and their mirror images\n"
    "  both        the average of dense and multi-crop\n\n"
    "Several networks are evaluated one by one, then together: by the average of their posteriors, and by a vote.\n\n"
    "With --out, results are kept as they are computed, and the same command continues an evaluation that was stopped. "
    "Under torchrun, the processes share the images."
)
_EXAMPLES = (
    "vggfast eval --model runs/demo/model.safetensors",
    "vggfast eval --models d.safetensors e.safetensors --protocol both --out runs/d-e",
    "torchrun --nproc-per-node=8 -m vggfast eval --model d.safetensors --data imagenet:DIR --out runs/d",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    describe(parser, _DESCRIPTION, *_EXAMPLES)
    add_models(parser)
    parser.add_argument("--data", metavar="SPEC",
                        help="images, in any form that vggfast train --data takes (default: those that the networks "
                        "were trained with)")  # fmt: skip
    parser.add_argument("--protocol", choices=("single", "dense", "multi-crop", "both"), default="dense",
                        help="how to evaluate, see above (default dense)")  # fmt: skip
    parser.add_argument("--scales", metavar="Q", type=int, nargs="+",
                        help="shorter sides of the rescaled images (default: those of each network's training, or the "
                        "paper's)")  # fmt: skip
    parser.add_argument("--pool", choices=("mean", "sum"), default="mean",
                        help="whether the scores of an image are the mean or the sum of its class score map "
                        "(default mean)")  # fmt: skip
    parser.add_argument(
        "--out", metavar="DIR", type=Path, help="folder for all results; the same command continues from what is there"
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the errors and settings to this file")
    parser.add_argument("--csv", metavar="FILE", type=Path,
                        help="write the predictions to this file: image, its class, the class by each network, the "
                        "final class, its confidence")  # fmt: skip
    add_images(parser)


def run(parsed: argparse.Namespace) -> int:
    if parsed.protocol == "single" and len(parsed.scales or [0]) != 1:
        raise UsageError(f"--scales must be one scale for the protocol 'single', got {parsed.scales}")
    from vggfast.console import print_table
    from vggfast.data import open_dataset
    from vggfast.distributed import DistributedContext
    from vggfast.evaluate.dataset import Settings
    from vggfast.evaluate.evaluation import Order, evaluate_networks
    from vggfast.io import write_json

    settings = Settings(parsed.protocol, parsed.flip, parsed.pool, parsed.memory, parsed.on_bad_image)
    networks = open_models(parsed)
    data, whole = (parsed.data, False) if parsed.data else _trained_on(networks)
    images = open_dataset(data, parsed.split, whole=whole)
    scales = [tuple(parsed.scales or network.scales(parsed.protocol)) for network in networks]
    order = Order(data, parsed.split, scales, settings)
    with DistributedContext.start(parsed.device) as context:
        with drawn(context) as told:
            done = evaluate_networks(
                order, networks, images, context, parsed.out, overwrite=parsed.overwrite, fusion=parsed.fusion, **told
            )
        if done is None:
            return 0
        print_table(*done.table())
        return write_all(
            *([lambda: write_json(parsed.json, done.content(parsed.fusion))] if parsed.json else []),
            *([lambda: done.write_csv(parsed.csv, parsed.fusion)] if parsed.csv else []),
        )


def _trained_on(networks: Sequence[Network]) -> tuple[str, bool]:
    """(data, whether all of them are of the split) that the networks were trained with.

    Validation data that were given apart from the training data are taken whole, as in training.
    """
    said = {(net.metadata.get("data", ""), net.metadata.get("whole", False)): net.path for net in networks}
    found = next(iter(said))
    if len(said) > 1 or not found[0]:
        listed = "; ".join(f"{path} {data or 'does not say'}" for (data, _), path in said.items())
        raise UsageError(f"--data must be given; what the networks were trained with: {listed}")
    return found
