"""``vggfast convert``: networks of other frameworks as ours, and ours as theirs."""

from __future__ import annotations

import argparse
from pathlib import Path

from vggfast.cli.help import describe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from vggfast.weights.convert import TARGETS
    from vggfast.weights.formats import CONVENTIONS, FORMATS

    describe(
        parser, "Reads a VGG network of another framework, or of ours, and writes it in another format. Every tensor "
        "of SOURCE must belong to the network, and none may be missing; a softmax behind its scores is left out. OUT "
        "keeps how images are prepared for the network (order of channels, range, mean, standard deviation), if its "
        "format has a place for that. Of a network of 8 bits (ONNX's QDQ, or PyTorch's PT2E in a .pt2 file), "
        "ours keeps the whole numbers and scales.",
        "vggfast convert vgg16_weights_tf_dim_ordering_tf_kernels.h5 vgg16.safetensors",
        "vggfast convert runs/photos/model.safetensors photos.onnx",
    )  # fmt: skip
    parser.add_argument("source", metavar="SOURCE", type=Path,
                        help="the file to read; for a TensorFlow checkpoint of several files, the prefix of their "
                        "names; beside a .caffemodel, STEM.prototxt, STEM_deploy.prototxt or deploy.prototxt says its "
                        "layers")  # fmt: skip
    parser.add_argument("out", metavar="OUT", type=Path, help="the file to write")
    parser.add_argument("--from", dest="source_format", choices=FORMATS,
                        help="format of SOURCE (default: told from its content or suffix)")  # fmt: skip
    parser.add_argument("--to", choices=TARGETS,
                        help="format of OUT (default: told from its suffix; .safetensors is ours)")  # fmt: skip
    parser.add_argument("--preprocessing", choices=CONVENTIONS,
                        help="prepare images as networks of this format do, instead of as SOURCE or its format "
                        "says")  # fmt: skip
    parser.add_argument("--classes", metavar="FILE", type=Path,
                        help="a text file with the name of a class on each line")  # fmt: skip
    parser.add_argument("--features", metavar="FILE", type=Path,
                        help="file of the convolutions, if SOURCE has the FC layers alone")  # fmt: skip
    parser.add_argument("--key", metavar="NAME",
                        help="the state_dict to read, if a checkpoint of torch's has several: model_ema, or "
                        "state_dict.teacher, whose last part may be a prefix of names")  # fmt: skip
    parser.add_argument(
        "--features-only", action="store_true", help="convert the convolutions alone, without the FC layers"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace OUT, if there is such a file")
    parser.add_argument("--allow-non-finite", action="store_true",
                        help="take weights that are infinite or NaN, and negative variances")  # fmt: skip


def run(parsed: argparse.Namespace) -> int:
    from vggfast.weights.convert import describe as in_words
    from vggfast.weights.convert import target_of, write
    from vggfast.weights.formats import CONVENTIONS, read

    target = target_of(parsed.out, parsed.to)
    if parsed.out.exists() and not parsed.overwrite:
        raise FileExistsError(f"{parsed.out} exists already: give another name, or --overwrite")
    classes = None
    if parsed.classes is not None:
        from vggfast.data.sources.listing import read_classes  # it reads images, too, and needs a package for that

        classes = read_classes(parsed.classes)
    found = read(
        parsed.source, parsed.source_format, features=parsed.features, features_only=parsed.features_only,
        preprocessing=CONVENTIONS.get(parsed.preprocessing), key=parsed.key,
        allow_non_finite=parsed.allow_non_finite,
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
    for note in found.notes:
        print(f"note           {note}")
    print(f"preprocessing  {in_words(model.preprocessing)} ({found.origin})")
    note = write(found, parsed.out, target, classes)
    print(f"wrote          {parsed.out}: {target}, {note}")
    return 0
