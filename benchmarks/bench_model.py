"""Inference of a whole network, or of its features, by vggfast and by the engines it competes with, on the CPU.

Each engine has a process of its own. Every answer is compared with float64 before anything is timed; then, in each
round, every engine runs once in turn, while the processes of the others are stopped by a signal, so that no idle thread
spins at their cost. A figure is the median over the rounds; the spread is half the distance between the quartiles.
Columns "/ vggfast", "/ bf16-fc", "/ bf16" and "/ int8" are the time over that of vggfast, of vggfast with FC weights
stored in bfloat16, and of vggfast in bfloat16 and int8: above 1, ours is faster. Use an idle machine: a line says where
it was not. Engines of int8 take their scales from the same images, each by its own quantiser.

The peers come from benchmarks/requirements-peers.txt; one that is missing gets a row that says so.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from gpu.choice import gpu_asked_for
from peers import command, report
from peers.network import ALLOWED, Spec, reference_file
from peers.registry import INFERENCE, Engine, chosen
from processor import file_name

OUT = f"benchmarks/results/{file_name('model-cpu')}"
LARGE = 32  # from this batch on: fewer engines and rounds, and one thread for the whole network alone
# Slower forms of the same engines run on all threads only; at a large batch, only the best of each kind.
LEADERS = ("vggfast", "vggfast-bf16-fc", "vggfast-bf16", "vggfast-int8", "ncnn", "mnn", "openvino", "onnxruntime",
           "torch-channels-last-hugepages", "openvino-bf16", "torch-compile-bf16", "openvino-int8", "onnxruntime-int8",
           "torch-compile-int8")  # fmt: skip
BEST = ("vggfast", "vggfast-bf16-fc", "vggfast-bf16", "vggfast-int8", "ncnn", "openvino",
        "torch-channels-last-hugepages", "openvino-bf16", "openvino-int8", "onnxruntime-int8")  # fmt: skip
AVX2_ENGINES = ("vggfast", "vggfast-module", "torch-channels-last-hugepages", "torch-channels-last", "torch-nchw",
                "torch-compile")  # fmt: skip


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_common(made, list(INFERENCE), OUT, seconds=60.0)
    made.add_argument("--batches", nargs="+", type=int, metavar="N", help="images of a call (default 1 8 32)")
    made.add_argument("--parts", nargs="+", choices=ALLOWED["part"], help="what to run (default: features whole)")
    made.add_argument("--network", choices=ALLOWED["network"],
                      help="configuration (default D, and then A at 64x64 with a batch of 64 as well)")  # fmt: skip
    made.add_argument("--size", type=int, metavar="N", help="height and width of the images (default 224)")
    return made


def engines_of(options: argparse.Namespace, large: bool, threads: int) -> list[Engine]:
    """What is asked for; else all of them on several threads, and fewer where each round takes long."""
    if options.engines:
        return chosen(INFERENCE, options.engines)
    if options.isa == "avx2":
        return chosen(INFERENCE, AVX2_ENGINES)
    if options.quick or large:
        return chosen(INFERENCE, BEST)
    return chosen(INFERENCE, LEADERS if threads == 1 else INFERENCE)


def specs(options: argparse.Namespace) -> list[Spec]:
    """What the options ask for; by default A at 64x64 comes last."""
    threads = options.threads or ([2] if options.quick else [2, 1])
    found = []
    for batch in options.batches or ([1, 8] if options.quick else [1, 8, 32]):
        for part in options.parts or ["features", "whole"]:
            for count in threads:
                if batch < LARGE or part == "whole" or count > 1 or options.batches or options.parts:
                    found.append(Spec(options.network or "D", part, options.size or 224, batch, count))
    if not (options.network or options.size or options.batches or options.parts):
        found += [Spec("A", "whole", 64, 64, count) for count in threads]
    return found


def cases(options: argparse.Namespace) -> list[command.Case]:
    """The races that the options ask for."""
    found = []
    for spec in specs(options):
        large = spec.batch >= LARGE and spec.size >= 224
        rounds = options.rounds or (5 if options.quick or large else 9)
        engines = engines_of(options, large, spec.threads)
        if spec.part == "features" and not options.engines:  # it differs in the FC layers alone
            engines = [engine for engine in engines if engine.dtype != "fp32+bf16-fc"]
        found.append(command.Case(spec, engines, rounds, report.title(spec, options.isa)))
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    if gpu_asked_for(arguments):
        from gpu import model

        return model.main(arguments)
    made = parser()
    options = command.parse(made, arguments, OUT)
    try:
        requested = cases(options)
    except ValueError as error:
        made.error(str(error))
    command.run(
        requested, options, reference_file, "VGG inference on the CPU, fp32, bf16 and int8: ms an image, less is better"
    )


if __name__ == "__main__":
    main()
