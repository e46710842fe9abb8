"""How an op is registered with torch: one call with its schema and everything that torch may ask of it."""

from __future__ import annotations

import enum
import functools
import inspect
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.compiler.config
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.parameter import is_lazy
from torch.overrides import handle_torch_function
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import register_flop_formula

from vggfast._checks import PLAIN, check_dense, check_memory, check_room, check_tensors, no_memory
from vggfast._version import __version__
from vggfast.ops import _packed
from vggfast.ops._autograd import Jvp, filled, make_kernel
from vggfast.ops._backends import NARROW, OF_DEVICE, WIDE, backend_of

_LIBRARY = torch.library.Library("vggfast", "DEF")
DTYPES = (*NARROW, *WIDE)
BITS = torch.uint8  # of a mask

# torch.compile keeps compiled graphs on disk under the names of their ops: those of another version must not be found.
torch.compiler.config.cache_key_tag += f"vggfast-{__version__}"


class Autocast(enum.Enum):
    """What autocast makes of an op's inputs on CUDA, and on the CPU where there are convolutions of autocast's dtype;
    else, on the CPU, float32."""

    none = enum.auto()
    product = enum.auto()  # autocast's own dtype; on the CPU float32 where the op has no kernels for it
    other = enum.auto()  # as they are


def register(
    schema: str,
    *,
    run: Callable,
    fake: Callable,
    vmap: Callable,
    setup_context: Callable,
    backward: Callable,
    jvp: Jvp | None = None,
    flops: Callable[..., int] | None = None,
    autocast: Autocast = Autocast.none,
    converts: bool = True,
) -> Callable:
    """Registers ``vggfast::<schema>`` and returns it as a callable.

    `run` serves every device, in the dtypes that its back end takes: with `converts`, others are converted around it.
    `fake` gives shapes and exact strides. `jvp` is its derivative in forward mode, which is refused without it.
    `flops` is what torch.utils.flop_counter counts, two a multiply-add, from its arguments with shapes in place of
    tensors.
    """
    name = f"vggfast::{schema.split('(')[0]}"
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    op = getattr(torch.ops.vggfast, schema.split("(")[0]).default
    run = _with_tensors_checked(_converted(run, name) if converts else run, op._schema)
    _LIBRARY.impl(name, run, "CompositeExplicitAutograd")
    for key in ("NestedTensorCPU", "NestedTensorCUDA", "AutogradNestedTensor"):
        _LIBRARY.impl(name, _refusing_nested(op._schema), key)
    torch.library.register_fake(name, fake, lib=_LIBRARY)
    torch.library.register_vmap(name, _of_any_number(op, vmap), lib=_LIBRARY)
    _LIBRARY.impl(name, make_kernel(op, setup_context, backward, jvp), "Autograd", with_keyset=True)
    if flops is not None:
        register_flop_formula(op.overloadpacket)(flops)
    if autocast != Autocast.none:
        _LIBRARY.impl(name, _cast(op, "cpu", functools.partial(cpu_dtype, name, autocast)), "AutocastCPU")
    if autocast == Autocast.product:
        _LIBRARY.impl(name, _cast(op, "cuda", lambda: torch.get_autocast_dtype("cuda")), "AutocastCUDA")
    return op


def cpu_dtype(op: str, autocast: Autocast) -> torch.dtype | None:
    """What an op's inputs on the CPU are cast to; None leaves them as they are."""
    dtype, backend = torch.get_autocast_dtype("cpu"), OF_DEVICE["cpu"](0)
    if not backend.takes("vggfast::conv", dtype):
        return torch.float32
    if autocast == Autocast.other:
        return None
    return dtype if backend.takes(op, dtype) else torch.float32


def _cast(op: Callable, device: str, dtype_now: Callable[[], torch.dtype | None]) -> Callable:
    """`op` for tensors of a kind of device under autocast: floating ones, but for float64, in a dtype."""
    key = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, f"Autocast{device.upper()}"))

    def cast(*args):
        dtype = dtype_now()

        def to(t: Tensor) -> Tensor:
            fits = t.is_floating_point() and t.device.type == device and t.dtype != torch.float64
            return _packed.cast(t, dtype) if dtype and fits else t

        with torch._C._ExcludeDispatchKeyGuard(key):
            return op(*tree_map_only(Tensor, to, args))

    return cast


def _with_tensors_checked(run: Callable, schema: torch.FunctionSchema) -> Callable:
    """`run`, called with tensors that kernels can read, or not at all."""
    tensors = _tensors_of(schema)

    def checked(*args):
        for i, name, optional in tensors:
            if (t := args[i] if i < len(args) else None) is not None:  # torch leaves defaults at the end out
                check_memory(t, name)
            elif not optional:  # torch takes None for any tensor
                check_dense(t, name)
        return run(*args)

    return checked


def _refusing_nested(schema: torch.FunctionSchema) -> Callable:
    """What nested tensors meet, which have no shape that an op could check."""
    tensors = _tensors_of(schema)

    def refuse(*args):
        args = filled(schema, args)
        check_tensors(*(name for _, name, optional in tensors if optional), **{name: args[i] for i, name, _ in tensors})

    return refuse


def _tensors_of(schema: torch.FunctionSchema) -> list[tuple[int, str, bool]]:
    """Position and name of each tensor among an op's arguments, and whether it may be None."""
    kinds = {"Tensor": False, "Optional[Tensor]": True}
    return [
        (i, argument.name, kinds[kind])
        for i, argument in enumerate(schema.arguments)
        if (kind := str(argument.type)) in kinds
    ]


def _converted(run: Callable, op: str) -> Callable:
    """`run` of an op for tensors of another dtype than it is computed in too: they are converted, and results back."""

    def converted(*args):
        dtype, computed = args[0].dtype, computed_in(op, args[0])
        if computed == dtype or {t.dtype for t in args if isinstance(t, Tensor) and t.is_floating_point()} != {dtype}:
            return run(*args)  # of mixed ones, it says what is wrong
        return tree_map_only(Tensor, lambda t: in_dtype(t, dtype), run(*(in_dtype(t, computed) for t in args)))

    return converted


def computed_in(op: str, t: Tensor) -> torch.dtype:
    """What an op computes tensors like `t` in: float32 where the back end has no kernels for 16 bits, and bfloat16
    where it has some and float32 may be rounded for them."""
    backend = backend_of(t) if t.device.type in OF_DEVICE else None
    if t.dtype in NARROW and not (backend and backend.takes(op, t.dtype)):
        return torch.float32
    return torch.bfloat16 if t.dtype == torch.float32 and backend and backend.rounds(op) else t.dtype


def wide(t: Tensor) -> Tensor:
    """`t` in float32 where it has 16 bits, itself else."""
    return in_dtype(t, torch.float32) if t.dtype in NARROW else t


def in_dtype(t: Any, dtype: torch.dtype) -> Any:
    if not (isinstance(t, Tensor) and t.is_floating_point()):
        return t
    if t.device.type == "cpu":
        check_room(t.shape, dtype)
    return t.to(dtype)


def needs_grad(*tensors: Tensor | None) -> bool:
    """Whether a backward may follow an op on these tensors; what ``torch.func`` does around it cannot be seen here."""
    if torch._C._are_functorch_transforms_active() or torch._C._get_tracing_state() or in_forward_mode():
        return True  # torch.jit.trace compares its graph with one that it makes without gradients
    if torch.is_grad_enabled():
        for t in tensors:  # not any(): it costs small ops 1 %
            if t is not None and t.requires_grad:
                return True
    return False


def in_forward_mode() -> bool:
    """Whether derivatives are computed in forward mode around this, of some tensors at least."""
    return forward_ad._current_level >= 0


# ---- checks: each error names the argument, its value and what is allowed -------------------------------------------


def check_float(t: Tensor, name: str) -> None:
    if t.dtype not in DTYPES:
        raise TypeError(f"{name} must have one of the dtypes {', '.join(map(str, DTYPES))}, got {t.dtype}")
    if (kind := t.device.type) not in OF_DEVICE and kind != "meta":
        raise ValueError(f"{name} must be on a device with kernels, one of {', '.join(OF_DEVICE)}, got {t.device}")


def check_activation(t: Tensor, name: str) -> None:
    """A (N, C, H, W) tensor with C, H, W of at least 1."""
    if t.dim() != 4:
        raise ValueError(f"{name} must have 4 axes (N, C, H, W), got shape {tuple(t.shape)}")
    _, c, h, w = t.shape
    if c < 1 or h < 1 or w < 1:  # min() would compare extents, a guard each under torch.compile
        raise ValueError(f"{name} must have C, H and W of at least 1, got shape {tuple(t.shape)}")
    check_float(t, name)


def check_same(t: Tensor, name: str, like: Tensor, like_name: str) -> None:
    if t.dtype != like.dtype:
        raise TypeError(f"{name} must have the dtype of {like_name}, {like.dtype}, got {t.dtype}")
    if t.device != like.device:
        raise ValueError(f"{name} must be on the device of {like_name}, {like.device}, got {t.device}")


def exports_onnx() -> bool:
    """Whether torch.onnx makes a file of a model now: its exporters know torch's own ops, which the reference has."""
    onnx = None if torch.compiler.is_dynamo_compiling() else sys.modules.get("torch.onnx")
    return onnx is not None and onnx.is_in_onnx_export()


def overridden(op: Callable, tensors: Sequence[Any], *args: Any, **options: Any) -> Any:
    """What the ``__torch_function__`` of `tensors`, the first arguments of `op`, makes of a call."""
    for i, t in enumerate(tensors):
        if is_lazy(t):
            check_dense(t, list(inspect.signature(op).parameters)[i])
    return handle_torch_function(op, tensors, *args, **options)


# ---- memory format: inside, everything is NHWC ----------------------------------------------------------------------


def nhwc(t: Tensor) -> Tensor:
    """`t` with its pixels' channels side by side in memory; itself where it is so already."""
    return contiguous(t, torch.channels_last)


def contiguous(t: Tensor, memory_format: torch.memory_format = torch.contiguous_format) -> Tensor:
    """As ``t.contiguous``. Raises MemoryError, naming the shape, where there is no memory for a copy on the CPU."""
    if t.is_contiguous(memory_format=memory_format):
        return t
    if t.device.type == "cpu":
        check_room(t.shape, t.dtype)
    return t.contiguous(memory_format=memory_format)


def empty(like: Tensor, shape: Sequence[int], memory_format: torch.memory_format = torch.contiguous_format) -> Tensor:
    """Room for a result, of `like`'s dtype and device; fake where `like` is fake."""
    if like.device.type in OF_DEVICE and type(like) in PLAIN:
        return backend_of(like).empty(like, shape, like.dtype, memory_format)
    try:
        return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=memory_format)
    except RuntimeError:
        raise no_memory(shape, like.dtype) from None


def empty_nhwc(like: Tensor, shape: Sequence[int]) -> Tensor:
    return empty(like, shape, torch.channels_last)


def is_channels_last(t: Tensor) -> bool:
    """Whether the user handed `t` over as channels_last; a tensor that is both counts as contiguous (NCHW)."""
    return t.dim() == 4 and t.stride(1) == 1 and not t.is_contiguous()


def in_format_of(x: Tensor, y: Tensor) -> Tensor:
    """`y` in x's memory format: what a user sees of an op's NHWC result."""
    return y if is_channels_last(x) else y.contiguous()


# ---- vmap -----------------------------------------------------------------------------------------------------------


def fold(t: Tensor, dim: int | None, size: int) -> Tensor:
    """(N, ...) per example, batched at `dim`, as one (B * N, ...); an unbatched tensor is repeated."""
    t = t.expand(size, *t.shape) if dim is None else t.movedim(dim, 0)
    return t.reshape(-1, *t.shape[2:])


def unfold(t: Tensor, size: int) -> Tensor:
    return t.reshape(size, t.shape[0] // size, *t.shape[1:])


def _of_any_number(op: torch._ops.OpOverload, vmap: Callable) -> Callable:
    """A vmap rule that serves no examples too: their results have the shapes of one example's."""

    def rule(info, in_dims, *args):
        args = filled(op._schema, args)
        in_dims = (*in_dims, *[None] * (len(args) - len(in_dims)))
        if info.batch_size:
            return vmap(info, in_dims, *args)
        examples = [
            arg.sum(dim, dtype=arg.dtype) if isinstance(dim, int) else arg  # zeros that gradients reach
            for arg, dim in zip(args, in_dims, strict=True)
        ]
        results = op(*examples)
        none = tree_map_only(Tensor, lambda t: t[None][:0], results)
        return none, (0,) * len(results) if isinstance(results, tuple) else 0

    return rule


def loop_over_examples(op: Callable, info, in_dims, args):
    """A vmap rule for arguments that cannot be folded (a weight per example): the op, example by example."""

    def example(i: int) -> list:
        return [arg.select(dim, i) if isinstance(dim, int) else arg for arg, dim in zip(args, in_dims, strict=True)]

    results = [op(*example(i)) for i in range(info.batch_size)]
    if isinstance(results[0], tuple):
        return tuple(torch.stack(parts) for parts in zip(*results, strict=True)), (0,) * len(results[0])
    return torch.stack(results), 0
