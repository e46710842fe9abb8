"""Inference of a whole network in one call: weights packed once, one arena, batch norm folded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.forward_ad import unpack_dual

from vggfast import graph as read
from vggfast._checks import MOST_THREADS, check_dense, check_memory, check_whole, is_recorded
from vggfast.engine import cpu, cuda
from vggfast.engine.int8 import with_scales
from vggfast.engine.options import Deviation, Network, Options
from vggfast.quantisation import Quantisation, quantisation_of

__all__ = ["Deviation", "Engine"]

# Tests put others here.
OF_DEVICE: dict[str, Callable[[torch.device, Options], Network]] = {"cpu": cpu.CpuNetwork, "cuda": cuda.CudaNetwork}
_MOST_EXPECTED = 1 << 16  # images, and pixels of a side: of those that algorithms are chosen for
_PARAMETERS = {"cpu": cpu.DTYPES, "cuda": cuda.DTYPES}


class Engine:
    """A network ready for fast inference, on the CPU or on a CUDA GPU: where the model's parameters are.

    A snapshot of the model as ``model.eval()`` computes it: batch norm (SyncBatchNorm and torchvision's
    FrozenBatchNorm2d too) folded into the convolutions, dropout gone. A model with code that cannot be read, such as
    hooks, a forward of its own or other layers than a VGG's, is refused. Build it again after the weights or
    :func:`vggfast.set_exact` change. It keeps its own packed weights, so the model may be deleted; any number of
    threads may share it, and they take turns. After the first call of a shape nothing is allocated but the results, and
    images that a model with scales of its own rounds.

    On CUDA, the first call of a shape captures its kernels into a CUDA graph, which later calls replay; while it does,
    torch lets other threads draw no random numbers on that GPU. Calls may come from any stream: results are ready on
    the one that was current, as those of any torch op. Within somebody else's capture, the kernels become part of that
    graph, and the engine must live as long as it.

    Args:
        model: one of ours with any head, any of torchvision's VGGs, or an ``nn.Sequential`` of their layers (such as
            ``vgg16().features[:23]``), float32 (on CUDA bfloat16 or float16 too). One without parameters runs on the
            CPU. Or a :class:`vggfast.graph.Network`, what was read of one.
        dtype: on the CPU, of the activations between layers, "fp32" or "bf16"; sums are float32 either way, and "bf16"
            keeps the weights of the FC layers in bfloat16 too, and on AMX those of the convolutions, and rounds there
            what FC layers read. "int8": layers behind a ReLU take inputs of 8 bits, 0 to 255 of a scale, and weights of
            8 bits, -127 to 127 of a scale for each output channel; sums are exact. NaN becomes 0 there, infinity the
            largest value. An output that is asked for (a tap) is float32, before its rounding to 8 bits. It saves
            memory everywhere. On CUDA, of
            activations and weights: "fp32", "tf32" (float32, whose products round their factors to TF32), "bf16" or
            "fp16"; torch's own switches for TF32 have no say. On GPUs of compute capability 9.0 "fp8" too: bfloat16,
            but e4m3 for the inputs and weights of convolutions of 128 and more channels, each tensor with one scale.
            :attr:`error` says what it costs. An input that is itself asked for (a tap), or that another layer than a
            convolution makes, stays bfloat16.
        weights: of the FC layers as they are kept, "fp32" or "bf16": half the memory to read. On CUDA `dtype` says it.
        threads: of each call; None takes what torch is set to then. None on CUDA.
        batch, size: of the images to expect, ``size`` x ``size`` pixels each: on the CPU, the algorithms and the packed
            weights are chosen for them. Any others will do, only not as fast; a larger batch asks for more memory.
        graph: on CUDA, whether to capture; False launches kernel after kernel, each call on memory of its own, and
            holds no arena. It suits images of ever new sizes, each of which would be captured: 16 shapes are kept.
        calibration: with "fp8", sample images, prepared as those to come: (N, C, H, W), N at least 1, as a call takes
            them. The largest value that a layer makes of them in float32 becomes the largest that its e4m3 output can
            hold; larger ones are cut there. With "int8", the largest of 8 bits is what makes the least mean squared
            error on them. While the engine is made, it holds the weights in float32 too. None with "int8": a model that
            was quantised elsewhere (`vggfast convert`) has scales of its own, and all is computed as they say, what the
            model rounds of its images and of what a call returns too.

    Raises:
        ValueError: an argument does not fit; the text names it.
        TypeError: a layer has no counterpart here, or does something that is not known; the text names it.
    """

    def __init__(
        self,
        model: nn.Module | read.Network,
        *,
        dtype: str = "fp32",
        weights: str = "fp32",
        threads: int | None = None,
        batch: int = 1,
        size: int = 224,
        graph: bool = True,
        calibration: Tensor | None = None,
    ) -> None:
        if threads is not None:
            threads = check_whole(threads, "threads", 1, MOST_THREADS)
        batch, size = check_whole(batch, "batch", 1, _MOST_EXPECTED), check_whole(size, "size", 1, _MOST_EXPECTED)
        # Not as inference tensors, even under inference_mode: a later call without it writes to them.
        with torch.inference_mode(False), torch.no_grad():
            network = model if isinstance(model, read.Network) else read.whole(model)
        self._device = _device_of(network)
        own = quantisation_of(model) if dtype == "int8" and calibration is None else None
        self._rounding = own or Quantisation({})
        options = Options(dtype, weights, threads, batch, size, graph, calibration, own is not None)
        self._network = OF_DEVICE[self._device.type](self._device, options)
        if calibration is not None:
            self._check_images(calibration, "calibration")
        names: list[str] = []
        self._names: dict[str, int] = {}  # of features: the number of the layer that ends it
        self._check_tensors(network)
        with torch.inference_mode(False), torch.no_grad():
            if own is not None:
                network = with_scales(network, own)
            for layer, name in network.trunk_layers():
                self._network.add(layer)
                self._names[name] = len(names)
                names.append(name)
            self._last_feature = self._last = len(names) - 1
            for layer in network.head.layers() if network.head else ():
                self._network.add(layer)
                self._last += 1
            if self._last < 0:
                raise ValueError("model has no layers to run")
            self._error = self._network.finish(names)

    @property
    def threads(self) -> int:
        """CPU threads of the next call."""
        return self._network.threads

    @property
    def taps(self) -> tuple[str, ...]:
        """The names that :meth:`features` takes, in the order of the layers."""
        return tuple(self._names)

    @property
    def bytes(self) -> int:
        """Memory that the engine holds: packed weights and arena."""
        return self._network.bytes

    def workspace(self, images: int, height: int, width: int, channels: int = 3) -> int:
        """Bytes that a call on images of this shape works on, at most, beside the packed weights, its input and what it
        returns. On the CPU, and with graphs, they stay with the engine.

        Raises:
            ValueError: the images are too small, or have other channels; the text says how.
        """
        shape = {"images": images, "channels": channels, "height": height, "width": width}
        return self._network.workspace(tuple(check_whole(n, name, 0) for name, n in shape.items()), self._last)

    @property
    def error(self) -> Deviation | None:
        """How far the engine is from float32 on the images that it was calibrated on; None where there were none."""
        return self._error

    def __call__(self, x: Tensor) -> Tensor:
        """What the model computes in eval mode.

        Args:
            x: (N, C, H, W), float32 (on CUDA the engine's dtype too), of any memory format, on the engine's device.

        Returns:
            (N, classes) logits, float32; without a head, as :meth:`features`.

        Raises:
            ValueError, TypeError: x does not fit; the text says how.
        """
        return self._run(x, (self._last,))[0]

    def features(self, x: Tensor, taps: Sequence[str] | None = None) -> Tensor | dict[str, Tensor]:
        """The convolutional layers' output, or the outputs of the layers named.

        Args:
            x: (N, C, H, W), as for a call.
            taps: names as "conv1_2", "relu4_3" or "pool5" (see :attr:`taps`).

        Returns:
            (N, channels, h, w), float32, channels_last; with `taps`, a dict of such tensors. No layer after the last
            one named is computed.

        Raises:
            ValueError, TypeError: x or a name does not fit; the text says how.
        """
        if not self._names:
            raise ValueError("model has no layers before its head: it has no features")
        if taps is None:
            return self._run(x, (self._last_feature,))[0]
        read.check_taps(taps, self._names)
        layers = tuple(sorted({self._names[tap] for tap in taps}))
        outputs = dict(zip(layers, self._run(x, layers), strict=True))
        return {tap: outputs[self._names[tap]] for tap in taps}

    def __reduce_ex__(self, protocol: object) -> Any:
        raise TypeError("an Engine cannot be pickled or copied: make one of the model where it is needed")

    def _run(self, x: Tensor, layers: tuple[int, ...]) -> list[Tensor]:
        if is_recorded():
            raise TypeError("a call of an Engine cannot be traced or exported: trace the model instead")
        self._check_images(x, "x")
        if (x.requires_grad and torch.is_grad_enabled()) or unpack_dual(x).tangent is not None:
            raise ValueError("x requires a gradient, and an engine computes none: use the model, or torch.no_grad()")
        first, last = self._rounding.input, self._rounding.output
        found = self._network.run(first(x) if first else x, layers)
        if last and layers[-1] == self._last:
            found[-1] = last(found[-1])
        return found

    def _check_images(self, x: Tensor, name: str) -> None:
        check_dense(x, name)
        if x.dim() != 4:
            raise ValueError(f"{name} must have 4 axes (N, C, H, W), got shape {tuple(x.shape)}")
        if 0 in x.shape[1:]:
            raise ValueError(f"{name} is too small: it must have C, H and W of at least 1, got shape {tuple(x.shape)}")
        if x.dtype not in self._network.inputs or x.device != self._device:
            raise TypeError(
                f"{name} must be {_either(self._network.inputs)} on {self._device}, got {x.dtype} on {x.device}"
            )
        check_memory(x, name)

    def _check_tensors(self, network: read.Network) -> None:
        """Raises TypeError where a layer's tensors are not what the device takes, or lie on another."""
        dtypes = _PARAMETERS[self._device.type]
        for path, tensor in network.tensors():
            if tensor.dtype not in dtypes or tensor.device != self._device:
                where = self._device if tensor.device.type in OF_DEVICE else _either(OF_DEVICE)
                raise TypeError(f"{path} must be {_either(dtypes)} on {where}, got {tensor.dtype} on {tensor.device}")
            check_dense(tensor, path)
        network.check_values()


def _device_of(network: read.Network) -> torch.device:
    """Where a model's first tensor is, if an engine runs there; the CPU else."""
    return network.device if network.device.type in OF_DEVICE else torch.device("cpu")


def _either(values: Iterable[object]) -> str:
    return " or ".join(map(str, values))
