"""ONNX networks, by the onnx package: a chain of convolutions, pools and FC layers, whatever its tensors are called.

The graph is walked by its edges, from its images to its scores: each node must read what the one before it gives, and
have the settings that a VGG's layer has; whatever else a graph may compute is an error that names the node. The places
follow from the order: a max-pool ends a stage; what comes behind the fifth is the head, Gemm, MatMul and Add, or
convolutions. Batch norm is kept where the graph has it; an exporter may have folded it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from vggfast.preprocessing import Preprocessing
from vggfast.weights.formats._onnx_graph import Graph
from vggfast.weights.formats._onnx_walk import Walk
from vggfast.weights.formats._parts import Raw, named_by_place
from vggfast.weights.formats.torchvision import as_linear


def read(path: Path) -> Raw:
    """A graph with its weights; of files that we wrote, what the metadata say too."""
    import onnx

    try:
        graph = Graph(onnx, path)
        walk = Walk(onnx, graph)
        walk.run()
        extra = _metadata(graph.model) if graph.model.producer_name == "vggfast" else {}
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    preprocessing = extra.pop("preprocessing", None)
    return Raw(
        walk.tensors | {name: torch.zeros(()) for name in graph.unused},
        named_by_place(walk.names), as_linear,
        preprocessing, "the file" if preprocessing else "",
        walk.hwc, walk.lrn, extra, walk.stranger, walk.steps, walk.dense, walk.notes, walk.roundings,
    )  # fmt: skip


def _metadata(model: Any) -> dict[str, Any]:
    """What we wrote beside a graph, "preprocessing" as one. Raises ValueError for what we never write."""
    found: dict[str, Any] = {}
    for entry in model.metadata_props:
        try:
            value = json.loads(entry.value)
            if entry.key == "preprocessing":
                value = Preprocessing.from_dict(value)
            elif entry.key == "classes" and not (isinstance(value, list) and all(isinstance(x, str) for x in value)):
                raise ValueError
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
            raise ValueError(
                f"the metadata's {entry.key} must be as vggfast writes it, got {entry.value[:80]!r}"
            ) from error
        found[entry.key] = value
    return found
