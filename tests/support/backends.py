"""The back ends that tests run on, and the algorithms of float32 convolutions."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from simulated import Simulated, SimulatedNetwork, simulator  # noqa: F401

from vggfast import _native

# The CPU's instruction sets, AMX in software too; the CUDA kernels on the simulated GPU (CPU tensors; `make sim` builds
# it) and on a real one (`pytest --cuda`); and torch's ops in their place, as GPUs get them that ours do not run on.
BACKENDS = ("cpu-portable", "cpu-avx2", "cpu-avx512", "cpu-amx", "cpu-amx-emulated", "sim", "torch", "cuda")


def _algorithms(isa: str) -> list[str]:
    before = _native.cpu_isa()
    _native.set_cpu_isa(isa)
    names = _native.conv_algorithms()
    _native.set_cpu_isa(before)
    return names


ALGORITHMS = (*_algorithms("amx-emulated"), "tf32")
# Of these, those that only the instruction sets with tiles have; and those that are as exact as plain sums.
ON_TILES = tuple(name for name in _algorithms("amx-emulated") if name not in _algorithms("portable"))
EXACT = ("direct", "bf16x6")


class Poisoned(Simulated):
    """Room for results holds NaN in every format."""

    def empty(self, like, shape, dtype, memory_format=torch.contiguous_format):
        t = super().empty(like, shape, dtype, memory_format)
        t.untyped_storage().fill_(0xFF)
        return t
