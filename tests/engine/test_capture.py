"""How an engine's calls on CUDA wait for each other and what is captured where, on stand-ins for torch.cuda's streams,
events and graphs: what runs is real, the order is written down."""

import contextlib
import gc
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from tests.engine.test_engine import small
from vggfast import Engine, engine
from vggfast.engine import capture
from vggfast.engine.cuda import PLANS_KEPT, CudaNetwork
from vggfast.ops import _backends


class Cuda:
    """A device with streams of which each is current within `on`, and a log of what was asked of it."""

    def __init__(self):
        self.log, self.now, self.capturing, self.count = [], threading.local(), False, 0

    def current(self):
        return getattr(self.now, "stream", self.main)

    @contextlib.contextmanager
    def on(self, stream):
        before, self.now.stream = self.current(), stream
        yield
        self.now.stream = before


@pytest.fixture
def cuda(monkeypatch):
    """Makes the CPU an engine's CUDA device, with torch's ops as kernels."""
    fake = Cuda()
    log = fake.log.append

    class Stream:
        def __init__(self, device=None):
            self.cuda_stream = fake.count = fake.count + 1

        def wait_event(self, event):
            log(f"{self.cuda_stream} waits for the last call")

        def wait_stream(self, stream):
            log(f"{self.cuda_stream} waits for {stream.cuda_stream}")

        def synchronize(self):
            log("host waits for the stream")

    class Event:
        def record(self, stream):
            log(f"{stream.cuda_stream} has run")

        def synchronize(self):
            log("host waits for the last call")

    class Graph:
        def capture_begin(self, capture_error_mode):
            log(f"{fake.current().cuda_stream} captures, {capture_error_mode}")

        def capture_end(self):
            log("captured")

        def replay(self):
            log(f"{fake.current().cuda_stream} replays")
            self.run()

    record = capture.Arena._record

    def recorded(arena, bound):
        graph = record(arena, bound)
        graph.run = bound.run
        return graph

    fake.main = Stream()
    for name, stub in {
        "Stream": Stream, "Event": Event, "CUDAGraph": Graph, "stream": fake.on,
        "current_stream": lambda device: fake.current(), "device": lambda device: contextlib.nullcontext(),
        "is_current_stream_capturing": lambda: fake.capturing,
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, stub)
    monkeypatch.setattr(capture.Arena, "_record", recorded)
    monkeypatch.setitem(engine.OF_DEVICE, "cpu", CudaNetwork)
    monkeypatch.setitem(_backends.OF_DEVICE, "cpu", lambda index: _backends.TorchBackend())
    capture._side_stream.cache_clear()
    yield fake
    capture._side_stream.cache_clear()


FIRST = ["1 waits for the last call", "host waits for the last call", "2 waits for 1", "2 captures, thread_local",
         "captured", "1 waits for 2", "1 replays", "1 has run"]  # fmt: skip


def calls(cuda, call) -> list[str]:
    cuda.log.clear()
    call()
    return list(cuda.log)


def thin(**options):
    return Engine(small(width=1 / 16, hidden=8, pool_size=1), **options)


def test_captured_once_and_replayed(cuda):
    """Beside the caller's stream, which waits for it; and again only where the arena must grow."""
    made, x = thin(), torch.randn(1, 3, 40, 40)
    assert calls(cuda, lambda: made(x)) == FIRST
    assert calls(cuda, lambda: made(x)) == ["1 replays", "1 has run"]
    smaller = calls(cuda, lambda: made(x[..., :33]))
    assert "host waits for the last call" not in smaller  # the arena stays
    assert smaller[1:] == FIRST[3:]
    assert calls(cuda, lambda: made(x)) == ["1 replays", "1 has run"]
    assert "host waits for the last call" in calls(cuda, lambda: made(torch.cat([x, x])))
    assert "captured" in calls(cuda, lambda: made(x))


def test_a_stream_waits_for_another(cuda):
    made, x, other = thin(), torch.randn(1, 3, 40, 40), torch.cuda.Stream()
    made(x)
    with cuda.on(other):
        number = other.cuda_stream
        again = [f"{number} replays", f"{number} has run"]
        assert calls(cuda, lambda: made(x)) == [f"{number} waits for the last call", *again]
        assert calls(cuda, lambda: made(x)) == again
    assert calls(cuda, lambda: made(x)) == ["1 waits for the last call", "1 replays", "1 has run"]


def test_without_graphs_calls_wait_too(cuda):
    made = thin(graph=False)
    assert calls(cuda, lambda: made(torch.randn(1, 3, 40, 40))) == ["1 waits for the last call", "1 has run"]


def test_within_a_capture_nothing_outside_is_waited_for(cuda):
    """Nor are plans dropped, whose graphs may be running."""
    made, x = thin(), torch.randn(1, 3, 40, 40)
    expected = made(x)
    cuda.capturing = True
    assert calls(cuda, lambda: made(x)) == []
    assert torch.equal(made(x), expected)
    for width in range(40, 40 + PLANS_KEPT):
        assert calls(cuda, lambda width=width: made(torch.randn(1, 3, 32, width))) == []
    cuda.capturing = False
    assert len(made._network._plans) > PLANS_KEPT
    assert "host waits for the last call" in calls(cuda, lambda: made(x))
    assert len(made._network._plans) == PLANS_KEPT


def test_a_failure_leaves_no_turn_taken(cuda, monkeypatch):
    made, x = thin(), torch.randn(1, 3, 40, 40)
    expected = made(x)

    def fails(*args, **options):
        raise RuntimeError("no such kernel")

    with monkeypatch.context() as patch:
        patch.setattr(_backends.TorchBackend, "run", fails)
        with pytest.raises(RuntimeError, match="no such kernel"):
            made(x[..., :36])
    assert cuda.log[-1] == "1 has run"
    assert torch.equal(made(x), expected)


def test_its_memory_goes_after_its_last_call(cuda):
    """An engine is packed when it is made, and nothing keeps it but its users."""
    made = None
    assert calls(cuda, thin) == ["host waits for the stream", "host waits for the last call"]
    made = thin()
    made(torch.randn(1, 3, 40, 40))
    cuda.log.clear()
    gc.disable()
    try:
        del made
        assert cuda.log == ["host waits for the last call"]
    finally:
        gc.enable()


def test_threads_take_turns(cuda, monkeypatch):
    made = thin()
    images = [torch.randn(1, 3, 32, 32 + i) for i in range(4)]
    expected, inside = [made(x) for x in images], []
    replay = torch.cuda.CUDAGraph.replay

    def slow(graph):
        inside.append(1)
        assert len(inside) == 1
        time.sleep(0.002)
        replay(graph)
        inside.pop()

    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", slow)
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda i: made(images[i % 4]), range(32)))
    assert all(torch.equal(y, expected[i % 4]) for i, y in enumerate(got))
