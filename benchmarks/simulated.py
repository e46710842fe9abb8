"""The CUDA kernels on the simulated GPU (csrc/sim) as a back end of vggfast.ops for CPU tensors: `make sim`. And what
an engine does on CUDA, on whatever back end CPU tensors have."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch

from vggfast.engine.capture import Arena
from vggfast.engine.cuda import CudaNetwork
from vggfast.ops import _backends

ROOT = Path(__file__).resolve().parents[1]


class Simulated(_backends.Backend):
    """In place of the CPU's back end: ``_backends.OF_DEVICE["cpu"]``."""

    dtypes, masks_gx = _backends.CudaBackend.dtypes, _backends.CudaBackend.masks_gx
    no_hopper = None

    def __init__(self, module: ModuleType):
        super().__init__(module, "cuda")

    def context(self, tf32=None, exact=None, fixed_weights=False):
        tf32 = _backends.tf32_allowed() if tf32 is None else tf32
        return self.module.Context(tf32=tf32, fixed_weights=fixed_weights)


class Alone:
    """In place of StreamLock: CPU tensors have no streams, and one thread calls."""

    def __init__(self, owner: object, device: torch.device):
        pass

    def __enter__(self):
        if module := simulator():
            module.synchronize()  # a kernel of torch's copies the images first, and starts as all before have ended
        return self

    def __exit__(self, *error):
        pass

    def capturing(self) -> bool:
        return False

    def begin(self) -> None:
        pass

    end = wait = wait_for_stream = begin


@dataclass(frozen=True)
class Recorded:
    """In place of a CUDA graph: what it would replay is run."""

    replay: Callable[[], None]


class SimulatedArena(Arena):
    """Memory that holds NaN in every format until something is written to it."""

    def _record(self, bound):
        self._memory.fill_(0xFF)
        return Recorded(bound.run)


class SimulatedNetwork(CudaNetwork):
    """An engine's network for CUDA on CPU tensors: ``vggfast.engine.OF_DEVICE["cpu"]``."""

    lock_type, arena_type = Alone, SimulatedArena


@functools.cache
def simulator() -> ModuleType | None:
    """The compiled module _sim, or None where it was not built."""
    for path in (ROOT / "build" / "sim").rglob("_sim.*.so"):
        spec = importlib.util.spec_from_file_location("_sim", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    return None
