"""CUDA graphs of an engine's plans, on one arena that they share."""

from __future__ import annotations

import functools
import os
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vggfast.engine.steps import Bound

_one_capture = threading.Lock()  # torch allows no more than one at a time in a process


@functools.cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """For captures: one for all engines, as cuBLAS keeps a workspace for each stream that it ever ran on."""
    return torch.cuda.Stream(device=device)


@dataclass(frozen=True)
class Captured:
    graph: torch.cuda.CUDAGraph
    bound: Bound


class StreamLock:
    """A lock for calls from any threads and streams: on the device, too, they run one after the other.

    Args:
        owner: what holds the memory that the calls work on. When nothing refers to it any more, the last call is waited
            for: torch gives memory back to the stream that it was allocated on, and knows nothing of the others.
    """

    def __init__(self, owner: object, device: torch.device) -> None:
        self._lock, self._process = threading.Lock(), os.getpid()
        self._device = device
        self._done = torch.cuda.Event()
        self._last: int | None = None  # the stream of the last call
        weakref.finalize(owner, self._done.synchronize).atexit = False

    def __enter__(self) -> StreamLock:
        if os.getpid() != self._process:  # where a thread of the parent may have the lock, for ever
            raise RuntimeError(
                f"the engine is on {self._device}, which a child by fork cannot use: start processes by "
                'multiprocessing.set_start_method("spawn"), and build the engine there'
            )
        self._lock.acquire()
        self._on_device = torch.cuda.device(self._device)
        self._on_device.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._on_device.__exit__(*error)
        self._lock.release()

    def capturing(self) -> bool:
        """Whether somebody captures what the caller does."""
        return torch.cuda.is_current_stream_capturing()

    def begin(self) -> None:
        """Has the current stream wait for the last call, wherever it ran."""
        self._stream = torch.cuda.current_stream(self._device)
        if self._stream.cuda_stream != self._last:
            self._stream.wait_event(self._done)

    def end(self) -> None:
        self._done.record(self._stream)
        self._last = self._stream.cuda_stream

    def wait(self) -> None:
        """Until the last call has run."""
        self._done.synchronize()

    def wait_for_stream(self) -> None:
        """Until all that the current stream was given has run."""
        torch.cuda.current_stream(self._device).synchronize()


class Arena:
    """Memory that grows to what the largest plan needs, and the capturing of graphs that use it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._memory: Tensor | None = None

    @property
    def bytes(self) -> int:
        return 0 if self._memory is None else self._memory.numel()

    def free(self) -> None:
        """Gives the memory back: no graph uses it, and nothing runs on it."""
        self._memory = None

    def capture(self, size: int, bind: Callable[[Tensor], Bound]) -> Captured:
        """The graph of what `bind` makes of the arena, of at least `size` bytes."""
        with torch.inference_mode(False), torch.no_grad():  # a later call, not under it, writes to these tensors
            if self._memory is None:
                self._memory = torch.empty(size, dtype=torch.uint8, device=self._device)
            bound = bind(self._memory)
            return Captured(self._record(bound), bound)

    def _record(self, bound: Bound) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        with _one_capture:
            current, side = torch.cuda.current_stream(self._device), _side_stream(self._device)
            side.wait_stream(current)
            try:
                with torch.cuda.stream(side):
                    bound.run()  # what libraries load and allocate at a first call cannot be captured
                    # thread_local: what other threads do meanwhile, such as allocating, is not forbidden.
                    graph.capture_begin(capture_error_mode="thread_local")
                    try:
                        bound.run()
                    finally:
                        graph.capture_end()
            finally:
                current.wait_stream(side)
        return graph
