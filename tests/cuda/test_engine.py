"""Engine on a real GPU: graphs, streams, devices, threads, memory. Run them with `pytest --cuda -m cuda`; what networks
compute, tests/engine/test_cuda.py says on every back end."""

import gc
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from tests.engine.test_cuda import BOUNDS, exactly, precisions
from tests.engine.test_engine import small
from tests.engine.test_fp8 import bound
from tests.support.comparisons import relative_error
from vggfast import Engine
from vggfast.engine.cuda import PLANS_KEPT
from vggfast.ops import _backends

pytestmark = [pytest.mark.cuda, pytest.mark.backends("cuda")]


def network(config="A-LRN", **arguments):
    return small(config, pool_size=2, **arguments)


def busy():
    """Work that keeps the current stream waiting for a while."""
    torch.cuda._sleep(50_000_000)


# ---- graphs -------------------------------------------------------------------------------------------------------


@precisions
@pytest.mark.parametrize("head", ["linear", "conv"])
def test_a_replay_is_what_the_kernels_give(backend, precision, head):
    """Bit for bit, for several shapes that take turns, each with its own plan, with taps and without."""
    model = network(head=head)
    captured, launched = Engine(model, dtype=precision), Engine(model, dtype=precision, graph=False)
    for _ in range(3):
        for size in ((1, 3, 64, 64), (3, 3, 97, 70), (2, 3, 64, 64)):
            x = torch.randn(size)
            y = captured(x)
            assert torch.equal(y, launched(x))
            assert relative_error(y, exactly(model, x)) < BOUNDS[precision]
            taps = captured.features(x, captured.taps)
            for name, expected in launched.features(x, launched.taps).items():
                assert torch.equal(taps[name], expected), name


def test_fp8_at_the_papers_widths(backend):
    """A replay is what the kernels give; images other than those for calibration, of another size."""
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("the GPU is not of compute capability 9.0")
    model = small("D", width=1.0, hidden=512)
    for module in model.features:
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
    images = torch.randn(9, 3, 96, 128)
    captured, launched = (Engine(model, dtype="fp8", calibration=images, graph=graph) for graph in (True, False))
    assert captured.error == launched.error
    for size in ((2, 3, 224, 224), (1, 3, 97, 130), (2, 3, 224, 224)):
        x = torch.randn(size)
        y = captured(x)
        assert torch.equal(y, launched(x))
        assert relative_error(y, exactly(model, x)) < bound(11)
        taps = captured.features(x, ["relu3_1", "pool5"])
        for name, expected in launched.features(x, list(taps)).items():
            assert torch.equal(taps[name], expected), name


def test_channels_of_the_paper(backend):
    """Widths that the kernels have tiles for, at the paper's size."""
    model = small("D", width=1.0, hidden=512)
    x = torch.randn(2, 3, 224, 224)
    expected = exactly(model, x)
    for precision, limit in BOUNDS.items():
        assert relative_error(Engine(model, dtype=precision)(x), expected) < limit, precision


def test_within_somebody_elses_capture(backend):
    """The kernels become part of that graph, and the engine's own replays go on beside it."""
    engine, x = Engine(network(), dtype="bf16"), torch.randn(2, 3, 64, 70)
    engine(x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = engine(x)
    for _ in range(3):
        x.copy_(torch.randn_like(x))
        graph.replay()
        assert torch.equal(y, engine(x))
        engine(torch.randn(4, 3, 97, 97))  # the arena grows
        graph.replay()
        assert torch.equal(y, engine(x))


def test_without_a_graph_nothing_is_captured(backend, monkeypatch):
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: pytest.fail("a graph"))
    model, x = network(), torch.randn(2, 3, 64, 70)
    engine = Engine(model, graph=False)
    weights = engine.bytes
    assert relative_error(engine(x), exactly(model, x)) < 1e-5
    assert engine.bytes == weights


def test_a_capture_that_fails_leaves_the_engine_as_it_was(backend, monkeypatch):
    model, x = network(), torch.randn(2, 3, 64, 70)
    engine, launched, run = Engine(model), Engine(model, graph=False), _backends.CudaBackend.run
    expected = engine(x)
    calls = []

    def fails_in_the_capture(self, *args, **options):
        calls.append(torch.cuda.is_current_stream_capturing())
        if calls[-1]:
            raise RuntimeError("no such kernel")
        run(self, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(_backends.CudaBackend, "run", fails_in_the_capture)
        with pytest.raises(RuntimeError, match="no such kernel"):
            engine(x[..., :66])
    assert calls[-1]
    assert torch.equal(engine(x), expected)
    assert torch.equal(engine(x[..., :66]), launched(x[..., :66]))


def test_gpus_that_get_torchs_ops(backend, monkeypatch):
    model, x = network(), torch.randn(2, 3, 64, 70)
    expected = exactly(model, x)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (7, 5))
    _backends._cuda.cache_clear()
    try:
        with pytest.warns(UserWarning, match="sm_75, and sm_80 is the least"):
            engine = Engine(model)
        for _ in range(3):
            assert relative_error(engine(x), expected) < 1e-5
    finally:
        _backends._cuda.cache_clear()


def test_the_switch_for_torchs_products(backend):
    """FC layers round their factors as the engine says, and the switch is left as it was."""
    model = small("A", width=0.25, hidden=512, pool_size=7)
    model.features = torch.nn.Sequential(torch.nn.ReLU())
    maps = torch.rand(64, 128, 7, 7)
    expected = exactly(model, maps)
    switch = torch.backends.cuda.matmul
    before = switch.fp32_precision
    try:
        for theirs in ("tf32", "ieee"):
            switch.fp32_precision = theirs
            for graph in (True, False):
                engines = [Engine(model, dtype=dtype, graph=graph) for dtype in ("fp32", "tf32")]
                exact, rounded = (relative_error(engine(maps), expected) for engine in engines)
                assert exact < 1e-5 < rounded < BOUNDS["tf32"]
            assert switch.fp32_precision == theirs
    finally:
        switch.fp32_precision = before


# ---- streams and threads ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("graph", [True, False])
def test_a_side_stream(backend, graph):
    """Work is queued where torch's current stream says, behind what already waits there, the first call's too."""
    model, x = network(), torch.randn(2, 3, 64, 70)
    expected = Engine(model, graph=graph)(x)
    engine, stream = Engine(model, graph=graph), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    for _ in range(3):
        with torch.cuda.stream(stream):
            busy()
            late = torch.zeros_like(x)
            late.copy_(x)
            y = engine(late)
            del late
        torch.cuda.current_stream().wait_stream(stream)
        assert torch.equal(y, expected)


@pytest.mark.parametrize("graph", [True, False])
def test_streams_take_turns(backend, graph):
    """The arena is one: a call waits for the one before, on whatever stream that was, and results stay whole."""
    engine = Engine(network(), graph=graph)
    images = [torch.randn(1 + i % 2, 3, 64, 64 + 8 * (i % 3)) for i in range(12)]
    expected = [engine(x) for x in images]
    streams = [torch.cuda.Stream() for _ in range(3)]
    torch.cuda.synchronize()
    got = []
    for i, x in enumerate(images):
        with torch.cuda.stream(streams[i % 3]):
            if i % 4 == 0:
                busy()
            got.append(engine(x))
    torch.cuda.synchronize()
    for y, each in zip(got, expected, strict=True):
        assert torch.equal(y, each)


@pytest.mark.parametrize("graph", [True, False])
def test_an_engine_that_goes_while_it_runs(backend, graph):
    """Its memory is not given to others before its last call is done."""
    x = torch.randn(4, 3, 128, 128)
    engine = Engine(network(), graph=graph)
    expected = engine(x)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        busy()
        y = engine(x)
    held = engine.bytes
    del engine
    gc.collect()
    filler = [torch.full((held // 16,), 7.0) for _ in range(8)]
    torch.cuda.synchronize()
    assert torch.equal(y, expected)
    assert len(filler) == 8


def test_threads_share_an_engine_and_others_allocate(backend):
    """Different shapes at a time, plans made and dropped under the others' feet, each thread on a stream of its own."""
    model = network(width=0.125)
    engine, other = Engine(model), Engine(model)
    images = [torch.randn(2, 3, 64 + i, 70) for i in range(PLANS_KEPT + 4)]
    expected = [engine(x) for x in images]
    torch.cuda.synchronize()

    def work(start):
        with torch.device("cuda"), torch.cuda.stream(torch.cuda.Stream()):
            for i in range(30):
                k = (start * 7 + i * 3) % len(images)
                y = (engine if start % 2 else other)(images[k])
                filler = torch.full((1 << (10 + i % 12),), 7.0)  # random numbers torch refuses beside a capture
                if not torch.equal(y, expected[k]) or not (filler == 7).all():
                    return False
        return True

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(work, range(6)))


# ---- devices and memory -------------------------------------------------------------------------------------------


def test_another_device(backend):
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU only")
    model, x = network(), torch.randn(2, 3, 64, 70)
    expected = Engine(model)(x)
    engine = Engine(model.to("cuda:1"))
    with pytest.raises(TypeError, match=r"x must be torch\.float32 on cuda:1, got torch\.float32 on cuda:0"):
        engine(x)
    for _ in range(2):
        y = engine(x.to("cuda:1"))
        assert y.device.index == 1
        assert torch.equal(y.cpu(), expected.cpu())
        assert torch.cuda.current_device() == 0


@pytest.mark.parametrize("graph", [True, False])
def test_memory_stays_as_it_is(backend, graph):
    engine = Engine(network(), dtype="bf16", graph=graph)
    images = [torch.randn(size) for size in ((4, 3, 128, 128), (2, 3, 64, 64), (1, 3, 97, 70))]

    def calls():
        for x in images:
            engine(x)
            engine.features(x, ["relu1_1", "pool3"])
        torch.cuda.synchronize()
        stats = torch.cuda.memory_stats()
        return (
            engine.bytes,
            torch.cuda.memory_allocated(),
            stats["num_device_alloc"],
            stats["reserved_bytes.all.current"],
        )

    calls()
    first = calls()
    for _ in range(5):
        assert calls() == first


def test_bytes_are_the_allocators(backend):
    """What an engine says it holds is what torch's allocator counts, but for rounding, and all of it is given back."""
    model, x = network(), torch.randn(4, 3, 128, 128)
    Engine(model)(x)  # what libraries keep
    gc.collect()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    engine = Engine(model)
    engine(x)
    held = torch.cuda.memory_allocated() - before
    assert engine.bytes <= held <= engine.bytes + 512 * 80
    del engine
    assert torch.cuda.memory_allocated() == before


def test_an_image_too_large_leaves_the_engine_as_it_was(backend):
    engine, x = Engine(small(head="none").features[:2]), torch.randn(2, 3, 64, 64)
    expected = engine(x)
    with pytest.raises(torch.OutOfMemoryError):
        engine(torch.zeros(1, 3, 1, 1).expand(1, 3, 1 << 18, 1 << 18))
    assert torch.equal(engine(x), expected)
