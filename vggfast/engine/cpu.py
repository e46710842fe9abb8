"""An engine's network on the CPU: the compiled core packs its layers, plans and runs them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vggfast import _native
from vggfast._native import view
from vggfast.engine.int8 import Int8
from vggfast.engine.options import Deviation, Options
from vggfast.engine.plan import Shape
from vggfast.graph.layers import (
    Conv,
    Flatten,
    Layer,
    Linear,
    Lrn,
    MaxPool,
    Quantised,
    QuantisedConv,
    QuantisedLinear,
    Relu,
    RowMean,
    Windows,
)

DTYPES = (torch.float32,)  # that a model's parameters may have


class CpuNetwork:
    """See :class:`vggfast.engine.options.Network`."""

    inputs: tuple[torch.dtype, ...] = (torch.float32,)

    def __init__(self, device: torch.device, options: Options) -> None:
        dtype = options.one_of("dtype", ("fp32", "bf16", "int8"), device)
        bf16 = dtype == "bf16"
        bf16_weights = options.one_of("weights", ("fp32", "bf16"), device) == "bf16" or bf16
        self._calibration: Int8 | None = None  # until the last layer is added
        if dtype == "int8" and not options.scaled:
            exact = replace(options, dtype="fp32", weights="fp32", calibration=None)
            self._calibration = Int8(type(self)(device, exact), options.images())
        else:
            options.refuse_calibration()
        self._threads = options.threads
        self._core = _native.load().Engine(
            bf16=bf16,
            bf16_weights=bf16_weights,
            threads=self.threads,
            batch=options.batch,
            size=options.size,
        )

    @property
    def threads(self) -> int:
        return self._threads or _native.threads()

    @property
    def bytes(self) -> int:
        return self._core.bytes()

    def add(self, layer: Layer | Quantised) -> None:
        if self._calibration and not isinstance(layer, Quantised):
            self._calibration.add(layer)
        else:
            self._add(layer)

    def _add(self, layer: Layer | Quantised) -> None:
        core = self._core
        match layer:
            case QuantisedConv():
                core.add_quantised_conv(*_quantised(layer))
            case QuantisedLinear():
                core.add_quantised_linear(*_quantised(layer))
            case Conv(weight, bias):
                core.add_conv(view(weight, "weight"), _bias(bias))
            case Relu():
                core.add_relu()
            case MaxPool(ceil_mode):
                core.add_max_pool(ceil_mode)
            case Lrn(size, alpha, beta, k):
                core.add_lrn(size, alpha, beta, k)
            case Flatten(size):
                core.add_flatten(size)
            case Windows(size):
                core.add_windows(size)
            case Linear(weight, bias):
                core.add_linear(view(weight, "weight"), _bias(bias))
            case RowMean():
                core.add_row_mean()

    def finish(self, names: Sequence[str]) -> Deviation | None:
        """Without 8 bits nothing is left to do: each layer was packed as it came."""
        if not self._calibration:
            return None
        error = self._quantise(self._calibration, names)
        self._calibration = None  # with the network in float32
        _native.load().release_unused()  # every layer's output in float32: no call makes as many
        return error

    def _quantise(self, calibration: Int8, names: Sequence[str]) -> Deviation:
        for layer in calibration.quantise(names):
            self._add(layer)
        return calibration.deviation(lambda x: self.run(x, calibration.ends), names)

    def workspace(self, shape: Shape, last: int) -> int:
        return self._core.workspace(last, *shape, self.threads)

    def run(self, x: Tensor, outputs: Sequence[int]) -> list[Tensor]:
        results = []
        for layer in outputs:
            shape = self._core.output_shape(layer, *x.shape)
            memory_format = torch.channels_last if len(shape) == 4 else torch.contiguous_format
            results.append(_native.empty(shape, torch.float32, memory_format))
        views = [(layer, view(y, "output")) for layer, y in zip(outputs, results, strict=True)]
        try:
            self._core.run(view(x, "x"), views, self.threads)
        except MemoryError as error:
            raise MemoryError(f"x of shape {tuple(x.shape)} needs more memory than there is: {error}") from None
        return results


def _bias(bias: Tensor | None) -> Any:
    return None if bias is None else view(bias.contiguous(), "bias")


def _quantised(layer: Quantised) -> tuple[Any, ...]:
    return view(layer.weight, "weight"), _bias(layer.bias), view(layer.unit, "unit"), layer.source
