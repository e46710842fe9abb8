"""``vggfast features``: pooled features of a data set, for an SVM or whatever else."""

from __future__ import annotations

import argparse
import functools
from pathlib import Path

from vggfast.cli.help import describe
from vggfast.cli.options import add_device, start_alone


def add_arguments(parser: argparse.ArgumentParser) -> None:
    describe(
        parser, "Extracts features as in the paper's appendix B: from whole images at each scale; the maps of a layer "
        "are pooled over space and averaged with those of the mirror image.\n\n"
        "Each combination of layer, pooling and scale stays a block of its own in the file. Blocks are neither "
        "normalised nor combined: vggfast svm does that with the blocks that it is told to use. The same command "
        "continues an extraction that was stopped.",
        "vggfast features --model vgg16.safetensors --data imagefolder:DIR --out features.npz",
        "vggfast features --model d.safetensors --data digits --taps relu5_3 pool5 --scales 224 --out f.npz",
    )  # fmt: skip
    parser.add_argument("--model", metavar="FILE", type=Path, required=True,
                        help="a run's model.safetensors, a checkpoint of a run, or a file that vggfast convert or "
                        "vggfast weights wrote")  # fmt: skip
    parser.add_argument("--data", metavar="SPEC", required=True, help="images, in any form that vggfast train --data "
                        "takes")  # fmt: skip
    parser.add_argument("--split", choices=("train", "val", "all"), default="all", help="which images of the data set "
                        "(default all)")  # fmt: skip
    parser.add_argument("--taps", metavar="TAP", nargs="+", default=["pool5"],
                        help="layers whose maps are taken: conv1_1 ... relu5_3, pool5; or penultimate, the second FC "
                        "layer (default pool5)")  # fmt: skip
    parser.add_argument("--scales", metavar="Q", type=int, nargs="+", default=[256, 384, 512],
                        help="shorter sides of the rescaled images (default 256 384 512)")  # fmt: skip
    parser.add_argument("--pool", choices=("mean", "max"), nargs="+", default=["mean"],
                        help="how maps are pooled over space; with both, each gives a block "
                        "(default mean)")  # fmt: skip
    parser.add_argument("--no-flip", dest="flip", action="store_false", help="do not average with the mirror images")
    add_device(parser)
    parser.add_argument("--out", metavar="FILE.npz|DIR", type=Path, required=True,
                        help="file to write, or folder for .npy files and features.json")  # fmt: skip


def run(parsed: argparse.Namespace) -> int:
    from vggfast._version import __version__
    from vggfast.console import ProgressBars, say
    from vggfast.data import open_dataset
    from vggfast.features import Extractor, extract_dataset
    from vggfast.io import WeightFile
    from vggfast.weights.files import model_of

    if parsed.out.suffix == ".npy":
        raise ValueError(f"--out must be FILE.npz, or a folder for .npy files, got {parsed.out}")
    file = WeightFile(parsed.model)
    model, _ = model_of(file)
    if model.preprocessing is None:
        raise ValueError(f"{parsed.model} does not say what preprocessing its network was trained on")
    context = start_alone(parsed, "features")
    extractor = Extractor(model.to(context.device), parsed.taps, parsed.scales, pool=parsed.pool, flip=parsed.flip)
    splits = ("train", "val") if parsed.split == "all" else (parsed.split,)
    sets = [open_dataset(parsed.data, split) for split in splits]
    metadata = {
        "vggfast": __version__, "model": str(parsed.model), "model_sha256": file.sha256,
        "data": parsed.data, "split": parsed.split,
    }  # fmt: skip
    with ProgressBars() as bars:
        made = extract_dataset(extractor, sets, parsed.out, metadata, progress=functools.partial(bars, "extracting"))
    say(f"{parsed.out}: {len(made.labels)} images, {made.features.shape[1]} values each, "
        f"{made.metadata['seconds']:.0f} s, {made.metadata['images_per_second']:.1f} images/s")  # fmt: skip
    for block in made.blocks:
        say(f"  {block.name}  {block.dims}")
    return 0
