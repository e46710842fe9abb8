"""ONNX networks, by the onnx package: a chain of convolutions, pools and FC layers, whatever its tensors are called.

The places follow from the graph's order: a max-pool ends a stage; what comes after the fifth pool is the head, Gemm,
MatMul and Add, or convolutions. Batch norm is kept where the graph has it; an exporter may have folded it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vggfast.preprocessing import Preprocessing
from vggfast.weights.formats._parts import Raw
from vggfast.weights.formats.torchvision import as_linear

_STAGES = 5
_EPS = 1e-5  # of our batch norm
_LRN = {"size": 5, "alpha": 1e-4, "beta": 0.75, "bias": 2.0}  # of ours
_BATCH_NORM = ("weight", "bias", "running_mean", "running_var")
# Networks made with Keras' names keep them: the place then says itself what it is.
_NAMED = re.compile(r"block([1-5])_conv(\d)")
# What may stand among the convolutions beside what _Walk reads, because it changes no number.
_HARMLESS = ("Relu", "Dropout", "Cast")
# And among the FC layers: the way from a map to rows, the average over a score map, what makes scores probabilities.
_HARMLESS_IN_HEAD = (
    *_HARMLESS, "Flatten", "Reshape", "Shape", "Gather", "Slice", "Concat", "Squeeze", "Unsqueeze",
    "AveragePool", "GlobalAveragePool", "ReduceMean", "Softmax",
)  # fmt: skip


def read(path: Path) -> Raw:
    """A graph with its weights; of files that we wrote, what the metadata say too."""
    import onnx

    model = onnx.load(str(path))
    if not model.graph.node:
        raise ValueError("it has no graph")
    walk = _Walk(onnx, model.graph)
    ours = model.producer_name == "vggfast"
    extra = {entry.key: json.loads(entry.value) for entry in model.metadata_props if ours}
    preprocessing = extra.pop("preprocessing", None)
    return Raw(
        walk.tensors, walk.name, as_linear,
        Preprocessing.from_dict(preprocessing) if preprocessing else None, "the file" if preprocessing else "",
        walk.hwc, walk.lrn, extra, walk.stranger,
    )  # fmt: skip


class _Walk:
    """One walk along the graph.

    Attributes:
        tensors: every tensor of weights, by its name; those of FC layers as (out, in).
        hwc, lrn, stranger: as of :class:`Raw`.
    """

    def __init__(self, onnx: Any, graph: Any) -> None:
        self._onnx = onnx
        self.tensors: dict[str, torch.Tensor] = {}
        self.hwc = self.lrn = False
        self.stranger = ""
        self._names: dict[tuple[str, str], str] = {}
        self._same: dict[str, str] = {}  # tensors that are another by an Identity
        self._turned: set[str] = set()  # those that lie as (in, out)
        self._more: dict[str, float] = {}  # what to add to variances, for batch norms of another epsilon
        self._stage, self._place, self._fc, self._last = 1, 0, 0, ""
        for each in graph.initializer:
            self._keep(each.name, each)
        readers = {
            "Conv": self._conv, "BatchNormalization": self._batch_norm, "MaxPool": self._max_pool, "LRN": self._lrn,
            "Transpose": self._transpose, "Gemm": self._gemm, "MatMul": self._mat_mul, "Add": self._add,
            "Constant": self._constant, "Identity": self._identity,
        }  # fmt: skip
        for node in graph.node:
            if node.op_type in readers:
                readers[node.op_type](node, {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute})
            elif self._stage > _STAGES:
                if node.op_type not in _HARMLESS_IN_HEAD:
                    self._meet(f"node {node.name or node.output[0]} is a {node.op_type}")
            elif node.op_type not in _HARMLESS:
                raise ValueError(f"node {node.name or node.output[0]} is a {node.op_type}, which no VGG has there")
        for name in self._turned:
            self.tensors[name] = self.tensors[name].t()
        for name, more in self._more.items():
            self.tensors[name] = self.tensors[name] + more

    def name(self, key: str, place: str, kind: str) -> str | None:
        """The graph's name of a tensor; "fc1 weight" for one that it has not."""
        if kind == "num_batches_tracked" or (place[:2] == "bn" and not any(at[:2] == "bn" for at, _ in self._names)):
            return None
        return self._names.get((place, kind), f"{place} {kind}")

    def _meet(self, what: str) -> None:
        """Keeps the first that is strange among the FC layers; it matters to who needs these."""
        self.stranger = self.stranger or f"{what}, which no VGG has there"

    def _keep(self, name: str, tensor: Any) -> None:
        value = self._onnx.numpy_helper.to_array(tensor)
        if value.dtype.kind == "f" and value.ndim:
            self.tensors[name] = torch.from_numpy(value.copy())

    def _enter(self, place: str, kinds: Iterable[str], inputs: Iterable[str]) -> None:
        self._last = place
        inputs = (self._same.get(name, name) for name in inputs)
        self._names |= {(place, kind): name for kind, name in zip(kinds, inputs, strict=False) if name in self.tensors}

    def _conv(self, node: Any, settings: dict[str, Any]) -> None:
        if self._stage > _STAGES:
            self._fc += 1
            return self._enter(f"fc{self._fc}", _BATCH_NORM[:2], node.input[1:])
        self._place += 1
        named = _NAMED.search(node.input[1])
        self._enter(
            "conv{}_{}".format(*named.groups()) if named else f"conv{self._stage}_{self._place}",
            _BATCH_NORM[:2], node.input[1:],
        )  # fmt: skip
        extent = self.tensors[self._names[self._last, "weight"]].shape[-1]
        same = settings.get("auto_pad", b"NOTSET") in (b"SAME_UPPER", b"SAME_LOWER")
        pads = [extent // 2] * 4 if same else list(settings.get("pads", [0] * 4))
        strides = list(settings.get("strides", [1, 1]))
        if pads != [extent // 2] * 4 or strides != [1, 1]:
            raise ValueError(
                f"node {node.name or node.output[0]}, a {extent}x{extent} convolution, must have pads "
                f"{[extent // 2] * 4} and strides [1, 1], got {pads} and {strides}"
            )

    def _batch_norm(self, node: Any, settings: dict[str, Any]) -> None:
        self._enter(self._last.replace("conv", "bn"), _BATCH_NORM, node.input[1:])
        epsilon = settings.get("epsilon", _EPS)
        if not np.isclose(epsilon, _EPS, rtol=1e-4):
            self._more[self._names[self._last, "running_var"]] = epsilon - _EPS

    def _max_pool(self, node: Any, settings: dict[str, Any]) -> None:
        self._stage, self._place = self._stage + 1, 0
        expected = {"kernel_shape": [2, 2], "strides": [2, 2], "pads": [0] * 4, "ceil_mode": 0}
        found = {"strides": [1, 1], "pads": [0] * 4, "ceil_mode": 0, **settings}
        if odd := [name for name, value in expected.items() if found.get(name) != value]:
            raise ValueError(
                f"node {node.name or node.output[0]}, a max-pool, must have {odd[0]} {expected[odd[0]]}, "
                f"got {found.get(odd[0])}"
            )

    def _lrn(self, node: Any, settings: dict[str, Any]) -> None:
        found = {"alpha": 1e-4, "beta": 0.75, "bias": 1.0, **settings}
        if any(not np.isclose(found[name], value) for name, value in _LRN.items()):
            raise ValueError(f"node {node.name or node.output[0]} must have {_LRN}, got {found}")
        self.lrn = True

    def _transpose(self, node: Any, settings: dict[str, Any]) -> None:
        if self._stage > _STAGES and not self._fc:
            self.hwc = list(settings.get("perm", [])) == [0, 2, 3, 1]

    def _gemm(self, node: Any, settings: dict[str, Any]) -> None:
        for factor in ("alpha", "beta"):
            if settings.get(factor, 1.0) != 1.0:
                self._meet(f"node {node.name or node.output[0]}, a Gemm, has {factor} {settings[factor]:g}")
        self._linear(node.input[1:], bool(settings.get("transB")))

    def _mat_mul(self, node: Any, settings: dict[str, Any]) -> None:
        self._linear(node.input[1:], False)

    def _linear(self, inputs: Iterable[str], out_first: bool) -> None:
        self._fc += 1
        self._enter(f"fc{self._fc}", _BATCH_NORM[:2], inputs)
        weight = self._names.get((self._last, "weight"))
        if weight and not out_first:
            self._turned.add(weight)

    def _add(self, node: Any, settings: dict[str, Any]) -> None:
        """After a MatMul, the bias of an FC layer."""
        if self._stage <= _STAGES:
            raise ValueError(f"node {node.name or node.output[0]} is an Add, which no VGG has there")
        if self._last[:2] == "fc" and (self._last, "bias") not in self._names:
            self._enter(self._last, ("bias",), (name for name in node.input if name in self.tensors))

    def _constant(self, node: Any, settings: dict[str, Any]) -> None:
        if "value" in settings:
            self._keep(node.output[0], settings["value"])

    def _identity(self, node: Any, settings: dict[str, Any]) -> None:
        self._same[node.output[0]] = self._same.get(node.input[0], node.input[0])
