"""What the paper's readers call a network's layers: conv3_1, relu4_3, pool5, fc1."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence

from vggfast._checks import check_sequence
from vggfast.graph.layers import BatchNorm, Conv, Linear, Lrn, MaxPool, QuantisedConv, Relu
from vggfast.graph.recognise import Node


def trunk_names(nodes: Iterable[Node]) -> Iterator[tuple[str, Node]]:
    """Each layer of a trunk with its name. Those that do nothing have none, and are left out."""
    stage, index = 1, 0
    for node in nodes:
        match node.layer:
            case Conv() | QuantisedConv():
                index += 1
                yield f"conv{stage}_{index}", node
            case BatchNorm():
                yield f"bn{stage}_{index}", node
            case Relu():
                yield f"relu{stage}_{index}", node
            case Lrn():
                yield f"norm{stage}_{index}", node
            case MaxPool():
                yield f"pool{stage}", node
                stage, index = stage + 1, 0


def check_taps(taps: Sequence[str], names: Collection[str]) -> None:
    """Raises ValueError where `taps` are not names of maps, one or more; TypeError where they are no sequence."""
    check_sequence(taps, "taps")
    if unknown := [tap for tap in taps if tap not in names]:
        raise ValueError(f"taps must be among {', '.join(names)}, got {unknown[0]!r}")
    if not len(taps):
        raise ValueError("taps must have at least one name, got none")


def fc_names(nodes: Iterable[Node]) -> Iterator[tuple[str, Node]]:
    """Each FC layer of a head with its name."""
    layers = (node for node in nodes if isinstance(node.layer, Linear))
    return ((f"fc{number}", node) for number, node in enumerate(layers, 1))
