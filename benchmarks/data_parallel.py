"""One data-parallel training step as DistributedDataParallel takes it, reckoned: when each gradient is ready, which
bucket it travels in, and how long the step lasts once the gradients of all ranks are averaged.

Seconds and bytes throughout. There is one stream of communication: buckets are reduced one after the other, each as
soon as its last gradient is ready, beside what is left of the backward pass. What the model leaves out: that reducing
takes memory bandwidth and SMs from the backward pass, ranks that wait for the slowest, and input.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

from vggfast.models import CONFIGURATIONS

MIB = 1 << 20
FIRST_BUCKET, BUCKET = MIB, 25 * MIB  # DistributedDataParallel's own
HIDDEN, CLASSES = 4096, 1000


@dataclass(frozen=True)
class Layer:
    """A layer with weights. `size` is the height and width of its output: 1 for the fully connected ones."""

    name: str
    cin: int
    cout: int
    kernel: int
    size: int

    @property
    def tensors(self) -> tuple[int, int]:
        """(weights, biases), in the order in which autograd has their gradients ready; torch's own linear layer has
        them the other way round, which moves a few KB from one bucket to the next."""
        return self.cin * self.cout * self.kernel**2, self.cout

    @property
    def multiply_adds(self) -> int:
        """Of the forward pass of one image."""
        return self.tensors[0] * self.size**2


def layers_of(config: str) -> list[Layer]:
    """The layers of a configuration of the paper at 224x224 and 1000 classes, in forward order."""
    found, channels, size, block, number = [], 3, 224, 1, 1
    for item in CONFIGURATIONS[config]:
        if item == "M":
            size, block, number = size // 2, block + 1, 1
        elif item != "LRN":
            out, kernel = (item, 3) if isinstance(item, int) else (channels, 1)
            found.append(Layer(f"conv{block}_{number}", channels, out, kernel, size))
            channels, number = out, number + 1
    flat = channels * size**2
    for name, cin, cout in (("fc6", flat, HIDDEN), ("fc7", HIDDEN, HIDDEN), ("fc8", HIDDEN, CLASSES)):
        found.append(Layer(name, cin, cout, 1, 1))
    return found


def parameters(config: str) -> int:
    return sum(sum(layer.tensors) for layer in layers_of(config))


def buckets(sizes: Iterable[int], first: int = FIRST_BUCKET, cap: int = BUCKET) -> list[list[int]]:
    """Which of the gradients, of `sizes` bytes in the order in which they are ready, travel together.

    A bucket is closed by the gradient that fills it: it may be as large as what was in it and that gradient together.
    """
    made: list[list[int]] = [[]]
    held = 0
    for i, size in enumerate(sizes):
        made[-1].append(i)
        held += size
        if held >= (first if len(made) == 1 else cap):
            made.append([])
            held = 0
    return made if made[-1] else made[:-1]


# ---- links ----------------------------------------------------------------------------------------------------------


class Link(NamedTuple):
    """`rate`: bytes a second each way for a GPU, nominal; `latency`: seconds of one message, assumed."""

    name: str
    rate: float
    latency: float


def ethernet(gigabits: float, gpus: int = 1) -> Link:
    """A card of a node, which so many GPUs share."""
    shared = f" for {gpus} GPUs" if gpus > 1 else ""
    return Link(f"{gigabits:g} GbE{shared}", gigabits / 8 * 1e9 / gpus, 30e-6)


NVLINK4 = Link("NVLink 4", 450e9, 3e-6)
NDR = Link("NDR InfiniBand for each GPU", 50e9, 5e-6)
PCIE = {3: Link("PCIe 3.0 x16", 15.75e9, 5e-6), 4: Link("PCIe 4.0 x16", 31.5e9, 5e-6),
        5: Link("PCIe 5.0 x16", 63e9, 5e-6)}  # fmt: skip
NOTHING = Link("infinite", math.inf, 0.0)


@dataclass(frozen=True)
class Cluster:
    """GPUs on `inside`, `per_node` of them to a node, nodes on `between`.

    Attributes:
        achieved: share of the nominal rates that an all-reduce gets.
        way: "ring": reduce-scatter and all-gather in a ring, and with several nodes one inside each, with a ring of
            the nodes for each GPU's share between the two. "tree": the same, but the messages between nodes are as
            many as those of a tree. "root": one GPU takes all gradients and hands out the average, over its own link.
    """

    inside: Link
    between: Link = NOTHING
    per_node: int = 8
    achieved: float = 0.8
    way: str = "ring"

    @property
    def name(self) -> str:
        return f"{self.inside.name}, {self.between.name}" if self.per_node > 1 else self.between.name

    def all_reduce(self, size: float, gpus: int) -> float:
        """Seconds to average `size` bytes over so many GPUs."""
        near = min(gpus, self.per_node)
        nodes, left = divmod(gpus, near)
        if left:
            raise ValueError(f"gpus must be a multiple of per_node, {self.per_node}, or less, got {gpus}")
        if self.way == "root":
            return 2 * (gpus - 1) * (size / (self.inside.rate * self.achieved) + self.inside.latency)
        hops = 2 * (nodes - 1) if self.way == "ring" else 2 * math.ceil(math.log2(nodes))
        return (
            2 * (near - 1) / near * size / (self.inside.rate * self.achieved)
            + 2 * (near - 1) * self.inside.latency
            + 2 * (nodes - 1) / nodes * size / near / (self.between.rate * self.achieved)
            + hops * self.between.latency
        )


# ---- a step ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """What one GPU does in a step, alone.

    Attributes:
        forward: seconds until the backward pass begins.
        backward: seconds of each layer, last layer first.
        gradients: values of each layer's gradients, by tensor, last layer first.
        update: seconds of the optimiser, after all gradients.
    """

    forward: float
    backward: tuple[float, ...]
    gradients: tuple[tuple[int, ...], ...]
    update: float = 0.0

    @property
    def alone(self) -> float:
        return self.forward + sum(self.backward) + self.update

    def fc_last(self) -> Step:
        """With the gradients of the FC layers, which are ready first, sent last of all."""
        return replace(
            self,
            backward=(*self.backward, 0.0, 0.0, 0.0),
            gradients=((),) * 3 + self.gradients[3:] + self.gradients[:3],
        )


class Timeline(NamedTuple):
    """Of one step; seconds. A bucket: (bytes, ready, begin, end), counted from the beginning of the backward pass."""

    seconds: float
    exposed: float
    reducing: float
    buckets: list[tuple[float, float, float, float]]

    @property
    def hidden(self) -> float:
        """The share of the communication that the backward pass hides."""
        return 1 - self.exposed / self.reducing if self.reducing else 1.0


def timeline(step: Step, cluster: Cluster, gpus: int, overlap: bool = True, width: int = 4) -> Timeline:
    """One step of `gpus` GPUs, each doing `step`.

    Without overlap all buckets wait for the backward pass. `width`: bytes of a value on its way; buckets are filled in
    fp32 whatever it is, as by DistributedDataParallel, whose hook makes bf16 of a full bucket.
    """
    ready, values, now = [], [], 0.0
    for seconds, tensors in zip(step.backward, step.gradients, strict=True):
        now += seconds
        ready += [now] * len(tensors)
        values += tensors
    found, free, busy = [], 0.0, 0.0
    for bucket in buckets([4 * value for value in values]):
        size = width * sum(values[i] for i in bucket)
        begin = max(free, ready[bucket[-1]] if overlap else now)
        free = begin + (cluster.all_reduce(size, gpus) if gpus > 1 else 0.0)
        busy += free - begin
        found.append((size, ready[bucket[-1]], begin, free))
    exposed = max(0.0, free - now)
    return Timeline(step.alone + exposed, exposed, busy, found)


def efficiency(step: Step, cluster: Cluster, gpus: int, **how: bool | int) -> float:
    """Images a second of `gpus` GPUs, each with a batch of its own, beside so many times those of one: at most 1."""
    return step.alone / timeline(step, cluster, gpus, **how).seconds
