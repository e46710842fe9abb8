"""The CUDA kernels on the simulated GPU (csrc/sim) as a back end of vggfast.ops for CPU tensors: `make sim`."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from types import ModuleType

import torch

from vggfast.ops import _backends

ROOT = Path(__file__).resolve().parents[1]


class Simulated(_backends.Backend):
    """In place of the CPU's back end: ``_backends.OF_DEVICE["cpu"]``."""

    dtypes = _backends.CudaBackend.dtypes

    def __init__(self, module: ModuleType):
        super().__init__(module, "cuda")

    def context(self):
        return self.module.Context(tf32=torch.backends.cudnn.conv.fp32_precision == "tf32")


@functools.cache
def simulator() -> ModuleType | None:
    """The compiled module _sim, or None where it was not built."""
    for path in (ROOT / "build" / "sim").rglob("_sim.*.so"):
        spec = importlib.util.spec_from_file_location("_sim", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    return None
