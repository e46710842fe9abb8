"""What one GPU or machine does in a training step alone, for benchmarks/data_parallel.py: three machines.

`cpu` is measured (train-cpu-zen.json); `h200` is an estimate made of estimates (roofline-h200.json and
predicted-h200.json); `paper` is arithmetic on what the paper says. How a whole step is shared out among passes and
layers is reckoned from multiply-adds wherever the file holds the step as a whole.
"""

from __future__ import annotations

import functools
import json
import math
import statistics
from pathlib import Path

from data_parallel import Layer, Step, layers_of
from predict import STEPS

RESULTS = Path(__file__).resolve().parent / "results"
PAPER_ITERATIONS, PAPER_SPEEDUP, PAPER_BATCH = 370_000, 3.75, 256
# Of the update by SGD with momentum, bytes a parameter: fp32 weight, gradient and momentum read, weight and momentum
# written, and the bf16 copy of the weight that products take.
UPDATE_BYTES = 22


def gradients(config: str) -> tuple[tuple[int, ...], ...]:
    """Values of each layer's gradients, last layer first."""
    return tuple(layer.tensors for layer in reversed(layers_of(config)))


def by_multiply_adds(config: str, seconds: float) -> Step:
    """A step of so many seconds in all: a pass of a layer takes as long as it has multiply-adds.

    There are three passes: forward, and backward by the weights and by the input, which the first layer does not need.
    """
    layers = layers_of(config)
    passes = [(2 if layer is not layers[0] else 1) * layer.multiply_adds for layer in layers]
    unit = seconds / (sum(passes) + sum(layer.multiply_adds for layer in layers))
    backward = tuple(unit * some for some in reversed(passes))
    return Step(seconds - sum(backward), backward, gradients(config))


@functools.cache
def results(name: str) -> dict:
    return json.loads((RESULTS / name).read_text())


def cpu(batch: int) -> Step:
    """D, fp32, on the 2-core machine of train-cpu-zen.json: its step of 8 images, times batch / 8."""
    case = {"network": "D", "size": 224, "batch": 8, "threads": 2, "isa": "best"}
    for row in results("train-cpu-zen.json")["rows"]:
        if row["engine"] == "vggfast" and all(row["case"][key] == value for key, value in case.items()):
            return by_multiply_adds("D", statistics.median(row["seconds"]) * batch / 8)
    raise LookupError(f"train-cpu-zen.json has no row of vggfast for {case}")


def paper(weeks: float, batch: int = PAPER_BATCH // 4) -> Step:
    """D on one of the paper's GPUs: so many weeks for 370k steps of 256 images on four GPUs, at 3.75 times one GPU's
    speed."""
    four = weeks * 7 * 86400 / PAPER_ITERATIONS
    return by_multiply_adds("D", PAPER_SPEEDUP * four * batch / PAPER_BATCH)


# ---- an H200 --------------------------------------------------------------------------------------------------------


def share(batch: int) -> float:
    """The share of the peak that the kernels' model gives D's convolutions at that batch, in bf16; between the batches
    of predicted-h200.json by the logarithm, beyond them as at the last."""
    rows = results("predicted-h200.json")["rows"]
    all_tiles = ("fprop", "bf16", list(STEPS)[-1])
    row = next(row for row in rows if (row["which"], row["dtype"], row["step"]) == all_tiles)
    batches, shares = row["batches"], row["share"]
    for i in range(1, len(batches)):
        if batch <= batches[i]:
            part = math.log(batch / batches[i - 1]) / math.log(batches[i] / batches[i - 1])
            return shares[i - 1] + part * (shares[i] - shares[i - 1])
    return shares[-1]


def _convolution(layer: Layer, which: str) -> float:
    """Seconds of a pass at batch 64: all its kernels, as roofline-h200.json has them."""
    name = f"{layer.cin}→{layer.cout} {layer.size}² {which}"
    found = [row["estimate_ms"] for row in results("roofline-h200.json")["rows"] if row["layer"] == name]
    if not found:
        raise LookupError(f"roofline-h200.json has no layer {name}")
    return sum(found) * 1e-3


def h200(batch: int) -> Step:
    """D in bf16 with fp32 weights and gradients on an H200; everything here is an estimate.

    Convolutions from roofline-h200.json, at other batches than its 64 by `share`; FC layers and update from that file's
    ceilings: products at its peak or weights and gradients at its memory's rate, whichever takes longer.
    """
    environment = results("roofline-h200.json")["environment"]
    flops, memory = environment["ceilings"]["flops"], environment["ceilings"]["memory"]
    made_for = environment["batch"]
    scale = batch / made_for * share(made_for) / share(batch)
    layers, forward, backward = layers_of("D"), 0.0, []
    for layer in layers:
        if layer.size > 1:
            passes = ["dgrad", "wgrad"] if layer is not layers[0] else ["wgrad"]
            forward += scale * _convolution(layer, "fprop")
            backward.append(scale * sum(_convolution(layer, which) for which in passes))
        else:
            weights, products = layer.tensors[0], 2 * layer.multiply_adds * batch / flops
            forward += max(products, 2 * weights / memory)
            backward.append(max(products, 2 * weights / memory) + max(products, 4 * weights / memory))
    update = UPDATE_BYTES * sum(sum(layer.tensors) for layer in layers) / memory
    return Step(forward, tuple(reversed(backward)), gradients("D"), update)
