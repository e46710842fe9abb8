"""vggfast: the planned engine, and the plain module for comparison."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

import vggfast
from peers.engine_torch import to_array
from peers.face import Runner
from peers.network import Spec, calibration_images, weights


def module(spec: Spec, cache: Path, dropout: float = 0.5) -> vggfast.VGG:
    """Our network with the common weights."""
    head = "linear" if spec.part == "whole" else "none"
    model = vggfast.VGG(
        spec.network, num_classes=spec.classes, dropout=dropout, head=head, init=None, width=spec.width,
        hidden=spec.hidden, pool_size=spec.extent, batch_norm=spec.batch_norm,
    )  # fmt: skip
    norms = {p for module in model.modules() if isinstance(module, nn.BatchNorm2d) for p in module.parameters()}
    parameters = {name: p for name, p in model.named_parameters() if p not in norms}  # those are 1 and 0 everywhere
    with torch.no_grad():
        for key, array in weights(spec, cache):
            parameters.pop(key).copy_(torch.from_numpy(array))
    if parameters:
        raise ValueError(f"{', '.join(parameters)}: no common weights for these parameters of vggfast.VGG")
    return model


def build(spec: Spec, cache: Path, planned: bool = True) -> Runner:
    """Args: `planned` takes vggfast.Engine; else the plain module under torch.inference_mode."""
    torch.set_num_threads(spec.threads)
    model = module(spec, cache).eval()
    if planned:
        dtype, _, stored = spec.dtype.partition("+")
        engine = vggfast.Engine(
            model, dtype=dtype, weights="bf16" if stored else "fp32", threads=spec.threads, batch=spec.batch,
            size=spec.size, calibration=torch.from_numpy(calibration_images(spec)) if dtype == "int8" else None,
        )  # fmt: skip
        call = engine if spec.part == "whole" else engine.features
        del model
    else:
        call = model

    def run(x: Tensor) -> Tensor:
        with torch.inference_mode():
            return call(x)

    return Runner(lambda x: torch.from_numpy(x).contiguous(memory_format=torch.channels_last), run, to_array)
