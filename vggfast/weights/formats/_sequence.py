"""The layers that a file says, in its order, against those of the configuration that its tensors are of.

Tensors alone do not say where a ReLU or a pool stands. A reader whose format does gives a :class:`Step` for each layer
(``Raw.steps``), and :func:`check_sequence` names the first that stands where that network has another.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from vggfast.graph import fc_names, layers, trunk_names, whole
from vggfast.models import VGG

CONV, BATCH_NORM, RELU, LRN = "a convolution", "a batch norm", "a ReLU", "a local response normalisation"
MAX_POOL, FC, AVERAGE, FLATTEN, SOFTMAX = "a max-pool", "an FC layer", "an average pool", "a flattening", "a softmax"
_KINDS = {
    layers.Conv: CONV, layers.BatchNorm: BATCH_NORM, layers.Relu: RELU, layers.Lrn: LRN, layers.MaxPool: MAX_POOL,
    layers.Linear: FC,
}  # fmt: skip
# What our networks have, whatever the format: pools, the epsilon of batch norms and their tensors, the settings of LRN.
STAGES, EPSILON = 5, 1e-5
BATCH_NORM_KINDS = ("weight", "bias", "running_mean", "running_var")
LRN_SETTINGS = {"size": 5, "alpha": 1e-4, "beta": 0.75, "k": 2.0}
# What can be done about a head that no VGG has.
WITHOUT_HEAD = "; --features-only leaves out all that follows the convolutional layers"


def with_article(kind: str) -> str:
    return f"an {kind}" if kind[0] in "AEIOUaeiou" else f"a {kind}"


@dataclass(frozen=True)
class Step:
    """A layer of a file, whose own settings its reader has checked.

    What does nothing in evaluation mode, as dropout, is none; an activation that a layer has within it is one more.

    Attributes:
        name: what errors call it: "node p6", "layer block1_conv1".
        kind: one of the constants above; else what it is, in words with an article: "a Sigmoid". FC is an FC layer
            that is kept as a convolution, too. AVERAGE is to the grid that the first FC layer reads, or, behind FC
            layers that are convolutions, to one cell.
    """

    name: str
    kind: str


def check_sequence(
    path: Path,
    found: Sequence[Step],
    config: str,
    batch_norm: bool,
    *,
    features: bool = True,
    head: bool = True,
    more: bool = False,
) -> list[str]:
    """Checks a file's layers, and says what is to be known of them: a softmax at the end is left out, for one.

    Args:
        path: the file, for errors.
        found: its layers in the order in which they run.
        config, batch_norm: the network, as :class:`VGG`'s arguments.
        features, head: which of its parts the file holds.
        more: whether any other layers may follow them.

    Raises:
        ValueError: a layer is missing, too many or another; the text names file and layer, and what stands there.
    """
    trunk, fcs = _expected(config, batch_norm)
    expected = [*(trunk if features else ()), *(fcs if head else ())]
    # A map is averaged and flattened before the first FC layer; where these are convolutions, around the last.
    loose = {len(expected) - len(fcs), len(expected) - 1, len(expected)} if head else set()
    named = f"configuration {config}{' with batch norm' if batch_norm else ''}"
    done, before = 0, ""

    def wrong(what: str, place: str, kind: str) -> ValueError:
        hint = WITHOUT_HEAD if features and done >= len(trunk) else ""
        return ValueError(f"{path}{what}, where {named} has {kind}{place}{hint}")

    for step in found:
        if done == len(expected) and (more or (head and step.kind == SOFTMAX and step is found[-1])):
            break
        if step.kind not in (AVERAGE, FLATTEN) or done not in loose:
            place, kind = expected[done] if done < len(expected) else ("", "nothing more")
            if step.kind != kind:
                raise wrong(f": {step.name} is {step.kind}", place, kind)
            done += 1
        before = f" behind {step.name}"
    if done < len(expected):
        raise wrong(f" ends{before}", *expected[done])
    if head and found[-1].kind == SOFTMAX:
        return [f"{found[-1].name}, a softmax behind the scores, is left out: the network gives what it reads"]
    return []


@functools.cache
def _expected(config: str, batch_norm: bool) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Of the convolutional layers and of the head: (", " and the layer's name where it has one, its kind)."""
    with torch.device("meta"):
        network = whole(VGG(config, batch_norm=batch_norm, init=None))
    assert network.head is not None
    named = {node.path: f", {name}" for name, node in (*trunk_names(network.trunk), *fc_names(network.head.nodes))}
    trunk, fcs = (
        [(named.get(node.path, ""), _KINDS[type(node.layer)]) for node in nodes if node.layer is not None]
        for nodes in (network.trunk, network.head.nodes)
    )
    return trunk, fcs
