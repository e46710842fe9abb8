"""Neighbours that run as one: batch norm in its convolution, and convolution, ReLU and pool in one op."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from vggfast.graph.guard import is_bare, unknown
from vggfast.graph.layers import BatchNorm, Conv
from vggfast.graph.recognise import Node
from vggfast.layers import BatchNorm2d, Conv1x1, Conv3x3, MaxPool2x2

_NORMS = (nn.BatchNorm2d, BatchNorm2d, nn.SyncBatchNorm)
_KINDS = (Conv1x1, Conv3x3, *_NORMS, nn.ReLU, MaxPool2x2)
_FORWARDS: dict[type[nn.Module], Any] = {kind: kind.forward for kind in _KINDS}


def fold(nodes: Iterable[Node]) -> Iterator[Node]:
    """The layers that do something, each batch norm within the convolution before it.

    Raises:
        TypeError: a batch norm follows no convolution; the text names it.
    """
    waiting: Node | None = None  # a convolution whose batch norm may be next
    for node in nodes:
        if node.layer is None:
            continue
        if isinstance(node.layer, BatchNorm):
            if waiting is None:
                raise unknown(node.path, node.module, "a batch norm must be right behind a convolution")
            yield replace(waiting, layer=_folded(waiting.layer, node.layer))
            waiting = None
            continue
        if waiting is not None:
            yield waiting
        waiting = node if isinstance(node.layer, Conv) else None
        if waiting is None:
            yield node
    if waiting is not None:
        yield waiting


def _folded(conv: Any, norm: BatchNorm) -> Conv:
    weight, bias = folded(conv.weight, conv.bias, norm)
    return Conv(weight.float(), bias.float())


def folded(weight: Tensor, bias: Tensor | None, norm: BatchNorm) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution with its batch norm, in float64."""
    scale = (norm.var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    shift = torch.zeros_like(scale) if bias is None else bias.double()
    shift = (shift - norm.mean.double()) * scale
    if norm.bias is not None:
        shift = shift + norm.bias.double()
    return weight.double() * scale[:, None, None, None], shift


def runs(modules: Sequence[nn.Module]) -> Iterator[tuple[Any, Any, tuple[bool, bool] | None]]:
    """(convolution, batch norm or None, (relu, pool)) and (batch norm, None, (relu, pool)) for modules that one op can
    compute now, or two where there are a convolution and a batch norm; (module, None, None) for any other."""
    i = 0
    while i < len(modules):
        conv = _bare(modules, i, Conv3x3) or _bare(modules, i, Conv1x1)
        first = conv if conv is not None and conv.is_ours() else _norm(modules, i)
        if first is None:
            yield modules[i], None, None
            i += 1
            continue
        i += 1
        norm = _norm(modules, i) if first is conv else None
        i += norm is not None
        relu = _bare(modules, i, nn.ReLU) is not None
        i += relu
        pool = _bare(modules, i, MaxPool2x2)
        fused = pool is not None and pool.is_ours() and not pool.ceil_mode
        i += fused
        yield first, norm, (relu, fused)


def _norm(modules: Sequence[nn.Module], i: int) -> Any:
    norm = next(filter(None, (_bare(modules, i, kind) for kind in _NORMS)), None)
    return None if isinstance(norm, nn.SyncBatchNorm) and norm.training else norm  # other processes have a say in it


def _bare(modules: Sequence[nn.Module], i: int, kind: type[nn.Module]) -> Any:
    """The i-th module where it is exactly of this kind and bare, else None."""
    if i == len(modules) or type(modules[i]) is not kind or not is_bare(modules[i]):
        return None
    return modules[i] if kind.forward is _FORWARDS[kind] else None  # somebody may put another into the class
