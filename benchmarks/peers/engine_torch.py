"""PyTorch's own kernels: NCHW, channels_last, and compiled by inductor with frozen weights, float32 or bfloat16."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from peers.face import Runner
from peers.network import Spec, layers, weights


def plain(spec: Spec, cache: Path, dropout: float = 0.0) -> nn.Module:
    """The network in torch's own layers, with the common weights; in evaluation mode where there is no dropout."""
    parts: list[nn.Module] = []
    named: dict[str, nn.Module] = {}
    for layer in layers(spec):
        if layer.kind == "pool":
            parts.append(nn.MaxPool2d(2))
            continue
        if layer.kind == "conv":
            module: nn.Module = nn.Conv2d(layer.inputs, layer.outputs, layer.kernel, padding=layer.kernel // 2)
        else:
            if layer.name == "classifier.0":
                parts.append(nn.Flatten())
            module = nn.Linear(layer.inputs, layer.outputs)
        named[layer.name] = module
        parts.append(module)
        if layer.kind == "conv" and spec.batch_norm:
            parts.append(nn.BatchNorm2d(layer.outputs))
        if layer.relu:
            parts.append(nn.ReLU(inplace=True))
        if layer.kind == "fc" and layer.relu and dropout:
            parts.append(nn.Dropout(dropout))
    with torch.no_grad():
        for key, array in weights(spec, cache):
            name, suffix = key.rsplit(".", 1)
            getattr(named[name], suffix).copy_(torch.from_numpy(array))
    return nn.Sequential(*parts).train(dropout > 0)


def build(spec: Spec, cache: Path, layout: str = "channels_last", compiled: bool = False) -> Runner:
    """Args: `layout` is "nchw" or "channels_last"; `compiled` takes inductor (TORCHINDUCTOR_FREEZING=1 freezes)."""
    torch.set_num_threads(spec.threads)
    memory = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}[layout]
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[spec.dtype]
    model = plain(spec, cache).to(dtype=dtype, memory_format=memory)
    model.requires_grad_(False)
    call = torch.compile(model) if compiled else model

    def run(x: Tensor) -> Tensor:
        with torch.inference_mode() if not compiled else torch.no_grad():
            return call(x.to(dtype)).float()

    return Runner(lambda x: torch.from_numpy(x).contiguous(memory_format=memory), run, to_array)


def to_array(y: Tensor) -> np.ndarray:
    return y.contiguous().numpy()
