"""Steps with a gradient on CUDA by vggfast's module, torch and JAX, without autocast, in one dtype.

training: forward with dropout, cross-entropy, backward, SGD with momentum. perceptual: features with frozen weights,
their mean square, and its gradient to the images. Before the clock runs, gradients are compared with those of torch in
float64: of the convolutions' parameters with dropout off, or of the images. Processes, turns and samples as with
bench_model.py --device cuda.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from gpu import races, steps
from gpu.choice import require_gpu
from gpu.registry import steps as engines

BATCHES = (64, 128)
USES = ("training", "perceptual")


def parser() -> argparse.ArgumentParser:
    made = races.parser(__doc__, "train", list(engines("bf16", "training")), BATCHES)
    made.add_argument("--uses", nargs="+", choices=USES, default=list(USES), help="what to time (default: both)")
    races.add_rounds(made)
    return made


def cases(options: argparse.Namespace) -> list[races.Case]:
    """The races that the options ask for."""
    found = []
    for use in options.uses:
        known = engines(options.dtype, "training")
        chosen = races.chosen(known, options, list(known))
        known = engines(options.dtype, use)
        for batch in options.batches:
            spec = races.spec(options, "whole" if use == "training" else "features", batch)
            name = races.title(spec, f"{use} step")
            found.append(races.Case(spec, [known[e.name] for e in chosen if e.name in known], name))
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    made = parser()
    options = races.parse(made, arguments, "train")
    try:
        requested = cases(options)
    except ValueError as error:
        made.error(str(error))
    require_gpu(made)
    races.run(requested, options, steps.reference_file,
              f"VGG steps on CUDA, {options.dtype}: ms an image, less is better")  # fmt: skip
