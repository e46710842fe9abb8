"""Where ops run: one back end for each kind of device, all with the same face."""

from __future__ import annotations

import contextlib
import functools
import re
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from vggfast import _native
from vggfast.ops import _torch_kernels

NARROW = (torch.bfloat16, torch.float16)
WIDE = (torch.float32, torch.float64)
_ON_TILES = ("vggfast::conv", "vggfast::conv_dgrad", "vggfast::conv_wgrad")
_LINEAR_ON_TILES = ("vggfast::linear", "vggfast::linear_dgrad", "vggfast::linear_wgrad")


class Backend:
    """Kernels of ours: a compiled module's ops for one device.

    Attributes:
        dtypes: what all its kernels take; ops convert other floating dtypes to float32 and back, unless :meth:`takes`
            says that theirs take those too.
        no_hopper: why the kernels for Hopper GPUs do not run here, or None.
        masks_gx: whether dgrad's kernels apply the mask of the ReLU before their layer as they write gx, so that no
            other kernel need read that gradient through it.
    """

    dtypes: tuple[torch.dtype, ...] = WIDE
    masks_gx = False
    no_hopper: str | None = "this is a CPU"

    def __init__(self, module: ModuleType, device: str):
        self.module = module
        self.device = device
        self.ops = getattr(module, device)

    def has(self, name: str) -> bool:
        return hasattr(self.ops, name)

    def takes(self, op: str, dtype: torch.dtype) -> bool:
        """Whether the kernels of op "vggfast::conv" and the like take this dtype. On the CPU batch norm takes bfloat16;
        and the instruction set in use has convolutions and linear layers of it, or has none."""
        if dtype in self.dtypes:
            return True
        if dtype != torch.bfloat16:
            return False
        on_tiles = op in _ON_TILES or op in _LINEAR_ON_TILES
        return op == "vggfast::batch_norm" or (on_tiles and self.module.conv_takes("bfloat16"))

    def rounds(self, op: str) -> bool:
        """Whether op computes float32 tensors in bfloat16: where the CPU can, and torch lets convolutions do so. Linear
        layers stay: over few rows their time goes into reading the weights, and over many torch's product runs, which
        has a switch of its own."""
        if torch.bfloat16 in self.dtypes or op not in _ON_TILES or not self.takes(op, torch.bfloat16):
            return False
        return torch.backends.mkldnn.conv.fp32_precision == "bf16"  # type: ignore[attr-defined]

    def sums_in(self, dtype: torch.dtype) -> torch.dtype:
        """The dtype of the weight gradients that the kernels write for tensors of this one."""
        return dtype if dtype in self.dtypes else torch.float32

    def run(
        self,
        name: str,
        *args,
        workspace: Tensor | None = None,
        tf32: bool | None = None,
        exact: bool | None = None,
        fixed_weights: bool = False,
    ) -> Any:
        """Runs op `name`, and returns what it does. `args` are its inputs, a tensor first, and outputs; tensors lie as
        the op needs them.

        `workspace` holds as many bytes as :meth:`workspace` says, None allocates them; `tf32` says whether factors of
        float32 may be rounded, None asks torch; `exact` whether convolutions are direct sums, None asks
        :func:`vggfast.set_exact`; `fixed_weights` that nothing which may still run on the stream writes the weight and
        the bias of a convolution, so that they are read while the kernel before still runs.
        """
        views = [self.view(arg) if isinstance(arg, Tensor) else arg for arg in args]
        context = self.context(tf32, exact, fixed_weights)
        if size := getattr(self.ops, f"{name}_workspace", None):
            if workspace is None:
                workspace = self.empty(args[0], (size(*views, context),), torch.uint8)
            views.append(self.view(workspace))
        return getattr(self.ops, name)(*views, context)

    def workspace(self, name: str, *args, tf32: bool | None = None) -> int:
        """Bytes of workspace that :meth:`run` needs for these arguments, whose shapes, dtypes and strides count: they
        may be on the meta device."""
        size = getattr(self.ops, f"{name}_workspace", None)
        views = [self.view(arg) if isinstance(arg, Tensor) else arg for arg in args]
        return size(*views, self.context(tf32)) if size else 0

    def stream(self, t: Tensor) -> int:
        """Where kernels for tensors on `t`'s device run now: what two of one number do is in order."""
        return 0

    def shares_gradients(self, x: Tensor, weight: Tensor) -> bool:
        """Whether the kernels of both gradients of a convolution want the gradient of its sums in memory. Then it is
        made of a mask once, for both; other kernels read through the mask."""
        if self.no_hopper or x.dtype not in NARROW:
            return False  # before a compiler is asked about extents
        cout, cin, kernel, _ = weight.shape
        return kernel == 3 and cin % 8 == 0 and cout % 8 == 0 and cout >= 16

    def view(self, t: Tensor):
        return _native._view(self.module, t, self.device)

    def context(self, tf32: bool | None = None, exact: bool | None = None, fixed_weights: bool = False):
        """How the core is to run a call."""
        return _context(self.module, _native.threads(), exact)

    def empty(self, like: Tensor, shape: Sequence[int], dtype: torch.dtype, memory_format=torch.contiguous_format):
        """Room for a result or a workspace."""
        return _native.empty(shape, dtype, memory_format)


@functools.cache
def _context(module: ModuleType, threads: int, exact: bool | None):
    return module.Context(threads, exact=exact)


class CudaBackend(Backend):
    """The CUDA kernels: on torch's current stream, with workspaces from torch's caching allocator. All of their
    convolutions are direct sums."""

    dtypes = (*NARROW, *WIDE)
    masks_gx = True

    def __init__(self, module: ModuleType, index: int):
        super().__init__(module, "cuda")
        self.no_hopper = _why_no_hopper(module, index)

    def run(self, name, *args, **options):
        with torch.cuda.device(args[0].device):
            return super().run(name, *args, **options)

    def workspace(self, name, *args, tf32=None):
        with torch.cuda.device(args[0].device if args[0].is_cuda else None):
            return super().workspace(name, *args, tf32=tf32)

    def stream(self, t):
        return torch.cuda.current_stream(t.device).cuda_stream

    def context(self, tf32=None, exact=None, fixed_weights=False):
        tf32 = tf32_allowed() if tf32 is None else tf32
        stream = torch.cuda.current_stream().cuda_stream
        return self.module.Context(stream=stream, tf32=tf32, fixed_weights=fixed_weights)

    def empty(self, like, shape, dtype, memory_format=torch.contiguous_format):
        return torch.empty(shape, dtype=dtype, device=like.device, memory_format=memory_format)


def tf32_allowed() -> bool:
    """Whether torch lets convolutions of float32 round their factors to TF32."""
    return torch.backends.cudnn.conv.fp32_precision == "tf32"  # type: ignore[attr-defined]


_switching = threading.RLock()


@contextlib.contextmanager
def torch_rounds(tf32: bool, *switches: Any) -> Iterator[None]:
    """With torch's `switches` for TF32 as asked. They are the whole process's, so that who uses them takes turns."""
    with _switching:
        before = [switch.fp32_precision for switch in switches]
        if (before[0] == "tf32") == tf32:
            yield
            return
        try:
            for switch in switches:
                switch.fp32_precision = "tf32" if tf32 else "ieee"
            yield
        finally:
            for switch, value in zip(switches, before, strict=True):
                switch.fp32_precision = value


class TorchBackend:
    """torch's own ops in the kernels' place, for GPUs that ours do not run on."""

    dtypes = (*NARROW, *WIDE)
    masks_gx = False
    no_hopper: str | None = "torch's ops run here"

    def has(self, name: str) -> bool:
        return hasattr(_torch_kernels, name)

    def takes(self, op: str, dtype: torch.dtype) -> bool:
        return dtype in self.dtypes

    def rounds(self, op: str) -> bool:
        return False

    def sums_in(self, dtype: torch.dtype) -> torch.dtype:
        return dtype

    def run(
        self,
        name: str,
        *args,
        workspace: Tensor | None = None,
        tf32: bool | None = None,
        exact: bool | None = None,
        fixed_weights: bool = False,
    ) -> None:
        switched: Any = contextlib.nullcontext()
        if tf32 is not None and args[0].dtype == torch.float32:
            # torch needs the two to be equal
            switched = torch_rounds(tf32, torch.backends.cudnn.conv, torch.backends.cudnn.rnn)  # type: ignore[attr-defined]
        with torch.autocast(args[0].device.type, enabled=False), switched:  # dtypes are settled
            getattr(_torch_kernels, name)(*args)

    def workspace(self, name: str, *args, tf32: bool | None = None) -> int:
        return 0

    def shares_gradients(self, x: Tensor, weight: Tensor) -> bool:
        return False

    def empty(self, like, shape, dtype, memory_format=torch.contiguous_format):
        return torch.empty(shape, dtype=dtype, device=like.device, memory_format=memory_format)


LEAST_CAPABILITY = (8, 0)


def runs_on(capability: tuple[int, int], architectures: str) -> bool:
    """Whether code for these architectures ("80-real, 90a-real, 90-virtual", as build_info says) runs on a GPU of this
    compute capability: machine code of its generation, up to its version, or PTX of any that came before."""
    for number, specific, kind in re.findall(r"(\d+)([a-z]?)-(real|virtual)", architectures):
        major, minor = divmod(int(number), 10)
        if specific:
            fits = capability == (major, minor)
        elif kind == "real":
            fits = capability[0] == major and capability[1] >= minor
        else:
            fits = capability >= (major, minor)
        if fits:
            return True
    return False


def _why_not(module: ModuleType, index: int) -> str | None:
    """Why a GPU cannot run our kernels, or None."""
    if not hasattr(module, "cuda"):
        return "this build has none (VGGFAST_CUDA)"
    capability, architectures = torch.cuda.get_device_capability(index), dict(module.build_info())["CUDA architectures"]
    gpu = f"{torch.cuda.get_device_name(index)} is of sm_{capability[0]}{capability[1]}"
    if capability < LEAST_CAPABILITY:
        return f"{gpu}, and sm_80 is the least for them"
    return None if runs_on(capability, architectures) else f"{gpu}, and this build is for {architectures}"


def _why_no_hopper(module: ModuleType, index: int) -> str | None:
    """Why a GPU that runs our kernels does not run those for Hopper, or None."""
    capability, architectures = torch.cuda.get_device_capability(index), dict(module.build_info())["CUDA architectures"]
    if capability != (9, 0):
        return f"{torch.cuda.get_device_name(index)} is of sm_{capability[0]}{capability[1]}"
    return None if "90a-real" in architectures else f"this build is for {architectures}, without 90a"


@functools.cache
def _cuda(index: int) -> CudaBackend | TorchBackend:
    module = _native.load()
    if reason := _why_not(module, index):
        warnings.warn(f"vggfast runs on torch's ops, without CUDA kernels of its own: {reason}", stacklevel=2)
        return TorchBackend()
    return CudaBackend(module, index)


@functools.cache
def _cpu(index: int) -> Backend:
    return Backend(_native.load(), "cpu")


# Tests put others here.
OF_DEVICE: dict[str, Callable[[int], Backend | TorchBackend]] = {"cpu": _cpu, "cuda": _cuda}


def shares_gradients(x: Tensor, weight: Tensor) -> bool:
    """As the back end says that is to run on x's device. Tensors may be fake, with nothing there to run them, or
    meta."""
    kind = x.device.type
    there = kind in OF_DEVICE and (kind != "cuda" or torch.cuda.is_available())
    return there and backend_of(x).shares_gradients(x, weight)


def masks_gx(x: Tensor) -> bool:
    """As the back end says that runs on x's device, where there is one."""
    return x.device.type in OF_DEVICE and backend_of(x).masks_gx


def backend_of(t: Tensor) -> Backend | TorchBackend:
    """What runs ops on `t`'s device, which is one of OF_DEVICE."""
    device = t.device
    return OF_DEVICE[device.type](device.index or 0)
