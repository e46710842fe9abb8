"""The back end of ``torch.compile(model, backend="vggfast")``: our ops in the graph, and inductor for all of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.fx import GraphModule
from torch.torch_version import TorchVersion

from vggfast.acceleration.rewriting import rewrite

_LEAST = "2.11"  # whose Dynamo inlines modules: a graph has their functions


def backend(
    graph_module: GraphModule, inputs: Sequence[Any], *, mode: str | None = None, options: dict[str, Any] | None = None
) -> Callable[..., Any]:
    """What ``torch.compile`` calls, by the entry point "vggfast" of `torch_dynamo_backends`.

    3x3 and 1x1 convolutions with the batch norm, ReLU and 2x2 max-pool behind them, such pools by themselves, batch
    norm in training mode and large linear layers become ops of :mod:`vggfast.ops`. See
    ``docs/guides/accelerate.md``.

    Args:
        graph_module: what Dynamo made of some code; it is changed.
        inputs: of the code.
        mode, options: inductor's, as ``torch.compile`` has them.

    Raises:
        RuntimeError: torch is too old, or inductor knows no such mode or option.
    """
    if TorchVersion(torch.__version__) < _LEAST:
        raise RuntimeError(f'torch must be at least {_LEAST} for backend="vggfast", got {torch.__version__}')
    rewrite(graph_module)
    return torch._TorchCompileInductorWrapper(mode, options, None)(graph_module, inputs)
