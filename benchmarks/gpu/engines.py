"""Forward passes on CUDA: vggfast's engine and module; torch's layers in either layout, tuned, compiled or replayed.

The engine replays a CUDA graph by itself: its time includes the copies of the images and of the answer. The others'
replays read the images where they are, and write over their last answer.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import timing
import torch
from peers import engine_torch, engine_vggfast
from peers.face import Runner
from peers.network import SEED, Spec
from torch import Tensor, nn

import vggfast
from gpu import choice

CALIBRATION_IMAGES = 8
LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}


def clock() -> Callable[[Callable[[], Any], int], list[float]]:
    """A runner's `samples`, by the GPU's events."""
    return partial(timing.on_cuda, flush=timing.flusher())


def network(spec: Spec, cache: Path, ours: bool, layout: str, dropout: float = 0.0) -> nn.Module:
    """The network with the common weights, where and in what the spec says; ours packs weights of any layout."""
    dtype = choice.torch_dtype(spec.dtype)
    if ours:
        model = engine_vggfast.module(spec, cache, dropout).train(dropout > 0)
        return model.to(device=choice.DEVICE, dtype=dtype)
    plain = engine_torch.plain(spec, cache, dropout)
    return plain.to(device=choice.DEVICE, dtype=dtype, memory_format=LAYOUTS[layout])


def placed(spec: Spec, layout: str) -> Callable[[Any], Tensor]:
    """Turns an array of images into the tensor that a user of this layout holds."""
    dtype = choice.torch_dtype(spec.dtype)
    return lambda x: torch.from_numpy(x).to(choice.DEVICE, dtype).contiguous(memory_format=LAYOUTS[layout])


def calibration_images(spec: Spec) -> Tensor:
    """Images that no engine is timed or checked on, of the same kind."""
    shape = (CALIBRATION_IMAGES, 3, spec.size, spec.size)
    return torch.from_numpy(np.random.default_rng(SEED + 2).standard_normal(shape, np.float32)).to(choice.DEVICE)


def replayed(call: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """`call` on the images of its first use, captured then: what a server with a fixed input buffer runs."""
    kept: list[Any] = []

    def run(x: Tensor) -> Tensor:
        if not kept:
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(timing.WARM_UPS):
                    call(x)
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                y = call(x)
            kept.extend((graph, y))
        kept[0].replay()
        return kept[1]

    return run


def build(
    spec: Spec, cache: Path, ours: bool = False, layout: str = "channels_last", tuned: bool = False,
    mode: str | None = None, graph: bool = False, planned: bool = False, fp8: bool = False,
) -> Runner:  # fmt: skip
    """Args: `ours` takes vggfast.VGG, `planned` its vggfast.Engine, in the spec's dtype or in `fp8`; else torch's
    layers in `layout`. `tuned` has cuDNN try its kernels, `mode` is torch.compile's, `graph` replays a CUDA graph."""
    choice.set_precision(spec.dtype)
    torch.backends.cudnn.benchmark = tuned
    model = network(spec, cache, ours, layout).requires_grad_(False)
    if planned:
        dtype, calibration = ("fp8", calibration_images(spec)) if fp8 else (spec.dtype, None)
        call = vggfast.Engine(model, dtype=dtype, calibration=calibration)
        del model
    else:
        call = torch.compile(model, mode=mode, dynamic=False) if mode else model

    def forward(x: Tensor) -> Tensor:
        with torch.no_grad() if mode else torch.inference_mode():
            return call(x)

    run = replayed(forward) if graph else forward
    return Runner(placed(spec, layout), run, lambda y: y.float().cpu().numpy(), samples=clock())
