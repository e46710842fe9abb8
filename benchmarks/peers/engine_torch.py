"""PyTorch's own kernels: NCHW, channels_last, and compiled by inductor with frozen weights: float32, bfloat16, or int8
by PT2E for x86 (torchao)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from peers.face import Runner
from peers.network import Spec, calibration_images, layers, weights


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


def quantised(model: nn.Module, spec: Spec, memory: torch.memory_format) -> nn.Module:
    """The network with layers of int8 for inductor, by PT2E with the scales that x86 has by default."""
    from torchao.quantization.pt2e import quantize_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    # The graph is for one batch, which the images fill, over and over where they are fewer.
    images = calibration_images(spec)
    images = np.resize(images, (-(-len(images) // spec.batch) * spec.batch, *images.shape[1:]))
    batches = torch.from_numpy(images).contiguous(memory_format=memory).split(spec.batch)
    config = x86.get_default_x86_inductor_quantization_config()
    graph = torch.export.export(model, (batches[0],)).module()
    prepared = quantize_pt2e.prepare_pt2e(graph, x86.X86InductorQuantizer().set_global(config))
    for batch in batches:
        prepared(batch)
    return quantize_pt2e.convert_pt2e(prepared)


def build(spec: Spec, cache: Path, layout: str = "channels_last", compiled: bool = False) -> Runner:
    """Args: `layout` is "nchw" or "channels_last"; `compiled` takes inductor (TORCHINDUCTOR_FREEZING=1 freezes)."""
    torch.set_num_threads(spec.threads)
    memory = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}[layout]
    dtype = torch.bfloat16 if spec.dtype == "bf16" else torch.float32
    model = plain(spec, cache).to(dtype=dtype, memory_format=memory)
    model.requires_grad_(False)
    if spec.dtype == "int8":
        with torch.no_grad():
            model = quantised(model, spec, memory)
    call = torch.compile(model) if compiled else model

    def run(x: Tensor) -> Tensor:
        with torch.inference_mode() if not compiled else torch.no_grad():
            return call(x.to(dtype)).float()

    return Runner(lambda x: torch.from_numpy(x).contiguous(memory_format=memory), run, to_array)


def to_array(y: Tensor) -> np.ndarray:
    return y.contiguous().numpy()
