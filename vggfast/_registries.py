"""Other tools' tables of layers and ops, in which they look a class up and not those above it: ours are put there."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

# Module and name of tables by class: the counters thop and ptflops, and captum's layer-wise relevance propagation.
_BY_CLASS = (
    ("thop.profile", "register_hooks"),
    ("ptflops.pytorch_ops", "MODULES_MAPPING"),
    ("captum.attr._core.lrp", "SUPPORTED_LAYERS_WITH_RULES"),
)
_BY_OP = "ptflops.aten_ops"


def announce(kind: type[nn.Module]) -> None:
    """Gives a class of ours the entry of the torch class that it stands in for, in each tool that is loaded."""
    torchs = next(each for each in kind.__mro__ if each.__module__.startswith("torch.nn"))
    for module, name in _BY_CLASS:
        if (table := _table(module, name)) is not None and torchs in table:
            table.setdefault(kind, table[torchs])
    if (table := _table(_BY_OP, "ATEN_OPS_MAPPING")) is not None:
        for op, count in _MULTIPLY_ADDS.items():
            table.setdefault(getattr(torch.ops.vggfast, op), count)


def _table(module: str, name: str) -> dict[Any, Any] | None:
    found = getattr(sys.modules.get(module), name, None)
    return found if isinstance(found, dict) else None


def _conv(args, outputs) -> int:
    x, weight, bias = args[:3]
    each = x.shape[0] * x.shape[2] * x.shape[3]
    return each * (weight.numel() + (0 if bias is None else weight.shape[0]))


def _linear(args, outputs) -> int:
    x, weight, bias = args
    return x.shape[0] * (weight.numel() + (0 if bias is None else weight.shape[0]))


# As ptflops counts, with an addition for each output that has a bias; from an op's arguments and outputs.
_MULTIPLY_ADDS: dict[str, Callable[[Any, Any], int]] = {"conv": _conv, "linear": _linear}
