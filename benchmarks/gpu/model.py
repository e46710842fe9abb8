"""Inference of a whole network on CUDA by vggfast's engine and module, torch and JAX, without autocast, in one dtype.

Each engine has a process of its own. Every answer is compared with float64 before anything is timed; then, in each
round, every engine runs in turn, while the others are stopped. A sample is one call by the GPU's events (JAX: the
host's clock), after the L2 was overwritten. "tuned" is torch.backends.cudnn.benchmark; a "graph" replays a CUDA graph,
which vggfast and torch-compile-autotune do by themselves. With bf16, vggfast-fp8 is the engine of e4m3 between
convolutions, calibrated on images of its own; its answer may be off by more. A figure is the median, the spread half
the distance between the quartiles. Engines that would not fit into the GPU's memory together race in groups, each
with vggfast.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from peers.network import ALLOWED, Spec, reference_file
from peers.registry import Engine

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
    known, memory = inference(options.dtype), choice.memory()
    found = []
    for batch in options.batches:
        default = [name for name in known if batch == 1 or not name.endswith("-graph")]
        default = [name for name in default if name != "vggfast-fp8" or not choice.lacks_fp8()]
        for part in options.parts:
            spec, engines = races.spec(options, part, batch), races.chosen(known, options, default)
            groups = in_groups(engines, int(memory / bytes_of(batch, options.dtype)) if memory else len(engines))
            for number, group in enumerate(groups, 1):
                title = races.title(spec, part) + (f", {number} of {len(groups)}" if len(groups) > 1 else "")
                found.append(races.Case(spec, group, title))
    return found


def bytes_of(batch: int, dtype: str) -> int:
    """What an engine's process may hold, generously (est.): a context, weights and libraries, and for each image of
    224x224 several of the largest maps."""
    return (2 << 30) + batch * (64 << 20) * (1 if dtype in ("bf16", "fp16") else 2)


def in_groups(engines: Sequence[Engine], most: int) -> list[list[Engine]]:
    """As few groups of at most `most` engines as there can be, each with "vggfast" where it is asked for: figures are
    compared within a group."""
    ours = [engine for engine in engines if engine.name == "vggfast"]
    others = [engine for engine in engines if engine.name != "vggfast"]
    each = max(most - len(ours), 1)
    count = max(-(-len(others) // each), 1)
    return [ours + others[i::count] for i in range(count)]


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
