"""An engine's network on CUDA: our kernels and torch's products, replayed as a CUDA graph for each shape of images."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vggfast.engine.capture import Arena, Captured, StreamLock
from vggfast.engine.e4m3 import E4m3
from vggfast.engine.options import Deviation, Options
from vggfast.engine.plan import E4M3, Plan, Shape, make_plan, output_shapes
from vggfast.engine.steps import PRECISIONS, Bound, Steps, is_a_view
from vggfast.graph.layers import Conv, Flatten, Layer, Linear, ScaledConv, Windows
from vggfast.ops._backends import backend_of

DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # that a model's parameters may have
PLANS_KEPT = 16
FORMATS = {4: torch.channels_last, 2: torch.contiguous_format}  # of outputs, by their number of axes


@dataclass
class CachedPlan:
    """A plan, and its graph once it was captured."""

    plan: Plan
    captured: Captured | None = None


class CudaNetwork:
    """See :class:`vggfast.engine.options.Network`."""

    threads = 1  # the caller's, which launches
    lock_type, arena_type = StreamLock, Arena

    def __init__(self, device: torch.device, options: Options) -> None:
        self._precision = PRECISIONS[options.one_of("dtype", PRECISIONS, device)]
        if options.weights not in ("fp32", options.dtype):
            raise ValueError(f"weights must be left out on {device.type}, where dtype says it, got {options.weights!r}")
        if options.threads is not None:
            raise ValueError(f"threads must be None on {device.type}, got {options.threads}")
        self._device = device
        self.inputs = tuple(dict.fromkeys((torch.float32, self._precision.dtype)))
        self._layers: list[Layer] = []
        self._rows: int | None = None  # the number of the layer that makes rows, until an FC layer reads them
        self._backend = backend_of(torch.empty(0, device=device))
        self._steps = Steps(self._backend, self._precision)
        self._plans: OrderedDict[tuple, CachedPlan] = OrderedDict()  # the one used last comes last
        self._arena = self.arena_type(device) if options.graph else None
        self._lock = self.lock_type(self, device)
        self._calibration = self._calibrates(options)

    @property
    def bytes(self) -> int:
        held = sum(t.nbytes for layer in self._layers for t in _weights(layer) if t is not None)
        return held + self._steps.bytes + (self._arena.bytes if self._arena else 0)

    def _calibrates(self, options: Options) -> E4m3 | None:
        """Until the last layer is added, what finds the scales of e4m3.

        Raises:
            ValueError: nothing runs e4m3 here, or there are no images for it.
        """
        if not self._precision.e4m3:
            options.refuse_calibration()
            return None
        if reason := self._backend.no_hopper:
            raise ValueError(f"dtype 'fp8' needs a GPU of compute capability 9.0, and {reason}")
        images = options.images()
        exact = replace(options, dtype="fp32", weights="fp32", graph=False, calibration=None)
        return E4m3(type(self)(self._device, exact), images)

    # ---- weights -----------------------------------------------------------------------------------------------------

    def add(self, layer: Layer) -> None:
        if self._calibration:
            self._calibration.add(layer)
        if isinstance(layer, Conv):
            # As (Cout, K, K, Cin), dense: what kernels read in place, where they can.
            layer = Conv(self._packed(layer.weight, torch.channels_last), self._packed(layer.bias))
        elif isinstance(layer, Linear):
            layer = Linear(self._packed(self._by_pixel(layer.weight)), self._packed(layer.bias))
        elif isinstance(layer, Flatten | Windows):
            self._rows = len(self._layers)
        self._layers.append(layer)

    def finish(self, names: Sequence[str]) -> Deviation | None:
        """Waits until the weights are packed, so that a first call may come from any stream."""
        deviation = None
        if self._calibration:
            self._layers = self._calibration.quantise(self._layers, names)
            deviation = self._calibration.deviation(self._step_by_step, names)
            self._calibration = None  # and its float32 weights
        with self._lock:  # which makes the device the current one
            self._steps.pack(self._layers)
        self._lock.wait_for_stream()
        return deviation

    def _step_by_step(self, x: Tensor) -> Iterator[Tensor]:
        """The output of each step for these images, in float32, as the next one reads it."""
        with self._lock:
            last = len(self._layers) - 1
            plan = make_plan(self._layers, tuple(x.shape), (last,), self._precision.dtype, self._steps.scratch_of)
            arena = self._backend.empty(x, (plan.bytes,), torch.uint8)
            plan.input.on(arena).copy_(x)
            for step in plan.steps:
                if not is_a_view(step):
                    self._steps.call(step, arena)()
                y = step.target.on(arena).to(torch.float32, copy=True)
                if step.target.dtype == E4M3:
                    assert isinstance(step.layer, ScaledConv)
                    assert step.layer.leaving
                    y *= step.layer.leaving.scale
                yield y

    def _packed(self, t: Any, memory_format: torch.memory_format = torch.contiguous_format) -> Any:
        """A copy in the engine's dtype, or None of None."""
        if t is None:
            return None
        return torch.empty(t.shape, dtype=self._precision.dtype, device=t.device, memory_format=memory_format).copy_(t)

    def _by_pixel(self, weight: Tensor) -> Tensor:
        """An FC layer's weight. For the first one its columns are put in the order in which an NHWC map lies, so that
        its rows need no permutation; the layer that makes the rows is told."""
        rows, self._rows = self._rows, None
        if rows is None:
            return weight
        layer: Any = self._layers[rows]
        area = layer.size * layer.size
        if weight.shape[1] % area:
            return weight  # for which no rows will fit
        self._layers[rows] = replace(layer, by_pixel=True)
        return weight.reshape(weight.shape[0], -1, area).transpose(1, 2).flatten(1)

    # ---- running -----------------------------------------------------------------------------------------------------

    def run(self, x: Tensor, outputs: Sequence[int]) -> list[Tensor]:
        shape, outputs = tuple(x.shape), tuple(outputs)
        if x.numel() == 0:
            return self._nothing(shape, outputs)
        with self._lock as lock:
            cached = self._cached(shape, outputs)
            if lock.capturing():  # it may wait for nothing outside; the finished graph is its owner's to order
                return self._launch(cached.plan, x)
            lock.begin()
            try:
                self._drop_old_plans()
                if self._arena is None:
                    return self._launch(cached.plan, x)
                captured = cached.captured or self._capture(cached, self._arena)
                captured.bound.input.copy_(x)
                captured.graph.replay()
                return _results(captured.bound)
            finally:
                lock.end()

    def workspace(self, shape: Shape, last: int) -> int:
        with self._lock:  # which makes the device the current one: kernels are chosen for that
            return self._plan_of(shape, (last,)).bytes

    def _plan_of(self, shape: Shape, outputs: tuple[int, ...]) -> Plan:
        return make_plan(
            self._layers,
            shape,
            outputs,
            self._precision.dtype,
            self._steps.scratch_of,
            block1=self._steps.takes_block1(self._layers),
        )

    def _nothing(self, shape: Shape, outputs: Sequence[int]) -> list[Tensor]:
        """The outputs for no images."""
        shapes = output_shapes(self._layers, shape, outputs)
        if shape[0] > 0:
            raise ValueError(f"x must have H and W of at least 1, got shape {shape}")
        return [
            torch.empty(each, dtype=torch.float32, device=self._device, memory_format=FORMATS[len(each)])
            for each in shapes
        ]

    def _cached(self, shape: Shape, outputs: tuple[int, ...]) -> CachedPlan:
        """The plan for this shape and these outputs, which becomes the last of the plans."""
        cached = self._plans.get((shape, outputs))
        if cached is None:
            cached = self._plans[shape, outputs] = CachedPlan(self._plan_of(shape, outputs))
        else:
            self._plans.move_to_end((shape, outputs))
        return cached

    def _drop_old_plans(self) -> None:
        while len(self._plans) > PLANS_KEPT:
            self._lock.wait()  # the plan's graph may be running
            self._plans.popitem(last=False)

    def _launch(self, plan: Plan, x: Tensor) -> list[Tensor]:
        """Kernel by kernel, on memory of this call's: torch knows when it may be used again, in a capture too."""
        with torch.no_grad():
            bound = self._steps.bind(plan, self._backend.empty(x, (plan.bytes,), torch.uint8))
            bound.input.copy_(x)
            bound.run()
            return _results(bound)

    def _capture(self, cached: CachedPlan, arena: Arena) -> Captured:
        if cached.plan.bytes > arena.bytes:
            self._lock.wait()
            for each in self._plans.values():  # they read and write the memory that goes
                each.captured = None
            arena.free()
        cached.captured = arena.capture(cached.plan.bytes, lambda memory: self._steps.bind(cached.plan, memory))
        return cached.captured


def _weights(layer: Layer) -> list[Tensor | None]:
    if not isinstance(layer, Conv | Linear):
        return []
    scaled = [layer.reading, layer.leaving] if isinstance(layer, ScaledConv) else []
    wide = layer.wide_bias if isinstance(layer, ScaledConv) else None
    return [layer.weight, layer.bias, wide, *(each.values for each in scaled if each)]


def _results(bound: Bound) -> list[Tensor]:
    return [output.to(torch.float32, copy=True) for output in bound.outputs]
