"""``vggfast stylise``: the content of one picture in the style of another."""

from __future__ import annotations

import argparse
import functools
from pathlib import Path
from typing import TYPE_CHECKING

from vggfast.cli.help import describe
from vggfast.cli.options import add_device, start_alone

if TYPE_CHECKING:
    from PIL import Image


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from vggfast.style_transfer import OPTIMISERS, STARTS, STYLE_WEIGHT

    describe(
        parser, "Writes a picture with the content of one picture and the style of another, by an optimiser on its "
        "pixels (Gatys et al. 2016). The network is that of vggfast weights get vgg16-conv, unless --model names "
        "another.",
        "vggfast stylise --content photo.jpg --style painting.jpg --out stylised.png",
        "vggfast stylise --content a.jpg --style b.jpg --out c.png --size 512 --scales 3",
    )  # fmt: skip
    parser.add_argument("--content", metavar="IMAGE", type=Path, required=True, help="picture whose content it has")
    parser.add_argument("--style", metavar="IMAGE", type=Path, required=True, help="picture whose style it has")
    parser.add_argument("--out", metavar="FILE.png", type=Path, required=True, help="picture to write")
    parser.add_argument("--model", metavar="FILE", help="a network that vggfast convert or a run wrote (default: the "
                        "published convolutions of VGG-16)")  # fmt: skip
    parser.add_argument("--size", "--content-size", metavar="Q", type=int, default=256,
                        help="pixels of the result's shorter side, to which both pictures are rescaled "
                        "(default 256)")  # fmt: skip
    parser.add_argument("--scales", metavar="N", type=int, default=2, help="sizes to go through, each twice the one "
                        "before it (default 2)")  # fmt: skip
    parser.add_argument("--steps", metavar="N", type=int, default=100, help="steps at each scale (default 100)")
    parser.add_argument("--optimiser", choices=OPTIMISERS, default="lbfgs",
                        help="what makes the steps (default lbfgs)")  # fmt: skip
    parser.add_argument("--init", choices=STARTS, default="content", help="what to start from (default content)")
    parser.add_argument("--content-weight", metavar="W", type=float, default=1.0, help="weight of the distance from "
                        "the content (default 1)")  # fmt: skip
    parser.add_argument("--style-weight", metavar="W", type=float, default=STYLE_WEIGHT,
                        help=f"weight of the distance from the style (default {STYLE_WEIGHT:g})")  # fmt: skip
    parser.add_argument("--tv-weight", metavar="W", type=float, default=0.0,
                        help="weight of the total variation, against noise (default 0)")  # fmt: skip
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="of --init noise (default 0)")
    parser.add_argument("--save-every", metavar="N", type=int, help="write the picture after each N steps too, as "
                        "FILE-STEP.png")  # fmt: skip
    add_device(parser)


def run(parsed: argparse.Namespace) -> int:
    from vggfast._checks import check_whole
    from vggfast.console import ProgressBars, say
    from vggfast.data.decode import open_image
    from vggfast.style_transfer import picture_of, stylise

    if parsed.out.suffix.lower() != ".png":
        raise ValueError(f"--out must end in .png, got {parsed.out}")
    every = None if parsed.save_every is None else check_whole(parsed.save_every, "--save-every", 1)
    context = start_alone(parsed, "stylise")

    def watch(step, x) -> None:
        if every is not None and step % every == 0:
            _write(parsed.out.with_name(f"{parsed.out.stem}-{step:05d}.png"), picture_of(x))

    with ProgressBars() as bars:
        made = stylise(
            open_image(parsed.content), open_image(parsed.style), net=parsed.model or "vgg16", size=parsed.size,
            scales=parsed.scales, steps=parsed.steps, optimiser=parsed.optimiser, start=parsed.init,
            content_weight=parsed.content_weight, style_weight=parsed.style_weight, tv_weight=parsed.tv_weight,
            seed=parsed.seed, device=context.device, progress=functools.partial(bars, "stylising"), watch=watch,
        )  # fmt: skip
    _write(parsed.out, made)
    say(f"{parsed.out}: {made.width} x {made.height}")
    return 0


def _write(path: Path, picture: Image.Image) -> None:
    from vggfast.io import write_atomically

    write_atomically(path, lambda temporary: picture.save(temporary, format="PNG"))
