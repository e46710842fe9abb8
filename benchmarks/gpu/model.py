"""Inference of a whole network on CUDA by vggfast's engine and module, torch and JAX, without autocast, in one dtype.

Each engine has a process of its own. Every answer is compared with float64 before anything is timed; then, in each
round, every engine runs in turn, while the others are stopped. A sample is one call by the GPU's events (JAX: the
host's clock), after the L2 was overwritten. "tuned" is torch.backends.cudnn.benchmark; a "graph" replays a CUDA graph,
which vggfast and torch-compile-autotune do by themselves. With bf16, vggfast-fp8 is the engine of e4m3 between
convolutions, calibrated on images of its own; its answer may be off by more. A figure is the median, the spread half
the distance between the quartiles.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from peers.network import ALLOWED, Spec, reference_file

from gpu import choice, races
from gpu.choice import require_gpu
from gpu.registry import inference

BATCHES = (1, 64, 128, 256)
CHECKED_IMAGES = 2


def parser() -> argparse.ArgumentParser:
    made = races.parser(__doc__, "model", list(inference("bf16")), BATCHES)
    made.add_argument("--parts", nargs="+", choices=ALLOWED["part"], default=["whole"],
                      help="what to run (default: whole)")  # fmt: skip
    races.add_rounds(made)
    return made


def cases(options: argparse.Namespace) -> list[races.Case]:
    """The races that the options ask for; graphs at batch 1 unless --engines names them."""
    known = inference(options.dtype)
    found = []
    for batch in options.batches:
        default = [name for name in known if batch == 1 or not name.endswith("-graph")]
        default = [name for name in default if name != "vggfast-fp8" or not choice.lacks_fp8()]
        for part in options.parts:
            spec = races.spec(options, part, batch)
            found.append(races.Case(spec, races.chosen(known, options, default), races.title(spec, part)))
    return found


def reference(spec: Spec, cache: Path) -> Path:
    """The first images' answers in float64."""
    return reference_file(Spec(**{**spec.as_dict(), "batch": min(spec.batch, CHECKED_IMAGES)}), cache)


def main(arguments: Sequence[str] | None = None) -> None:
    made = parser()
    options = races.parse(made, arguments, "model")
    try:
        requested = cases(options)
    except ValueError as error:
        made.error(str(error))
    require_gpu(made)
    races.run(requested, options, reference, f"VGG inference on CUDA, {options.dtype}: ms an image, less is better")
