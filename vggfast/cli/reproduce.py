"""``vggfast reproduce``: a table of the paper, run on the weights and data that are there."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vggfast.cli.errors import UsageError
from vggfast.cli.help import describe
from vggfast.cli.options import add_classes, add_images, drawn

if TYPE_CHECKING:
    from vggfast.distributed import DistributedContext
    from vggfast.reproduce.tables import Result

TABLES = ("table3", "table4", "table5", "table6", "localisation", "appendix-b", "tiny-imagenet", "tiny-imagenet-boxes")
_CLASSIFICATION = (*TABLES[:4], "tiny-imagenet")
# Options that the others have no use for, with their defaults.
_OF_TABLES = {"flip": True, "on_bad_image": "fail", "overwrite": False, "classes": None, "memory": 2 << 30}

_DESCRIPTION = (
    "Runs what a table of the paper needs, and prints it beside the paper's figures. A row that cannot be run says "
    "why.\n\n"
    "  table3        one test scale: A, A-LRN, B, C, D, E\n"
    "  table4        several test scales, dense\n"
    "  table5        dense, multi-crop, and both: D and E\n"
    "  table6        D and E together\n"
    "  localisation  appendix A: boxes\n"
    "  appendix-b    appendix B: features for another data set, with a linear SVM\n"
    "  tiny-imagenet, tiny-imagenet-boxes\n"
    "                five networks beside a replication on Tiny-ImageNet; appendix A there\n\n"
    "The folder --weights holds a file for each network, <configuration>-<regime>.safetensors, such as "
    "A-LRN-256.safetensors or D-jitter.safetensors. The regimes are the scales of training: 256 and 384 for S = 256 "
    "and S = 384, jitter for S from [256, 512]; for networks smaller than the paper's, what corresponds to these. "
    "The table localisation reads D-localise-pcr.safetensors, D-localise-pcr-fc.safetensors and "
    "D-localise-scr-fc.safetensors. The table appendix-b reads D-*.safetensors and E-*.safetensors, or "
    "vgg16-conv.safetensors, which has the convolutions alone. The tables of tiny-imagenet read all weight files and "
    "all folders of runs, of any names, and find in them which network each is.\n\n"
    "With --out, posteriors and features are kept for all tables, and the same command continues one that was stopped. "
    "The exit code is 1 where no row could be run."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    describe(parser, _DESCRIPTION, "vggfast reproduce table4 --data imagenet:DIR --weights weights --out runs/paper")
    parser.add_argument("table", choices=TABLES, metavar="TABLE", help=", ".join(TABLES))
    parser.add_argument("--data", metavar="SPEC", required=True, help="images, in any form that vggfast train --data "
                        "takes")  # fmt: skip
    parser.add_argument("--weights", metavar="DIR", type=Path, required=True, help="folder of the networks, see above")
    parser.add_argument("--out", metavar="DIR", type=Path,
                        help="folder for TABLE.json and TABLE.md, and for what they are made of")  # fmt: skip
    parser.add_argument("--scales", metavar="Q", type=int, nargs="+",
                        help="for appendix-b: shorter sides of the rescaled images (default: those of the networks' "
                        "training, or 256 384 512)")  # fmt: skip
    add_classes(parser)
    add_images(parser)


def run(parsed: argparse.Namespace) -> int:
    if not parsed.weights.is_dir():
        raise FileNotFoundError(f"--weights is {parsed.weights}: no such folder")
    if parsed.scales and parsed.table != "appendix-b":
        raise UsageError(f"--scales is for appendix-b; those of {parsed.table} are the paper's")
    if parsed.table not in _CLASSIFICATION:
        given = [name for name, default in _OF_TABLES.items() if getattr(parsed, name) != default]
        if given:
            raise UsageError(
                f"{', '.join(map(_option, given))}: for {', '.join(_CLASSIFICATION)}, not for {parsed.table}"
            )
    from vggfast.console import print_table, say
    from vggfast.distributed import DistributedContext

    with DistributedContext.start(parsed.device) as context:
        if context.size > 1 and parsed.table not in _CLASSIFICATION:
            raise UsageError(f"{parsed.table} is for one process: call it without torchrun")
        with drawn(context) as told:
            result = _run(parsed, context, told)
        if context.main:
            print_table(*result.table())
            for text in result.remarks():
                say(text)
            if parsed.out:
                result.write(parsed.out)
    return 1 if all(line.why for line in result.lines) else 0


def _option(name: str) -> str:
    return "--no-flip" if name == "flip" else f"--{name.replace('_', '-')}"


def _run(parsed: argparse.Namespace, context: DistributedContext, told: dict[str, Any]) -> Result:
    if parsed.table == "localisation":
        from vggfast.reproduce.appendices import run_localisation

        return run_localisation(parsed.weights, parsed.data, parsed.split, context, told["progress"])
    if parsed.table == "appendix-b":
        from vggfast.reproduce.appendices import run_features

        return run_features(parsed.weights, parsed.data, context, parsed.scales or (), parsed.out, told["progress"])
    if parsed.table == "tiny-imagenet-boxes":
        from vggfast.reproduce.replication import run_boxes

        return run_boxes(parsed.weights, parsed.data, parsed.split, context, told["progress"])
    from vggfast.data import open_dataset
    from vggfast.data.sources.listing import read_classes
    from vggfast.evaluate.dataset import Settings
    from vggfast.reproduce.classification import Bench, run_table
    from vggfast.reproduce.replication import Collection, run_classification

    settings = Settings(flip=parsed.flip, memory=parsed.memory, on_bad_image=parsed.on_bad_image)
    images = open_dataset(parsed.data, parsed.split)
    classes = read_classes(parsed.classes) if parsed.classes else None
    ours = parsed.table == "tiny-imagenet"
    bench = (Collection if ours else Bench)(
        parsed.weights, parsed.data, parsed.split, images, settings, context, parsed.out, parsed.overwrite, classes,
        **told,
    )  # fmt: skip
    return run_classification(bench) if isinstance(bench, Collection) else run_table(bench, parsed.table)
