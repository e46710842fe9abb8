"""Results and workspaces from the pool of huge pages: tensors like any other, never handed out twice, given back."""

import copy
import gc
import io
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from tests.support.comparisons import assert_same_bits, in_format, results
from vggfast import _native, ops
from vggfast.nn import Conv3x3, FusedSequential

OPS = {
    "conv3x3": (ops.conv3x3, [(3, 5, 9, 8), (17, 5, 3, 3), (17,)], {"relu": True, "pool": True}),
    "conv1x1": (ops.conv1x1, [(3, 5, 9, 8), (17, 5, 1, 1), (17,)], {"relu": True}),
    "max_pool2x2": (ops.max_pool2x2, [(3, 20, 9, 8)], {"ceil_mode": True}),
    "local_response_norm": (ops.local_response_norm, [(3, 20, 9, 8)], {}),
}
each_op = pytest.mark.parametrize(("op", "shapes", "options"), OPS.values(), ids=OPS)


@pytest.fixture
def pooled(monkeypatch):
    """Every tensor of ours from the cache, however small."""
    assert hasattr(_native, "_POOLED_BYTES")
    monkeypatch.setattr(_native, "_POOLED_BYTES", 1)


def large() -> torch.Tensor:
    """A result that comes from the cache anyway."""
    return ops.conv3x3(in_format(torch.randn(4, 9, 127, 126), "channels_last"), torch.randn(9, 9, 3, 3))


@each_op
@pytest.mark.parametrize("memory_format", ["contiguous_format", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_same_bits_and_strides(op, shapes, options, memory_format, dtype, request):
    x, *others = (torch.randn(shape, dtype=dtype) for shape in shapes)
    inputs = [in_format(x, memory_format), *others]
    plain = results(op, inputs, **options)
    request.getfixturevalue("pooled")
    for ours, expected in zip(results(op, inputs, **options), plain, strict=True):
        assert_same_bits(ours, expected)
        assert ours.stride() == expected.stride()
        assert ours.storage_offset() == 0


def test_no_images(pooled):
    y = ops.conv3x3(torch.randn(0, 3, 5, 5, requires_grad=True), torch.randn(4, 3, 3, 3), relu=True)
    y.sum().backward()
    assert y.shape == (0, 4, 5, 5)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_grad_modes(pooled, mode):
    x, weight = in_format(torch.randn(2, 3, 8, 8), "channels_last"), torch.randn(4, 3, 3, 3)
    with mode():
        y = ops.conv3x3(x, weight)
        assert y.is_inference() == (mode is torch.inference_mode)
        z = y.relu_().add_(1)
    assert torch.equal(z, ops.conv3x3(x, weight).relu() + 1)


def test_a_result_is_a_tensor_like_any_other():
    y = large()
    expected = torch.empty_like(y).copy_(y)
    for other in (
        copy.deepcopy(y),
        pickle.loads(pickle.dumps(y)),
        y.clone(),
        y.detach(),
        y.permute(0, 2, 3, 1).reshape(4, 127, 126, 9).permute(0, 3, 1, 2),
    ):
        assert torch.equal(other, expected)
    row, array = y[1, 2, 3], y.numpy()
    shared = y.clone().share_memory_()
    assert torch.equal(shared, expected)
    del y, other
    gc.collect()
    again = [large() for _ in range(3)]
    assert torch.equal(row, expected[1, 2, 3])
    assert torch.equal(torch.from_numpy(array), expected)
    assert len(again) == 3


def test_a_result_takes_no_more_storage_than_it_has_elements():
    """A file of it, or a copy, would hold whatever lay behind."""
    y, file = large(), io.BytesIO()
    torch.save(y, file)
    expected, held, saved = y.numel() * y.element_size(), y.untyped_storage().nbytes(), file.tell()
    assert held == expected
    assert saved < expected + 4096


def test_nothing_is_handed_out_twice(pooled):
    """Results of many sizes, freed in any order, and checked before they are."""
    generator = torch.Generator().manual_seed(0)
    kept = []
    for i in range(120):
        n, h, w = (int(torch.randint(1, 9, (), generator=generator)) for _ in range(3))
        y = ops.max_pool2x2(torch.full((n, 4 * h, 4 * w, 16), float(i)).permute(0, 3, 1, 2))
        kept.append((i, y))
        if i % 3:
            index = int(torch.randint(0, len(kept), (), generator=generator))
            value, y = kept.pop(index)
            assert (y == value).all()
    assert all((y == value).all() for value, y in kept)


def test_memory_is_used_again_and_given_back():
    core = _native.load()
    net = FusedSequential(Conv3x3(3, 16), torch.nn.ReLU(), Conv3x3(16, 16), torch.nn.ReLU())
    x = in_format(torch.randn(4, 3, 96, 96), "channels_last")

    def step():
        net.zero_grad()
        net(x).square().mean().backward()

    step()
    held = core.held_bytes()
    for _ in range(5):
        step()
        assert core.held_bytes() <= held * 5 // 4
    net.zero_grad()
    gc.collect()
    core.release_unused()
    before = core.held_bytes()
    y = large()
    assert core.held_bytes() >= before + y.numel() * y.element_size()
    del y
    gc.collect()
    core.release_unused()
    assert core.held_bytes() == before


def test_several_threads(pooled, set_threads):
    set_threads(1)
    inputs = [in_format(torch.randn(2, 3, 20 + i, 30), "channels_last") for i in range(8)]
    weight = torch.randn(16, 3, 3, 3, requires_grad=True)

    def both(x):
        y = ops.conv3x3(x, weight, relu=True, pool=True)
        return y.detach().clone(), torch.autograd.grad(y.square().sum(), weight)[0].clone()

    expected = [both(x) for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            for ours, first in zip(pool.map(both, inputs), expected, strict=True):
                assert all(map(torch.equal, ours, first))


@pytest.mark.backends("cpu")
@pytest.mark.parametrize("algorithm", ["auto", "winograd2"], indirect=True)
@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize(("cin", "cout"), [(3, 64), (8, 64), (8, 65)])
def test_outputs_larger_than_caches(backend, algorithm, cin, cout, pool):
    """They are written past the caches where their vectors are aligned: all of them, and in time for who reads them."""
    x, w, b = torch.randn(2, cin, 301, 298), torch.randn(cout, cin, 3, 3), torch.randn(cout)
    expected = torch.nn.functional.conv2d(x.double(), w.double(), b.double(), padding=1)
    expected = torch.nn.functional.max_pool2d(expected, 2) if pool else expected
    for requires_grad in (False, True):
        y = ops.conv3x3(x, w.requires_grad_(requires_grad), b, pool=pool)
        assert y.nbytes > 10 << 20
        assert (y.detach() - expected).abs().max() < 1e-5 * expected.abs().max()
