"""The layers along an ONNX graph: each with the settings that a VGG's has, or an error that names its node."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch

from vggfast.weights.formats._onnx_chain import MAP, ROWS, NodeChain, demand, stranger
from vggfast.weights.formats._onnx_graph import Graph, called
from vggfast.weights.formats._sequence import (
    AVERAGE,
    BATCH_NORM,
    BATCH_NORM_KINDS,
    CONV,
    EPSILON,
    FC,
    LRN,
    LRN_SETTINGS,
    MAX_POOL,
    RELU,
    SOFTMAX,
    STAGES,
)

_LRN = {("bias" if name == "k" else name): value for name, value in LRN_SETTINGS.items()}  # by ONNX's names
_WINDOW = {"auto_pad": b"NOTSET", "dilations": [1, 1], "kernel_shape": list, "pads": [0] * 4, "strides": [1, 1]}
_SAME = (b"SAME_UPPER", b"SAME_LOWER")


class Walk(NodeChain):
    """One walk along a graph.

    Attributes:
        tensors: by the file's names, those of FC layers as (out, in); a tensor of two layers has a second name.
        names: (place, kind) -> the name.
        steps, hwc, lrn, dense, stranger, notes: as of :class:`Raw`.
    """

    def __init__(self, onnx: Any, graph: Graph) -> None:
        super().__init__(onnx, graph)
        self.tensors: dict[str, torch.Tensor] = {}
        self.names: dict[tuple[str, str], str] = {}
        self.lrn = self.dense = False
        self.stranger = ""
        self._stage, self._place = 1, 0
        self._last = ""  # the place of the last layer with weights

    def run(self) -> None:
        """Raises ValueError for what no VGG has before its head; what it has there is kept as `stranger`."""
        self._start()
        try:
            for node in self._graph.nodes:
                self._node(node)
            self._end()
        except ValueError as error:
            if self._stage <= STAGES:
                raise
            self.stranger = str(error)

    # ---- what is kept of a layer -------------------------------------------------------------------------------------

    def _keep(self, node: Any, kind: str, name: str, value: np.ndarray, place: str = "") -> None:
        """A tensor of the last layer with weights, or of `place`."""
        at = (place or self._last, kind)
        if at in self.names:
            raise stranger(node)
        self.names[at] = name if name not in self.tensors else f"{name} as the {' '.join(at)}"
        self.tensors[self.names[at]] = torch.from_numpy(np.array(value, np.float32))

    def _weighted(self, node: Any, kind: str, name: str, weight: np.ndarray, bias: str, outputs: int = 0) -> None:
        """A layer with a weight whose first axis is the outputs' (in the file, axis `outputs`), and a bias or none."""
        self._layer(node, kind)
        if kind == FC:
            self._fc += 1
            self._last = f"fc{self._fc}"
        else:
            self._place += 1
            self._last = f"conv{self._stage}_{self._place}"
        self.roundings.weigh(self._last, called(node), self._graph.scales(name, outputs))
        self._keep(node, "weight", name, weight)
        self._sizes["C"] = len(weight)
        if bias:
            self._keep(node, "bias", bias, self._bias(node, bias, ROWS))
        else:
            self._keep(node, "bias", f"{self._last} bias", np.zeros(len(weight)))
            self._bare = True

    def _bias(self, node: Any, name: str, axes: Sequence[str]) -> np.ndarray:
        """(C,), of a tensor that is spread over these axes, of which it may vary along C alone."""
        value = self._graph.weight(node, name)
        shape = (1,) * (len(axes) - value.ndim) + value.shape
        sizes = {1} if len(shape) > len(axes) else {n for axis, n in zip(axes, shape, strict=True) if axis != "C"}
        if len(shape) > len(axes) or sizes - {1} or value.size not in (1, self._sizes["C"]):
            raise ValueError(
                f"{name}, the bias of {called(node)}, must have {self._sizes['C']} values, one a channel, got shape "
                f"{value.shape}"
            )
        return np.broadcast_to(value.reshape(-1), (self._sizes["C"],))

    # ---- layers with weights -----------------------------------------------------------------------------------------

    def _conv(self, node: Any, name: str, bias: str) -> None:
        self._need(node, MAP)
        weight = self._graph.weight(node, name, 4)
        channels, extent, width = weight.shape[1:]
        in_head = self._stage > STAGES
        found = self._graph.settings(node, **_WINDOW, group=1)
        found["kernel_shape"] = found["kernel_shape"] or [extent, width]
        if found["auto_pad"] in _SAME and extent % 2:
            found |= {"auto_pad": b"NOTSET", "pads": [extent // 2] * 4}
        elif found["auto_pad"] == b"VALID":
            found |= {"auto_pad": b"NOTSET", "pads": [0] * 4}
        kernel = [1 if in_head and self._fc else extent] * 2
        demand(
            node, f"a {extent}x{width} convolution", found, kernel_shape=kernel,
            pads=[0 if in_head else extent // 2] * 4, strides=[1, 1], dilations=[1, 1], group=1, auto_pad=b"NOTSET",
        )  # fmt: skip
        if (extent, width) != tuple(kernel):
            raise ValueError(f"{name}, the weight of {called(node)}, must have kernels of {kernel}, got {weight.shape}")
        self._check_channels(node, name, channels)
        self._weighted(node, FC if in_head else CONV, name, weight, bias)
        if in_head:
            for axis in ("H", "W"):
                if isinstance(self._sizes[axis], int):
                    self._sizes[axis] -= extent - 1

    def _check_channels(self, node: Any, name: str, channels: int) -> None:
        given = self._sizes["C"]
        if isinstance(given, int) and given != channels:
            raise ValueError(f"{name}, the weight of {called(node)}, must take {given} inputs, got {channels}")

    def _batch_norm(self, node: Any, *names: str) -> None:
        self._need(node, MAP)
        test = int(self._graph.opset >= 7)
        found = self._graph.settings(
            node, epsilon=EPSILON, momentum=0.9, training_mode=0, spatial=1, is_test=test, consumed_inputs=list
        )
        demand(node, "a batch norm", found, training_mode=0, spatial=1, is_test=1)
        if not self._last.startswith("conv"):
            raise stranger(node)
        values = dict(zip(BATCH_NORM_KINDS, (self._graph.weight(node, name, 1) for name in names), strict=True))
        epsilon, var = float(found["epsilon"]), values["running_var"].astype(np.float64)
        if not (var + min(epsilon, EPSILON) > 0).all():
            raise ValueError(f"{names[-1]}, the variance of {called(node)}, must be at least 0 everywhere")
        if not np.isclose(epsilon, EPSILON, rtol=1e-6):
            values["weight"] = values["weight"] * np.sqrt((var + EPSILON) / (var + epsilon))
        self._layer(node, BATCH_NORM)
        for name, (kind, value) in zip(names, values.items(), strict=True):
            self._keep(node, kind, name, value, self._last.replace("conv", "bn"))

    def _gemm(self, node: Any, name: str, bias: str) -> None:
        found = self._graph.settings(node, alpha=1.0, beta=1.0, transA=0, transB=0, broadcast=1)
        demand(node, "a Gemm", found, alpha=1.0, beta=1.0, transA=0)
        weight = self._graph.weight(node, name, 2)
        turned = not found["transB"]
        self._linear(node, name, weight.T if turned else weight, bias, int(turned))

    def _mat_mul(self, node: Any, name: str) -> None:
        self._graph.settings(node)
        self._linear(node, name, self._graph.weight(node, name, 2).T, "", 1)

    def _linear(self, node: Any, name: str, weight: np.ndarray, bias: str, outputs: int) -> None:
        """By a weight as (out, in), whose outputs are the file's axis `outputs`."""
        self._need(node, ROWS)
        self._check_channels(node, name, weight.shape[1])
        self._weighted(node, FC, name, weight, bias, outputs)

    def _add(self, node: Any, *names: str) -> None:
        """The bias of the layer before."""
        self._graph.settings(node)
        if not self._bare:
            raise stranger(node)
        name = next((each for each in node.input if each in self._graph), "")
        bias = self._bias(node, name, self._axes)
        del self.tensors[self.names.pop((self._last, "bias"))]
        self._keep(node, "bias", name, bias)
        self._bare = False

    # ---- layers without ----------------------------------------------------------------------------------------------

    def _relu(self, node: Any) -> None:
        self._graph.settings(node, consumed_inputs=list)
        self._layer(node, RELU)

    def _max_pool(self, node: Any) -> None:
        self._need(node, MAP)
        found = self._graph.settings(node, **_WINDOW, ceil_mode=0, storage_order=0)
        cells = self._cells(node)
        if all(isinstance(each, int) and each % 2 == 0 for each in cells):  # where no way of rounding matters
            found |= {"ceil_mode": 0} | ({"auto_pad": b"VALID"} if found["auto_pad"] in _SAME else {})
        if found["auto_pad"] == b"VALID":
            found |= {"auto_pad": b"NOTSET", "pads": [0] * 4}
        demand(
            node, "a max-pool", found, kernel_shape=[2, 2], strides=[2, 2], pads=[0] * 4, ceil_mode=0,
            dilations=[1, 1], storage_order=0, auto_pad=b"NOTSET",
        )  # fmt: skip
        self._layer(node, MAX_POOL)
        self._stage, self._place = self._stage + 1, 0
        for axis, size in zip(("H", "W"), cells, strict=True):
            self._sizes[axis] = size // 2 if isinstance(size, int) else size

    def _lrn(self, node: Any) -> None:
        self._need(node, MAP)
        found = self._graph.settings(node, size=0, alpha=1e-4, beta=0.75, bias=1.0)
        if any(not np.isclose(found[name], value, rtol=1e-6) for name, value in _LRN.items()):
            raise ValueError(f"{called(node)} must have {_LRN}, got {found}")
        self._layer(node, LRN)
        self.lrn = True

    def _average(self, node: Any) -> None:
        """To one cell."""
        if self._cells(node) == (1, 1):
            return
        self._layer(node, AVERAGE)
        self.dense = self._fc > 0
        self._sizes |= {"H": 1, "W": 1}

    def _global_average(self, node: Any) -> None:
        self._need(node, MAP)
        self._graph.settings(node)
        self._average(node)

    def _reduce_mean(self, node: Any, axes: str) -> None:
        found = self._graph.settings(node, axes=list, keepdims=1, noop_with_empty_axes=0)
        self._check_cells(node, found["axes"], axes)
        self._average(node)
        if not found["keepdims"]:
            self._to_rows(node)

    def _average_pool(self, node: Any) -> None:
        """A whole number of cells to each of a square grid, which is what the adaptive pool does there."""
        self._need(node, MAP)
        found = self._graph.settings(node, **_WINDOW, ceil_mode=0, count_include_pad=0)
        kernel, cells = found["kernel_shape"] or [], self._cells(node)
        if found["auto_pad"] == b"VALID":
            found |= {"auto_pad": b"NOTSET", "pads": [0] * 4}
        demand(
            node, "an average pool", found, strides=kernel, pads=[0] * 4, dilations=[1, 1], auto_pad=b"NOTSET",
        )  # fmt: skip
        if kernel == [1, 1]:
            return
        if len(kernel) != 2 or min(kernel) < 1:
            raise ValueError(f"{called(node)}, an average pool, must have a kernel_shape of 2 sizes, got {kernel}")
        sizes = [(n // k, n % k) if isinstance(n, int) else (0, 1) for n, k in zip(cells, kernel, strict=True)]
        if sizes[0] != sizes[1] or sizes[0][1]:
            raise ValueError(f"{called(node)}, an average pool of {kernel}, must make a square of {list(cells)} cells")
        if sizes[0] == (1, 0):
            return self._average(node)
        self._layer(node, AVERAGE)
        self._sizes |= {"H": sizes[0][0], "W": sizes[0][0]}

    def _softmax(self, node: Any) -> None:
        self._need(node, ROWS)
        found = self._graph.settings(node, axis=-1)
        demand(node, "a softmax", {"axis": found["axis"] % 2}, axis=1)
        self._layer(node, SOFTMAX)

    readers: ClassVar = {
        "Conv": (_conv, 2, 3), "BatchNormalization": (_batch_norm, 5, 5), "Gemm": (_gemm, 2, 3),
        "MatMul": (_mat_mul, 2, 2), "Add": (_add, 2, 2), "Relu": (_relu, 1, 1), "MaxPool": (_max_pool, 1, 1),
        "LRN": (_lrn, 1, 1), "GlobalAveragePool": (_global_average, 1, 1), "ReduceMean": (_reduce_mean, 1, 2),
        "AveragePool": (_average_pool, 1, 1), "Softmax": (_softmax, 1, 1), **NodeChain.readers,
    }  # fmt: skip
