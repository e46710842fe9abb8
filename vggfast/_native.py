"""The one door to the compiled module, and the one place that explains why it will not open."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import torch  # first: the compiled module uses the OpenMP runtime that torch has loaded
from torch import Tensor

from vggfast._checks import MOST_THREADS, check_room, no_memory

_ADVICE = """vggfast's compiled module cannot be loaded: {error}
  {advice}
  `vggfast info` prints what is known of this installation."""


def _advice() -> str:
    built = sorted(Path(__file__).parent.glob("_C.*"))
    if not built:
        return (
            "It was not built. In the source tree: python setup.py build_ext --inplace; "
            "else: pip install --force-reinstall vggfast"
        )
    names = ", ".join(path.name for path in built)
    return (
        f"Found {names}, which this Python or this system cannot load. "
        "Build it again here: python setup.py build_ext --inplace"
    )


@functools.cache
def load() -> ModuleType:
    """The compiled module.

    Raises:
        ImportError: it is missing or does not load; the text says the first error and what to do.
    """
    try:
        return importlib.import_module("vggfast._C")
    except ImportError as error:
        raise ImportError(_ADVICE.format(error=error, advice=_advice())) from error


def view(t: Tensor, name: str):
    """What the compiled module sees of a tensor: address, shape, strides, dtype, device. Keeps the tensor alive.

    Raises:
        TypeError: the tensor stands for elements that are nowhere; the text calls it `name`.
    """
    return _view(load(), t, t.device.type, name)


def _view(core: ModuleType, t: Tensor, device: str, name: str = "tensor"):
    if t.is_neg():
        t = t.resolve_neg()  # the address knows nothing of a negation that waits
    try:
        address = t.data_ptr()
    except RuntimeError:  # while torch exports
        address = 0
    if not address and t.device.type != "meta" and t.numel():
        raise TypeError(f"{name} must be a tensor with memory of its own, got {type(t).__name__}")
    return core.TensorView(t, address, t.shape, t.stride(), _NAMES[t.dtype], device)


class _Names(dict):
    """Dtypes' names in the compiled module."""

    def __missing__(self, dtype: torch.dtype) -> str:
        return self.setdefault(dtype, str(dtype).removeprefix("torch."))


_NAMES = _Names()
_POOLED_BYTES = 1 << 20  # from here on, touching fresh pages costs more than finding used ones


def empty(shape: Sequence[int], dtype: torch.dtype, memory_format: torch.memory_format = torch.contiguous_format):
    """:func:`torch.empty` on the CPU. A large one comes from our pool of huge pages, and goes back there.

    Raises:
        MemoryError: there is no such memory; the text says for what shape.
        ValueError: there is nothing to hold, but the strides of the shape overflow.
    """
    bytes_ = check_room(shape, dtype)
    if bytes_ < _POOLED_BYTES:
        try:
            return torch.empty(shape, dtype=dtype, device="cpu", memory_format=memory_format)
        except RuntimeError:  # of no elements
            raise ValueError(f"a tensor of shape {tuple(shape)} has strides of more than 2^63") from None
    try:
        buffer = load().CachedBuffer(bytes_)
    except MemoryError:
        raise no_memory(shape, dtype) from None
    storage = torch.frombuffer(buffer, dtype=torch.uint8, count=bytes_).untyped_storage()
    strides = torch.empty(shape, device="meta", memory_format=memory_format).stride()
    return torch.empty(0, dtype=dtype, device="cpu").set_(storage, 0, tuple(shape), strides)


def threads() -> int:
    """Threads of one call: what torch is set to now.

    Raises:
        ValueError: more than any machine has.
    """
    count = torch.get_num_threads()
    if count > MOST_THREADS:
        raise ValueError(f"torch.set_num_threads or OMP_NUM_THREADS must be at most {MOST_THREADS}, got {count}")
    return count


def cpu_isas() -> list[str]:
    """Instruction sets that this machine can run, slowest first."""
    return load().cpu_isas()


def cpu_isa() -> str:
    """The instruction set in use (``VGGFAST_CPU_ISA`` chooses another when the process starts)."""
    return load().cpu_isa()


def set_cpu_isa(name: str) -> None:
    """Uses instruction set `name`, one of :func:`cpu_isas`, from now on.

    Raises:
        ValueError: this machine has no such instruction set.
    """
    load().set_cpu_isa(name)


def conv_algorithm() -> str:
    """What :func:`set_conv_algorithm` chose."""
    return load().conv_algorithm()


def conv_algorithms() -> list[str]:
    """What :func:`set_conv_algorithm` takes on the instruction set in use."""
    return load().conv_algorithms()


def set_conv_algorithm(name: str) -> None:
    """Uses `name` for float32 convolutions on the CPU from now on.

    "auto" takes the fastest for each shape, "direct" sums the products as they are, "winograd2", "winograd4" and
    "winograd6" are F(m x m, 3 x 3): fewer multiplications, more rounding. float64 is always direct.

    On the instruction sets with tiles, "bf16x6" and "bf16x3" compute y and the gradient of x by 6 or 3 products of
    bfloat16 for one of float32. The 6 round no more than "direct" does; the 3 leave about 4e-6 of a result. Either
    takes what is less than 2**-126 for 0: inputs or weights, and results, of less than 2**-102 (2**-109) are less
    exact, and a product too large for float32 may give NaN in place of infinity.

    Raises:
        ValueError: the instruction set in use has no such algorithm.
    """
    load().set_conv_algorithm(name)


def set_exact(exact: bool) -> None:
    """With True, convolutions are direct: their rounding is that of plain sums, and Inf and NaN stay in the pixels that
    they reach. With False, the default, the fastest algorithm is taken, and a tile of up to 6 x 6 pixels shares them.

    So do exact zeros: a gradient that is zero outside a cell of a map leaves exact zeros outside of what the cell sees
    where sums are direct, and rounding errors in pixels beside it where they are not, whose signs mean nothing.

    This is one switch for the process. A model that was given its own by ``vggfast.accelerate(model, exact=...)``, and
    a call of :func:`vggfast.ops.conv3x3` with `exact`, do not follow it.
    """
    # On tiles, "bf16x6" is as exact: what to ask for there if it is faster (see csrc/cpu/algorithms/tiles.cpp).
    set_conv_algorithm("direct" if exact else "auto")
