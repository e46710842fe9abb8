"""An engine's network on the CPU: the compiled core packs its layers, plans and runs them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vggfast import _native
from vggfast._native import view
from vggfast.engine.options import Options
from vggfast.engine.plan import Shape
from vggfast.graph.layers import Conv, Flatten, Layer, Linear, Lrn, MaxPool, Relu, RowMean, Windows

DTYPES = (torch.float32,)  # that a model's parameters may have


class CpuNetwork:
    """See :class:`vggfast.engine.options.Network`."""

    inputs: tuple[torch.dtype, ...] = (torch.float32,)

    def __init__(self, device: torch.device, options: Options) -> None:
        bf16 = options.one_of("dtype", ("fp32", "bf16"), device) == "bf16"
        bf16_weights = options.one_of("weights", ("fp32", "bf16"), device) == "bf16" or bf16
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

    def add(self, layer: Layer) -> None:
        core = self._core
        match layer:
            case Conv(weight, bias):
                core.add_conv(view(weight, "weight"), None if bias is None else view(bias.contiguous(), "bias"))
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
                core.add_linear(view(weight, "weight"), None if bias is None else view(bias.contiguous(), "bias"))
            case RowMean():
                core.add_row_mean()

    def finish(self, names: Sequence[str]) -> None:
        """Nothing is left to do: each layer was packed as it came."""

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
