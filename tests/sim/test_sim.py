"""The CUDA kernels on the simulated GPU, beyond what tests/ops ask of every back end: that all of them are
run there, and every variant of the convolutions."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from tests.support.comparisons import (
    assert_as_accurate_as_tf32,
    assert_rounded_once,
    assert_same_bits,
    conv_precision,
    relative_error,
)
from vggfast import VGG, ops
from vggfast.ops._backends import backend_of
from vggfast.ops.conv import conv, conv_dgrad, conv_wgrad
from vggfast.ops.mask import mask_gather, mask_scatter

pytestmark = pytest.mark.backends("sim")
SOURCES = Path(__file__).parents[2] / "csrc" / "cuda"
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def kernels_of_the_tree() -> set[str]:
    """Every __global__ function of csrc/cuda."""
    kernel = re.compile(r"__global__\s+void\s+(?:__launch_bounds__\s*\((?:[^()]|\([^()]*\))*\)\s*)?(\w+)\s*\(")
    sources = (path for path in SOURCES.rglob("*") if path.suffix in (".h", ".cu"))
    return {name for path in sources for name in kernel.findall(path.read_text())}


@pytest.fixture
def tile(sim):
    """A function that sets the convolutions' tile until the test ends."""
    yield sim.cuda.set_conv_tile
    sim.cuda.set_conv_tile("auto")


def test_every_kernel_is_run(backend, sim, tile):
    """Forward and backward of every op launch every kernel that there is, and every block lets the next one start
    before its own end. What they compute, other tests say."""
    sim.clear_counters()
    x = torch.randn(2, 16, 6, 6, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(16, 16, 3, 3, dtype=torch.bfloat16, requires_grad=True)
    bias = torch.randn(16, dtype=torch.bfloat16, requires_grad=True)
    y = ops.conv3x3(x, weight, bias, relu=True, pool=True)
    y = ops.max_pool2x2(ops.local_response_norm(y), ceil_mode=True)
    (ops.mean_posteriors(y, views=2).sum() + ops.sum_pool(y).sum()).backward()
    images = ops.prepare_images(torch.zeros(1, 4, 4, 3, dtype=torch.uint8), 3, dtype=torch.bfloat16)
    first = torch.randn(16, 3, 3, 3, dtype=torch.bfloat16, requires_grad=True)
    ops.conv3x3(images.requires_grad_(), first, bias, relu=True).sum().backward()
    block = [
        torch.zeros(shape, dtype=torch.bfloat16)
        for shape in ((1, 3, 2, 2), (64, 3, 3, 3), (64, 64, 3, 3), (1, 64, 1, 1))
    ]
    x1, w1, w2, y1 = (t.contiguous(memory_format=torch.channels_last) for t in block)
    backend_of(x1).run("conv_block1", x1, w1, None, w2, None, y1)
    tile("small")  # the portable kernels
    ops.conv3x3(x, weight, bias).sum().backward()
    mask_gather(torch.randn(1, 8, 2, 2), torch.zeros(1, 1, 2, 2, 1, dtype=torch.uint8))
    counted = sim.counters()
    assert kernels_of_the_tree() == set(counted)
    assert {name: c["launching"] for name, c in counted.items()} == {name: c["blocks"] for name, c in counted.items()}


@pytest.mark.parametrize("shape", ["large", "tall", "small"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, "tf32"], ids=str)
@pytest.mark.parametrize(("relu", "pool"), [(False, False), (True, False), (True, True)])
def test_every_variant_of_a_convolution(backend, tile, shape, dtype, relu, pool):
    """Each tile, kind of arithmetic, and way to read: aligned channels, with and without a mask. The shape crosses
    the edges of every tile: of pixels, output channels, input channels, and of an odd image."""
    tile(shape)
    tf32, dtype = dtype == "tf32", torch.float32 if dtype == "tf32" else dtype
    x, gy = torch.randn(1, 24, 13, 15), torch.randn(1, 136, 6, 7) if pool else torch.randn(1, 136, 13, 15)
    weight, bias = torch.randn(136, 24, 3, 3) / 15, torch.randn(136)
    x, gy, weight, bias = (t.to(dtype) for t in (x, gy, weight, bias))
    with conv_precision("tf32" if tf32 else "ieee"):
        y, mask = conv(x, weight, bias, relu, pool, relu)
        mask = mask if relu else None
        gx = conv_dgrad(gy, mask, weight, 13, 15)
        gw, gb = conv_wgrad(x, gy, mask, 3, True)
        x_mask = torch.randint(0, 256, (1, 1, 13, 15, 3), dtype=torch.uint8)
        masked = conv_dgrad(gy, mask, weight, 13, 15, None, x_mask)
    assert_same_bits(masked, mask_scatter(gx, x_mask, 13, 15))
    leaves = [t.double().requires_grad_() for t in (x, weight, bias)]
    z = F.conv2d(*leaves, padding=1)
    exact = mask_gather(z, mask) if relu else z
    expected = [exact, *torch.autograd.grad(exact, leaves, gy.double())]
    for got, want in zip([y, gx, gw, gb], expected, strict=True):
        if tf32:
            assert_as_accurate_as_tf32(got, want)
        elif dtype == torch.float32:
            assert relative_error(got, want) < 1e-6
        else:
            assert_rounded_once(got, want)


@pytest.mark.parametrize("config", ["A-LRN", "C", "D"])
def test_a_network_trains_as_on_the_cpu(backend, monkeypatch, config):
    """Scores and every gradient, in float64."""
    model = VGG(config, num_classes=5, width=0.125, hidden=16, pool_size=1, dropout=0).double()
    x, target = torch.randn(2, 3, 33, 38).double(), torch.tensor([0, 3])

    def step():
        loss = F.cross_entropy(model(x), target)
        return [loss, *torch.autograd.grad(loss, list(model.parameters()))]

    simulated = step()
    monkeypatch.undo()  # back to the CPU
    for got, expected in zip(simulated, step(), strict=True):
        assert relative_error(got, expected) < 1e-11


def test_many_splits_of_a_weight_gradient(backend):
    """As many blocks share the pixels of one tile as there are steps for."""
    x, gy = torch.randn(1, 16, 50, 60), torch.randn(1, 8, 50, 60)
    gw, gb = conv_wgrad(x, gy, None, 3, True)
    exact = torch.ops.aten.convolution_backward(
        gy.double(), x.double(), torch.zeros(8, 16, 3, 3).double(), [8], [1, 1], [1, 1], [1, 1], False, [0, 0], 1,
        [False, True, True],
    )  # fmt: skip
    assert relative_error(gw, exact[1]) < 1e-6
    assert relative_error(gb, exact[2]) < 1e-6


def test_unknown_tile(tile):
    with pytest.raises(ValueError, match=r"tile must be one of auto, large, tall, small, .*, got 'wide'"):
        tile("wide")


@pytest.mark.slow
def test_the_roofline_table(sim, tmp_path):
    """Every pass of every layer, counted from one cluster of each launch; products no fewer than the layer has, no less
    read from L2 than the layer's weights, and shares of the peak with the tile that was chosen."""
    command = [
        sys.executable,
        BENCHMARKS / "roofline.py",
        "--batch",
        "1",
        "--blocks",
        "1",
        "--out",
        tmp_path / "r.json",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = {(row["layer"], row["kernel"]): row for row in json.loads((tmp_path / "r.json").read_text())["rows"]}
    row, work = rows["256→256 56² fprop", "conv_fprop_hopper_kernel"], 9 * 256 * 256 * 56 * 56
    assert work <= row["multiply_adds"] < 1.5 * work
    assert row["global_read"] > row["global_distinct"] > 9 * 256 * 256 * 2
    assert row["tile"] in sim.cuda.conv_tiles()
    assert row["share"] == pytest.approx(2 * work / 788e12 / (row["estimate_ms"] * 1e-3))
    assert 0 < row["share_of_all"] <= row["share"] < 1
    row = rows["256→256 56² dgrad", "conv_fprop_hopper_kernel"]
    assert 0 < row["share_of_all"] < row["share"] < 1
    row = rows["LRN 64 x 224²", "lrn_fprop_kernel"]
    assert row["tile"] is None
    assert "share" not in row
