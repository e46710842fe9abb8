"""A training step by vggfast's module and by torch: forward, cross-entropy, backward, SGD with momentum, on the CPU;
in float32, and under autocast for bfloat16.

Dropout is on while the clock runs. Before that the gradients of all parameters, dropout off, are compared with those
of torch in float64. One process per engine, turns and figures as in bench_model.py. A ratio above 1 means that
vggfast is faster.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from gpu.choice import gpu_asked_for
from peers import command, report
from peers.network import ALLOWED, Spec
from peers.registry import TRAINING, chosen
from processor import file_name

OUT = f"benchmarks/results/{file_name('train-cpu')}"
CASES = [("D", 224, 8), ("A", 64, 64)]


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_common(made, list(TRAINING), OUT, seconds=120.0)
    made.add_argument("--batches", nargs="+", type=int, metavar="N",
                      help="images of a step (default: D at 224 with 8, and A at 64 with 64)")  # fmt: skip
    made.add_argument("--network", choices=ALLOWED["network"], help="configuration (default D with --batches)")
    made.add_argument("--batch-norm", action="store_true", help="networks with batch norm (torchvision's _bn variants)")
    made.add_argument("--size", type=int, metavar="N", help="height and width (default 224 with --batches)")
    return made


def cases(options: argparse.Namespace) -> list[command.Case]:
    """The races that the options ask for."""
    requested = CASES
    if options.batches or options.network or options.size:
        requested = [(options.network or "D", options.size or 224, batch) for batch in options.batches or [8]]
    elif options.quick:
        requested = CASES[1:]
    engines = chosen(TRAINING, options.engines or TRAINING)
    rounds = options.rounds or (3 if options.quick else 7)
    found = []
    for network, size, batch in requested:
        for threads in options.threads or ([2] if options.quick else [2, 1]):
            spec = Spec(network, "whole", size, batch, threads, batch_norm=options.batch_norm)
            name = report.title(spec, options.isa, "training step")
            found.append(command.Case(spec, engines, rounds, name))
    return found


def reference(spec: Spec, cache: Path) -> Path:
    from peers import training

    return training.reference_file(spec, cache)


def main(arguments: Sequence[str] | None = None) -> None:
    if gpu_asked_for(arguments):
        from gpu import train

        return train.main(arguments)
    made = parser()
    options = command.parse(made, arguments, OUT)
    try:
        requested = cases(options)
    except ValueError as error:
        made.error(str(error))
    command.run(requested, options, reference, "VGG training step on the CPU: ms an image, less is better")


if __name__ == "__main__":
    main()
