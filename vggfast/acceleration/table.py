"""What :func:`vggfast.accelerate` takes of a model, as a table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils.parametrize import is_parametrized

from vggfast.acceleration import frozen
from vggfast.acceleration.choice import choose, modules_of
from vggfast.acceleration.formats import unwrapped
from vggfast.graph import runs
from vggfast.layers import runs_batch_norm, runs_linear
from vggfast.nn import BatchNorm2d, FusedSequential, Linear
from vggfast.ops._backends import WIDE
from vggfast.ops.fc import on_the_cpu


@dataclass(frozen=True)
class Row:
    """A layer.

    Attributes:
        path: its name in the model.
        kind: the name of its class.
        taken: whether kernels of ours run it: in the example's run, and without an example, for some input.
        why: why not; "" where they do.
        share: of the multiply-adds of all convolutions and linear layers, in [0, 1]; None without an example.
    """

    path: str
    kind: str
    taken: bool
    why: str
    share: float | None


@dataclass(frozen=True)
class Report:
    """A table to print: `rows` has one for each layer, in the order of ``named_modules``."""

    rows: tuple[Row, ...]

    @property
    def share(self) -> float | None:
        """How much of the multiply-adds is taken, in [0, 1]; None without an example."""
        shares = [row.share for row in self.rows if row.taken]
        return None if any(row.share is None for row in self.rows) else sum(shares)  # type: ignore[arg-type]

    def __str__(self) -> str:
        head = ("layer", "class", "taken", "multiply-adds", "why not")
        lines = [head, *((row.path, row.kind, _yes(row.taken), _percent(row.share), row.why) for row in self.rows)]
        widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
        table = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
        taken = sum(row.taken for row in self.rows)
        without = ", for large enough inputs: give an example for shares, and for what its inputs decide"
        total = without if self.share is None else f", {_percent(self.share)} of the multiply-adds"
        return "\n".join([*(line.rstrip() for line in table), f"{taken} of {len(self.rows)} layers taken{total}"])

    __repr__ = __str__


def _yes(taken: bool) -> str:
    return "yes" if taken else "no"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"


def table(model: nn.Module, accelerated: nn.Module, x: Any) -> Report:
    """The table of `model`, of which `accelerated` is a copy with our layers, for an example `x` or None."""
    fused = set(_fused(accelerated))
    twins = dict(modules_of(accelerated))
    counts, idle = _run(accelerated, x) if x is not None else (None, {})
    rows = []
    for path, module in modules_of(model):
        if _is_layer(path, module):
            target, why = choose(path, module)
            if target is Linear or _is_norm(target):
                why = _without_kernels(module) or idle.get(path, "")
            taken = (target is not None and not why) or twins[path] in fused
            rows.append((path, type(module).__name__, taken, "" if taken else why))
    total = sum(counts.values()) if counts else 0
    return Report(tuple(
        Row(path.removeprefix("model."), kind, taken, why, counts.get(path, 0) / total if counts and total else None)
        for path, kind, taken, why in rows
    ))  # fmt: skip


def _is_layer(path: str, module: nn.Module) -> bool:
    if ".parametrizations" in path:
        return False  # it computes a tensor of a layer
    leaf = next(module.children(), None) is None
    return leaf or is_parametrized(module) or isinstance(module, torch.jit.ScriptModule)


def _fused(model: nn.Module) -> Iterator[nn.Module]:
    """The modules that run within one op with the one before them, or are batch norms that one op computes."""
    for _, sequence in modules_of(model):
        if isinstance(sequence, FusedSequential):
            children = list(sequence)
            at = 0
            for _, norm, epilogue in runs(children):
                count = 1 + (norm is not None) + sum(epilogue or ())
                if epilogue is not None:
                    yield from children[at : at + count]
                at += count


def _is_norm(kind: Any) -> bool:
    """Whether a class, or None, is a batch norm of ours."""
    return kind is BatchNorm2d or (kind is not None and frozen.is_ours(kind))


def _without_kernels(layer: nn.Module) -> str:
    """Why no kernel of ours runs a linear layer or a batch norm for any input, or ""."""
    weight = next(chain(layer.parameters(), layer.buffers()))  # or what a parametrisation computes it from
    if weight.device.type not in ("cpu", "meta"):
        return f"on {weight.device.type}"
    runs = on_the_cpu(weight.dtype) if isinstance(layer, nn.Linear) else weight.dtype in WIDE
    return "" if runs else f"of {weight.dtype}"


def _run(model: nn.Module, x: Any) -> tuple[dict[str, int], dict[str, str]]:
    """A call of the model in evaluation mode: the multiply-adds of each convolution and linear layer, and why kernels
    of ours ran no call of a linear layer or a batch norm."""
    counts: dict[str, int] = {}
    idle: dict[str, str] = {}

    def watch(path: str) -> Any:
        def hook(module: Any, args: tuple[Any, ...], output: Tensor) -> None:
            if _is_norm(type(module)):
                ran = runs_batch_norm(module, output) or idle.get(path) == ""  # which lies as its input does
                idle[path] = "" if ran else f"torch's is as fast for maps of shape {tuple(output.shape)}"
                return
            weight = module.weight
            values = args[0] if isinstance(module, _ConvTransposeNd) else output
            counts[path] = counts.get(path, 0) + values.numel() * (weight.numel() // weight.shape[0])
            if isinstance(module, Linear):
                ran = runs_linear(args[0], weight) or idle.get(path) == ""
                idle[path] = "" if ran else f"torch's is as fast for an input of shape {tuple(args[0].shape)}"

        return hook

    for path, module in modules_of(model):
        if isinstance(module, _ConvNd | nn.Linear) or _is_norm(type(module)):
            module.register_forward_hook(watch(path))
    model = unwrapped(model).eval()  # other ranks are not called
    with torch.no_grad():
        model(*x) if isinstance(x, tuple) else model(x)
    return counts, idle
