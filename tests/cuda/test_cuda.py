"""What only a real GPU can show: streams, devices, graphs, torch's switches, tensors over 2^31 elements. Run them with
`pytest --cuda -m cuda`; scripts/gpu_session.sh does, and under compute-sanitizer as well."""

import functools
import warnings

import pytest
import torch
import torch.nn.functional as F

from tests.support.comparisons import assert_rounded_once, conv_precision, relative_error, results
from vggfast import VGG16, ops
from vggfast.ops import _backends, reference

pytestmark = [pytest.mark.cuda, pytest.mark.backends("cuda")]
IMAGE, WEIGHT, BIAS = (4, 64, 30, 26), (96, 64, 3, 3), (96,)


def layer(dtype=torch.bfloat16):
    """Inputs of a convolution."""
    return [torch.randn(shape).to(dtype) / (24 if len(shape) == 4 and shape[2] == 3 else 1) for shape in
            (IMAGE, WEIGHT, BIAS)]  # fmt: skip


fused = functools.partial(ops.conv3x3, relu=True, pool=True)


def test_a_side_stream(backend):
    """Work is queued where torch's current stream says, behind what already waits there."""
    x, weight, bias = layer()
    expected = results(fused, [x, weight, bias])
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        late = torch.zeros_like(x)
        late.copy_(x)
        got = results(fused, [late, weight, bias])
    torch.cuda.current_stream().wait_stream(stream)
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a, b)


def test_another_device(backend):
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU only")
    inputs = layer()
    expected = results(fused, inputs)
    got = results(fused, [t.to("cuda:1") for t in inputs])
    assert all(t.device.index == 1 for t in got)
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a.cpu(), b.cpu())
    with pytest.raises(ValueError, match="weight must be on the device of x, cuda:0, got cuda:1"):
        ops.conv3x3(inputs[0], inputs[1].to("cuda:1"))


def test_a_graph(backend):
    """Forward and backward are captured, and give the same bits for each replay's input."""
    x, weight, bias = (t.requires_grad_() for t in layer())

    def step():
        y = fused(x, weight, bias)
        return [y, *torch.autograd.grad(y, (x, weight, bias), torch.ones_like(y))]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for _ in range(2):
        with torch.no_grad():
            x.copy_(torch.randn_like(x))
        graph.replay()
        for got, expected in zip(captured, step(), strict=True):
            assert torch.equal(got, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(backend, dtype):
    inputs = layer(torch.float32)
    with torch.autocast("cuda", dtype):
        got = results(fused, inputs)
    assert got[0].dtype == dtype
    assert [t.dtype for t in got[1:]] == [torch.float32] * 3
    exact = results(functools.partial(reference.conv3x3, relu=True, pool=True), [t.double() for t in inputs])
    assert relative_error(got[0], exact[0]) < 4 * torch.finfo(dtype).eps
    with torch.autocast("cuda", dtype):
        assert ops.max_pool2x2(inputs[0]).dtype == torch.float32
        assert ops.linear(torch.randn(2, 8), torch.randn(4, 8)).dtype == dtype


def test_the_tf32_switch(backend):
    x, weight, bias = layer(torch.float32)
    exact = F.conv2d(x.double(), weight.double(), bias.double(), padding=1)
    with conv_precision("ieee"):
        assert relative_error(ops.conv3x3(x, weight, bias), exact) < 1e-6
    with conv_precision("tf32"):
        assert 1e-6 < relative_error(ops.conv3x3(x, weight, bias), exact) < 1e-3


def test_the_same_bits_every_time(backend):
    inputs = [torch.randn(8, 64, 56, 56).bfloat16(), *layer()[1:]]
    first = results(fused, inputs)
    for _ in range(5):
        for a, b in zip(results(fused, inputs), first, strict=True):
            assert torch.equal(a, b)
    torch.use_deterministic_algorithms(True)
    try:
        results(fused, inputs)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_block_1_in_one_kernel(backend, dtype):
    """On as many SMs as there are."""
    ours = _backends.backend_of(torch.empty(0))
    if not ours.ops.has_conv_block1():
        pytest.skip("the GPU is not of compute capability 9.0")
    for n, c, h, w in ((8, 3, 224, 224), (3, 4, 57, 33), (2, 1, 31, 9)):
        shapes = [(n, c, h, w), (64, c, 3, 3), (64,), (64, 64, 3, 3), (64,)]
        x, w1, b1, w2, b2 = ((torch.randn(shape) / shape[-1]).to(dtype) for shape in shapes)
        x, w2 = (t.contiguous(memory_format=torch.channels_last) for t in (x, w2))
        y = torch.empty(n, 64, h // 2, w // 2, dtype=dtype).contiguous(memory_format=torch.channels_last)
        ours.run("conv_block1", x, w1, b1, w2, b2, y)
        a = ops.conv3x3(x, w1, b1, relu=True)
        assert_rounded_once(y, F.max_pool2d(F.conv2d(a.double(), w2.double(), b2.double(), padding=1).relu(), 2))


def test_memory_comes_from_torchs_allocator(backend):
    inputs = layer()
    results(fused, inputs)
    before = torch.cuda.memory_stats()["num_device_alloc"]
    results(fused, inputs)
    assert torch.cuda.memory_stats()["num_device_alloc"] == before
    assert torch.cuda.memory_allocated() > 0


@pytest.mark.slow
class TestOver2To31Elements:
    """Offsets of 64 bits: the last image of a batch is as right as the first."""

    @pytest.fixture(autouse=True)
    def _room(self, backend):
        free, _ = torch.cuda.mem_get_info()
        if free < 40 << 30:
            pytest.skip(f"{free >> 30} GiB of GPU memory are free: this needs 40")
        yield
        torch.cuda.empty_cache()

    def batch(self, c, size):
        n = (1 << 31) // (c * size * size) + 2
        return torch.randn(n, c, size, size, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)

    @pytest.mark.parametrize("channels", [64, 63])
    def test_conv(self, channels):
        x = self.batch(channels, 224)
        weight = torch.randn(16, channels, 3, 3).bfloat16() / 24
        y = ops.conv3x3(x, weight, relu=True)
        for i in (0, -1):
            assert torch.equal(y[i], ops.conv3x3(x[i : i + 1 or None], weight, relu=True)[0])

    def test_gradients(self):
        x = self.batch(64, 224)
        gy = torch.zeros(x.shape[0], 16, 224, 224, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
        gy[-1] = torch.randn(16, 224, 224)
        weight = torch.randn(16, 64, 3, 3).bfloat16() / 24
        gx = ops.conv.conv_dgrad(gy, None, weight, 224, 224)
        gw = ops.conv.conv_wgrad(x, gy, None, 3, False)[0]
        assert torch.equal(gx[-1], ops.conv.conv_dgrad(gy[-1:], None, weight, 224, 224)[0])
        assert relative_error(gw, ops.conv.conv_wgrad(x[-1:], gy[-1:], None, 3, False)[0]) < 1e-2

    @pytest.mark.parametrize("op", [ops.max_pool2x2, ops.local_response_norm, ops.sum_pool])
    def test_other_ops(self, op):
        x = self.batch(64, 224)
        assert torch.equal(op(x)[-1], op(x[-1:])[0])


def test_a_network_trains(backend):
    """VGG-16 in bfloat16 follows float32 for a few steps."""
    torch.manual_seed(0)
    model = VGG16(num_classes=10, dropout=0.0).bfloat16().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9)
    x, target = torch.randn(8, 3, 224, 224).bfloat16(), torch.arange(8)
    losses = []
    for _ in range(12):
        loss = F.cross_entropy(model(x).float(), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_older_gpus_get_torchs_ops_and_one_warning(backend, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (7, 5))
    _backends._cuda.cache_clear()
    inputs = layer(torch.float32)
    try:
        with pytest.warns(UserWarning, match="sm_75, and sm_80 is the least"):
            got = results(fused, inputs)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            fused(*inputs)
    finally:
        _backends._cuda.cache_clear()
    for a, b in zip(got, results(functools.partial(reference.conv3x3, relu=True, pool=True), inputs), strict=True):
        assert relative_error(a, b) < 1e-5
