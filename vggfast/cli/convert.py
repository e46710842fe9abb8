"""``vggfast convert``: networks of other frameworks as ours, and ours as theirs."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from vggfast.weights.convert import TARGETS
    from vggfast.weights.formats import CONVENTIONS, FORMATS

    parser.description = (
        "Reads a VGG of another framework, strictly: each tensor must be one of the network's, and none may be "
        "missing. What it takes (order of channels, range, mean, deviation) is kept in the file that is written."
    )
    parser.epilog = "example: vggfast convert vgg16_weights_tf_dim_ordering_tf_kernels.h5 vgg16.safetensors"
    parser.add_argument("source", metavar="SOURCE", type=Path,
                        help="the file; of a TensorFlow checkpoint of several files, their prefix")  # fmt: skip
    parser.add_argument("out", metavar="OUT", type=Path, help="the file to write; its suffix may say the format")
    parser.add_argument("--from", dest="source_format", choices=FORMATS,
                        help="the format of SOURCE (default: what its content or suffix says)")  # fmt: skip
    parser.add_argument("--to", choices=TARGETS,
                        help="the format of OUT (default: by its suffix, .safetensors being ours)")  # fmt: skip
    parser.add_argument("--preprocessing", choices=CONVENTIONS,
                        help="what the network takes, if not what the file or its format says: "
                        "as networks of this format do")  # fmt: skip
    parser.add_argument("--classes", metavar="FILE", type=Path, help="a text file with a class name a line")
    parser.add_argument("--features", metavar="FILE", type=Path,
                        help="the convolutions, where SOURCE has the FC layers alone")  # fmt: skip
    parser.add_argument("--features-only", action="store_true", help="leave out whatever is no convolution's")


def run(parsed: argparse.Namespace) -> int:
    from vggfast.evaluate.networks import class_names
    from vggfast.weights.convert import describe, target_of, write
    from vggfast.weights.formats import CONVENTIONS, read

    target = target_of(parsed.out, parsed.to)
    classes = None if parsed.classes is None else class_names(parsed.classes)
    found = read(
        parsed.source, parsed.source_format, features=parsed.features, features_only=parsed.features_only,
        preprocessing=CONVENTIONS.get(parsed.preprocessing),
    )  # fmt: skip
    model, arguments = found.model, found.model.arguments
    print(f"read           {parsed.source}: {found.format}, {found.part}")
    sizes = f"width {arguments['width']:g}, {arguments['in_channels']} channels in"
    if model.head != "none":
        sizes += f", {arguments['num_classes']} classes, hidden {arguments['hidden']}, pool {arguments['pool_size']}"
    print(
        f"network        {arguments['config']}{' with batch norm' if arguments['batch_norm'] else ''}: {sizes}, "
        f"{sum(parameter.numel() for parameter in model.parameters()):,} parameters"
    )
    print(f"preprocessing  {describe(model.preprocessing)} ({found.origin})")
    note = write(found, parsed.out, target, classes)
    print(f"wrote          {parsed.out}: {target}, {note}")
    return 0
