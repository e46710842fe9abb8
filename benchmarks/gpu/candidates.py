"""The passes of one 3x3 layer on CUDA by vggfast, cuDNN alone, torch's layers, torch.compile, JAX, apex, and cuDNN's
fused graph.

A pass has several meanings, each with an exact answer: the convolution alone, and what the net has around it (bias and
ReLU, and max-pool for some layers). Backward, ReLU and pool choose by what the forward rounded, so that each side is
held to its own choice.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import timing
import torch
import torch.nn.functional as F
from torch import Tensor

from gpu import choice
from vggfast.ops.conv import conv, conv_dgrad, conv_wgrad
from vggfast.ops.conv import conv3x3 as our_conv3x3
from vggfast.ops.mask import mask_scatter

PASSES = ("fprop", "dgrad", "wgrad")
COMPILED = {"torch.compile": "default", "torch.compile autotune": "max-autotune-no-cudagraphs"}
FORMATS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}
aten = torch.ops.aten
# torch keeps cuDNN's plans per thread and finds them again whatever torch.backends.cudnn.benchmark is by then.
_TUNER = ThreadPoolExecutor(1, "cudnn-benchmark")


def reason(error: Exception) -> str:
    """What an error says, in a line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


class Case(NamedTuple):
    """A layer and a pass; `pool` says whether max-pool follows."""

    cin: int
    cout: int
    size: int
    batch: int
    which: str
    pool: bool
    dtype: str

    @property
    def flops(self) -> int:
        return 2 * 9 * self.cin * self.cout * self.size**2 * self.batch

    @property
    def title(self) -> str:
        return f"{self.cin} -> {self.cout}, {self.size}²{' + pool' if self.pool else ''}"


@dataclass
class Candidate:
    """`run` returns what is compared with the exact answer of that name; `clock` is "host" or "events"."""

    run: Callable[[], Any]
    exact: str
    tuned: bool = False
    clock: str = "events"
    result: Callable[[Any], Tensor] = lambda y: y

    def once(self) -> Tensor:
        return self._in_thread(lambda: self.result(self.run()))

    def sample(self, calls: int, flush: Callable[[], Any]) -> list[float]:
        clock = timing.on_cuda if self.clock == "events" else timing.by_host
        return self._in_thread(lambda: clock(self.run, calls, flush))

    def _in_thread(self, work: Callable[[], Any]) -> Any:
        return _TUNER.submit(_tuned, work).result() if self.tuned else work()


def _tuned(work: Callable[[], Any]) -> Any:
    torch.backends.cudnn.benchmark = True
    try:
        return work()
    finally:
        torch.backends.cudnn.benchmark = False


@contextmanager
def exactly(dtype: str):
    """float32 products without TF32 while it lasts; then again as `dtype` has them."""
    choice.set_precision("fp32")
    try:
        yield
    finally:
        choice.set_precision(dtype)


class Layer:
    """The tensors of a case: `x`, `weight`, `bias`, the gradient `gz` of the convolution, `gy` of what follows it."""

    def __init__(self, case: Case) -> None:
        cin, cout, size, batch = case[:4]
        like = {"dtype": choice.torch_dtype(case.dtype), "device": choice.DEVICE}
        out = size // 2 if case.pool else size
        self.case = case
        self.x = torch.randn(batch, cin, size, size, **like).relu_()
        self.weight = torch.randn(cout, cin, 3, 3, **like) * (2 / (9 * cin)) ** 0.5
        self.bias = torch.randn(cout, **like) * 0.05
        self.gz = torch.randn(batch, cout, size, size, **like)
        self.gy = torch.randn(batch, cout, out, out, **like)

    def within(self, layout: str) -> dict[str, Tensor]:
        """The tensors in a layout."""
        memory = FORMATS[layout]
        named = {name: getattr(self, name) for name in ("x", "weight", "gz", "gy")}
        return {**{name: t.contiguous(memory_format=memory) for name, t in named.items()}, "bias": self.bias}


def _after(z: Tensor, pool: bool) -> Tensor:
    z = F.relu_(z)
    return F.max_pool2d(z, 2) if pool else z


def _backward(gz: Tensor, x: Tensor, weight: Tensor, which: str, bias: bool = False) -> Tensor:
    """One of torch's convolution gradients; `bias` has it compute that of the bias as well."""
    mask = [which == "dgrad", which == "wgrad", bias and which == "wgrad"]
    sizes = [weight.shape[0]] if mask[2] else None
    found = aten.convolution_backward(gz, x, weight, sizes, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, mask)
    return found[PASSES.index(which) - 1]


# ---- forward --------------------------------------------------------------------------------------------------------


def our_forward(layer: Layer) -> Candidate:
    t, pool = layer.within("NHWC"), layer.case.pool
    return Candidate(lambda: our_conv3x3(t["x"], t["weight"], t["bias"], relu=True, pool=pool), "fused")


def _forward(layer: Layer) -> dict[str, Candidate]:
    pool, found = layer.case.pool, {"vggfast": our_forward(layer)}
    for layout in FORMATS:
        t = layer.within(layout)
        for tuned in (False, True):
            name = layout + (" tuned" if tuned else "")
            found[f"cuDNN {name}"] = Candidate(
                lambda t=t: F.conv2d(t["x"], t["weight"], padding=1), "conv", tuned
            )  # fmt: skip
            found[f"eager {name}"] = Candidate(
                lambda t=t: _after(F.conv2d(t["x"], t["weight"], t["bias"], padding=1), pool), "fused", tuned
            )
    for name, mode in COMPILED.items():
        found[name] = Candidate(_compiled(layer.within("NHWC"), pool, mode), "fused")
    return found


def _compiled(t: dict[str, Tensor], pool: bool, mode: str) -> Callable[[], Tensor]:
    def fused(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        y = F.relu(F.conv2d(x, weight, bias, padding=1))
        return F.max_pool2d(y, 2) if pool else y

    # One code object serves all layers here, of which torch would compile eight and run the others as they are.
    torch.compiler.reset()
    call = torch.compile(fused, mode=mode, dynamic=False)
    return lambda: call(t["x"], t["weight"], t["bias"])


def jax_forward(layer: Layer) -> Candidate:
    """XLA's fusion of the forward pass.

    Raises:
        ImportError, RuntimeError: JAX is not installed, or sees no GPU.
    """
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the others want memory too
    import jax
    from jax import dlpack

    from gpu import jax_engine

    if why := jax_engine.unavailable():
        raise RuntimeError(why)
    pool, dtype = layer.case.pool, layer.case.dtype
    x = dlpack.from_dlpack(layer.within("NHWC")["x"].permute(0, 2, 3, 1))
    weight = dlpack.from_dlpack(layer.weight.permute(2, 3, 1, 0).contiguous())
    bias = dlpack.from_dlpack(layer.bias)

    def fused(x: Any, weight: Any, bias: Any) -> Any:
        y = jax.numpy.maximum(jax_engine.conv(x, weight, dtype) + bias, 0)
        return jax_engine.max_pool(y) if pool else y

    call = jax.jit(fused)
    return Candidate(lambda: call(x, weight, bias).block_until_ready(), "fused", clock="host",
                     result=lambda y: torch.from_dlpack(y).permute(0, 3, 1, 2))  # fmt: skip


def apex_forward(layer: Layer) -> Candidate:
    """apex's convolution with bias and ReLU in cuDNN; the max-pool is torch's.

    Raises:
        ImportError, RuntimeError: it is not installed, or the dtype is none that it computes in.
    """
    if layer.case.dtype != "fp16":
        raise RuntimeError(f"apex's ConvBiasReLU computes in fp16, not in {layer.case.dtype}")
    from apex.contrib.conv_bias_relu import ConvBiasReLU

    t, pool = layer.within("NHWC"), layer.case.pool
    bias = t["bias"].reshape(1, -1, 1, 1)

    def run() -> Tensor:
        y = ConvBiasReLU(t["x"], t["weight"], bias, 1, 1)
        return F.max_pool2d(y, 2) if pool else y

    return Candidate(run, "fused")


def graph_forward(layer: Layer) -> Candidate:
    """cuDNN's convolution, bias and ReLU as one graph by cudnn-frontend, the fastest of its plans; the max-pool is
    torch's.

    Raises:
        ImportError, RuntimeError: it is not installed, or has no plan for the graph.
    """
    import cudnn

    t, pool = layer.within("NHWC"), layer.case.pool
    bias = t["bias"].reshape(1, -1, 1, 1).contiguous(memory_format=torch.channels_last)
    narrow = {"bf16": cudnn.data_type.BFLOAT16, "fp16": cudnn.data_type.HALF}
    wide = cudnn.data_type.FLOAT
    graph = cudnn.pygraph(io_data_type=narrow.get(layer.case.dtype, wide), intermediate_data_type=wide,
                          compute_data_type=wide, handle=(handle := cudnn.create_handle()))  # fmt: skip
    given = {graph.tensor_like(each): each for each in (t["x"], t["weight"], bias)}
    x, weight, added = given
    z = graph.conv_fprop(image=x, weight=weight, padding=[1, 1], stride=[1, 1], dilation=[1, 1])
    z = graph.relu(input=graph.bias(input=z, bias=added))
    z.set_output(True)
    try:
        graph.validate()
        graph.build_operation_graph()
        graph.create_execution_plans([cudnn.heur_mode.A])
        graph.check_support()
        graph.build_plans(cudnn.build_plan_policy.ALL)
    except cudnn.cudnnGraphNotSupportedError as error:
        raise RuntimeError(f"cuDNN has no such graph: {error}") from None
    y = torch.empty_like(t["gz"])
    tensors, space = {**given, z: y}, {"dtype": torch.uint8, "device": choice.DEVICE}

    def call(plan: int) -> Callable[[], None]:
        room = torch.empty(graph.get_workspace_size_plan_at_index(plan), **space)
        return lambda: graph.execute_plan_at_index(tensors, room, plan, handle=handle)

    flush = timing.flusher()
    seconds = {}
    for plan in range(graph.get_execution_plan_count()):
        try:
            seconds[plan] = min(timing.on_cuda(call(plan), 3, flush))
        except (RuntimeError, cudnn.cudnnGraphNotSupportedError):
            continue  # a plan that cannot be built or run here is no candidate
    if not seconds:
        raise RuntimeError("cuDNN has no plan for the graph that runs here")
    best = call(min(seconds, key=seconds.__getitem__))

    def run() -> Tensor:
        best()
        return F.max_pool2d(y, 2) if pool else y

    return Candidate(run, "fused")


OPTIONAL = {"jax": jax_forward, "apex": apex_forward, "graph of cuDNN": graph_forward}


# ---- backward -------------------------------------------------------------------------------------------------------


def our_gradients(layer: Layer, which: str) -> tuple[dict[str, Candidate], Tensor]:
    """Ours, and the gradient of the convolution by our choice of ReLU and pool."""
    h = w = layer.case.size
    t = layer.within("NHWC")
    _, mask = conv(t["x"], t["weight"], t["bias"], True, layer.case.pool, True)
    if which == "dgrad":
        whole = Candidate(lambda: conv_dgrad(t["gy"], mask, t["weight"], h, w), "ours")
        alone = Candidate(lambda: conv_dgrad(t["gz"], None, t["weight"], h, w), "conv")
    else:
        whole = Candidate(lambda: conv_wgrad(t["x"], t["gy"], mask, 3, True)[0], "ours")
        alone = Candidate(lambda: conv_wgrad(t["x"], t["gz"], None, 3, False)[0], "conv")
    return {"vggfast": whole, "vggfast conv": alone}, mask_scatter(t["gy"], mask, h, w)


def _gradients(layer: Layer, which: str) -> tuple[dict[str, Candidate], dict[str, Tensor], dict[str, str]]:
    """The candidates, the gradient of the convolution that each exact answer starts from, and who is missing."""
    found: dict[str, Candidate] = {}
    starts, missing = {"conv": layer.gz}, {}
    try:
        found, starts["ours"] = our_gradients(layer, which)
    except (RuntimeError, TypeError, ValueError) as error:
        missing["vggfast"] = reason(error)
    for layout in FORMATS:
        t = layer.within(layout)
        backward = _eager_backward(t, layer.case.pool)
        starts[f"eager {layout}"] = backward()
        for tuned in (False, True):
            name = layout + (" tuned" if tuned else "")
            found[f"cuDNN {name}"] = Candidate(
                lambda t=t: _backward(t["gz"], t["x"], t["weight"], which), "conv", tuned
            )  # fmt: skip
            found[f"eager {name}"] = Candidate(
                lambda t=t, backward=backward: _backward(backward(), t["x"], t["weight"], which, bias=True),
                f"eager {layout}", tuned,
            )  # fmt: skip
    return found, starts, missing


def _eager_backward(t: dict[str, Tensor], pool: bool) -> Callable[[], Tensor]:
    """torch's backward of ReLU and max-pool: gy in, gz out."""
    y = F.relu_(F.conv2d(t["x"], t["weight"], t["bias"], padding=1))
    if not pool:
        return lambda: aten.threshold_backward(t["gy"], y, 0)
    indices = F.max_pool2d(y, 2, return_indices=True)[1]
    window = ([2, 2], [2, 2], [0, 0], [1, 1], False)
    return lambda: aten.threshold_backward(
        aten.max_pool2d_with_indices_backward(t["gy"], y, *window, indices), y, 0
    )  # fmt: skip


# ---- both -----------------------------------------------------------------------------------------------------------


def candidates(layer: Layer) -> tuple[dict[str, Candidate], dict[str, Tensor], dict[str, str]]:
    """({name: candidate}, where the exact answers of a backward start from, {name: why there is none})."""
    if layer.case.which != "fprop":
        return _gradients(layer, layer.case.which)
    found, missing = _forward(layer), {}
    for name, make in OPTIONAL.items():
        try:
            found[name] = make(layer)
        except (ImportError, RuntimeError) as error:
            missing[name] = reason(error)
    return found, {}, missing


def exact(layer: Layer, name: str, starts: Mapping[str, Tensor]) -> Tensor:
    """The answer of that name in float64; in float32 without TF32 where float64 would take long."""
    dtype = torch.float64 if layer.case.flops < 1e11 else torch.float32
    x, weight = layer.x.to(dtype), layer.weight.to(dtype)
    with exactly(layer.case.dtype):
        if layer.case.which != "fprop":
            return _backward(starts[name].to(dtype).contiguous(), x, weight, layer.case.which)
        if name == "conv":
            return F.conv2d(x, weight, padding=1)
        return _after(F.conv2d(x, weight, layer.bias.to(dtype), padding=1), layer.case.pool)
