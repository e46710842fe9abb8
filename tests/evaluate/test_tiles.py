"""Pictures larger than the memory: tiles are exact, and the memory stays within its budget."""

import re
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import vggfast
from tests.support.comparisons import relative_error
from vggfast.evaluate import Evaluator, dense, score_maps
from vggfast.evaluate.head import rectangles
from vggfast.evaluate.tiles import choose, longest, spans
from vggfast.evaluate.trunk import Trunk
from vggfast.graph import whole

# ---- geometry ------------------------------------------------------------------------------------------------------

EXTENTS, REACHES = st.integers(32, 2000), st.sampled_from([0, 31, 59, 64, 90, 118])


@given(extent=EXTENTS, reach=REACHES, data=st.data())
def test_spans_make_each_cell_once_from_all_that_it_sees(extent, reach, data):
    cells = extent // 32
    cut = spans(extent, data.draw(st.integers(1, cells)), reach, 32)
    assert [cell for span in cut for cell in range(span.first, span.end)] == list(range(cells))
    for span in cut:
        assert span.top % 32 == 0
        assert span.bottom % 32 == 0 or span.bottom == extent
        assert 0 <= span.top <= max(span.first * 32 - reach, 0)
        assert min(span.end * 32 + reach, cells * 32) <= span.bottom <= extent
        # what lies below the last whole stride is seen by cells within reach of it, and counts
        assert span.bottom == extent or span.end * 32 + reach <= cells * 32


@given(height=EXTENTS, width=EXTENTS, reach=REACHES, most=st.integers(32 * 32, 2000 * 2000))
def test_choose_finds_tiles_that_fit_where_there_are_any(height, width, reach, most):
    chosen = choose(height, width, reach, 32, lambda h, w: h * w <= most)
    least = [longest(spans(extent, extent // 32, reach, 32)) for extent in (height, width)]
    assert (chosen is not None) == (least[0] * least[1] <= most)
    if chosen is not None:
        assert longest(chosen[0]) * longest(chosen[1]) <= most
        if height * width <= most:
            assert [len(cut) for cut in chosen] == [1, 1]


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 300))
def test_rectangles_cover_each_place_once(height, width, most):
    places = torch.zeros(height, width, dtype=torch.int)
    for top, left, down, across in rectangles(height, width, most):
        assert down * across <= most
        places[top : top + down, left : left + across] += 1
    assert (places == 1).all()


# ---- tiled is whole ------------------------------------------------------------------------------------------------


def _with_small_tiles(model, x):
    """An evaluator whose convolutions have no more memory than for a tile of one cell of x; and its tiles."""
    evaluator = Evaluator(model)
    evaluator._trunk = Trunk(whole(model), evaluator._trunk.least(*x.shape[2:]))
    tiles, run = [], evaluator._trunk._run
    evaluator._trunk._run = lambda views, *box: tiles.append(box) or run(views, *box)
    return evaluator, tiles


@pytest.mark.parametrize(
    ("config", "batch_norm", "size"),
    [
        ("A", False, (163, 227)),
        ("A", True, (224, 255)),
        ("A-LRN", False, (163, 227)),
        ("C", False, (163, 227)),
        ("D", True, (260, 323)),
        ("E", False, (353, 350)),
    ],
)
def test_tiled_is_whole(config, batch_norm, size):
    model = vggfast.VGG(
        config, num_classes=4, width=0.1, hidden=16, pool_size=2, batch_norm=batch_norm, init="he"
    ).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # what zero padding becomes matters
            module.bias.data.normal_()
            module.running_mean.normal_()
    x = torch.randn(1, 3, *size)
    evaluator, tiles = _with_small_tiles(model, x)
    got, expected = evaluator.dense(x, None), dense(model, x, None)
    assert len(tiles) > 8
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    (tiled,), (whole,) = evaluator.score_maps(x, None), score_maps(model, x, None)
    assert relative_error(tiled.scores, whole.scores) < 1e-5


def test_the_least_memory_does_and_less_is_refused():
    model = vggfast.VGG("A", num_classes=4, width=0.1, hidden=16, pool_size=1, init="he").eval()
    x = torch.randn(1, 3, 193, 130)
    with pytest.raises(
        ValueError, match=r"memory must be at least \d+ bytes for images\[0\], of 193 x 130 pixels, got 1"
    ) as error:
        dense(model, x, None, memory=1)
    least = int(re.search(r"at least (\d+) bytes", str(error.value))[1])
    torch.testing.assert_close(dense(model, x, None, memory=least), dense(model, x, None), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=f"memory must be at least {least} bytes .*, got {least - 1}"):
        dense(model, x, None, memory=least - 1)


def test_some_tiles():
    """Of several cells each, which differ in size."""
    model = vggfast.VGG("A", num_classes=4, width=0.5, hidden=16, pool_size=2, init="he").eval()
    x = torch.randn(1, 3, 355, 417)
    evaluator = Evaluator(model, memory=38 << 20)
    got = evaluator.dense(x, None)
    ((down, across),) = evaluator._trunk._tiles.values()
    assert 1 < len(down) * len(across) < 40
    torch.testing.assert_close(got, dense(model, x, None), rtol=1e-5, atol=1e-6)


# ---- memory --------------------------------------------------------------------------------------------------------

_MEASURE = """
import sys, torch, vggfast
from vggfast.evaluate import Evaluator

def field(name):
    return int(next(line for line in open("/proc/self/status") if line.startswith(name)).split()[1]) * 1024

torch.set_num_threads(1)
memory = int(sys.argv[1])
model = vggfast.VGG("D", num_classes=10, width=0.5, hidden=256, init="he").eval()
evaluator = Evaluator(model, memory=memory)
evaluator.dense(torch.randn(1, 3, 224, 224), None)  # libraries start their threads and buffers
evaluator = Evaluator(model, memory=memory)  # its arena is empty
x = torch.randn(*map(int, sys.argv[2:]))
before = field("VmRSS")
open("/proc/self/clear_refs", "w").write("5")  # the peak counts from here
evaluator.dense(x, None)
print(field("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 3, 1000, 1300), (24, 3, 256, 320)])
def test_the_peak_stays_within_the_budget(shape):
    """By what the system says of a process: the largest resident memory while a budget of 96 MiB is in force."""
    memory = 96 << 20
    command = [sys.executable, "-c", _MEASURE, str(memory), *map(str, shape)]
    ran = subprocess.run(command, capture_output=True, text=True)
    if "PermissionError" in ran.stderr or "clear_refs" in ran.stderr:
        pytest.skip("this system does not let a process reset its peak (/proc/self/clear_refs)")
    assert ran.returncode == 0, ran.stderr
    assert memory / 4 < int(ran.stdout) <= memory  # and no less than what it is there for


@pytest.mark.parametrize("algorithm", ["auto", "direct"], indirect=True)
@pytest.mark.parametrize(("config", "width"), [("A-LRN", 0.1), ("C", 0.25), ("E", 0.5)])
@pytest.mark.parametrize("threads", [1, 3])
def test_an_engines_workspace_is_its_arena(algorithm, config, width, threads):
    model = vggfast.VGG(config, head="none", width=width).eval()
    for shape in ((1, 64, 64), (1, 97, 130), (3, 100, 100)):
        engine = vggfast.Engine(model, threads=threads)
        weights = engine.bytes
        engine.features(torch.zeros(shape[0], 3, *shape[1:]))
        assert engine.bytes - weights == engine.workspace(*shape)
    with pytest.raises(ValueError, match="x must have 3 channels, got 4"):
        engine.workspace(1, 64, 64, channels=4)


@pytest.mark.backends("torch", "sim", "cuda")
def test_engines_of_cuda(build, backend):
    """Their plans say what they work on; evaluation runs on them, tiled too."""
    model = vggfast.VGG("A", num_classes=4, width=0.05, hidden=16, pool_size=1, init="he").eval().to(backend.device)
    engine = build(model)
    weights = engine.bytes
    engine(torch.zeros(2, 3, 64, 97))
    assert engine.bytes - weights == engine.workspace(2, 64, 97)
    x = torch.randn(1, 3, 131, 227, device=backend.device)
    expected = torch.cat([model.to_conv_head()(view).softmax(1) for view in (x, x.flip(3))]).mean(0, keepdim=True).cpu()
    torch.testing.assert_close(dense(model, x, None), expected, rtol=1e-5, atol=1e-6)
    evaluator, tiles = _with_small_tiles(model, x)
    torch.testing.assert_close(evaluator.dense(x, None), expected, rtol=1e-5, atol=1e-6)
    assert len(tiles) > 2
