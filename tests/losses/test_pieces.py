"""Distances that are computed piece by piece: those of whole maps, whatever a piece holds."""

import pytest
import torch
import torch.nn.functional as F

from tests.losses.conftest import CHANNELS, network
from vggfast.losses import LPIPS, _base
from vggfast.losses.perceptual import mean_absolute

NHWC = torch.channels_last


@pytest.fixture(params=[1, 100, 1 << 17], ids="{} values".format)
def piece(request, monkeypatch):
    monkeypatch.setattr(_base, "_PIECE", request.param)


def maps(*shape, dtype=torch.float64):
    """Two with equal values here and there, as ReLU leaves them."""
    a, b = (torch.randn(shape, dtype=dtype).relu_().contiguous(memory_format=NHWC) for _ in range(2))
    return a.requires_grad_(), b.requires_grad_()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(2, 5, 7, 3), (1, 64, 9, 8), (3, 1, 1, 1), (1, 200, 2, 2)], ids=str)
def test_mean_absolute(piece, shape, dtype):
    a, b = maps(*shape, dtype=dtype)
    found, expected = mean_absolute(a, b), F.l1_loss(a, b)
    assert type(found.grad_fn).__name__ == "_MeanAbsoluteBackward"
    near = 1e-6 if dtype == torch.float32 else 1e-14
    torch.testing.assert_close(found, expected, rtol=near, atol=0)
    for ours, theirs in zip(
        torch.autograd.grad(3 * found, (a, b)), torch.autograd.grad(3 * expected, (a, b)), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=near, atol=0)
        assert ours.is_contiguous(memory_format=NHWC)


def test_a_byte_a_value_is_kept():
    a, b = maps(2, 8, 6, 4)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        mean_absolute(a, b)
    assert sum(t.numel() * t.element_size() for t in kept) == a.numel()


def test_derivatives_of_its_gradient():
    a, b = maps(1, 3, 4, 5)
    scale = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(mean_absolute(a, b) * scale, a, create_graph=True)
    (of_scale,) = torch.autograd.grad(gradient.sum(), scale)
    torch.testing.assert_close(of_scale, (a - b).sign().mean())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite(value):
    a, b = maps(1, 3, 4, 5)
    with torch.no_grad():
        a[0, 1, 2, 3] = value
    found, expected = mean_absolute(a, b), F.l1_loss(a, b)
    torch.testing.assert_close(found, expected, equal_nan=True)
    torch.testing.assert_close(torch.autograd.grad(found, a), torch.autograd.grad(expected, a), equal_nan=True)


def test_other_maps_are_torchs():
    a, b = maps(2, 3, 4, 5)
    for x, y in ((a.contiguous(), b), (a, b.float()), (a[:0], b[:0])):
        assert type(mean_absolute(x, y).grad_fn).__name__ != "_MeanAbsoluteBackward"
    forward = torch.func.jvp(lambda x: mean_absolute(x, b), (a,), (torch.ones_like(a),))
    torch.testing.assert_close(forward[1], (a - b).sign().mean())
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(a, torch.ones_like(a))
        tangent = torch.autograd.forward_ad.unpack_dual(mean_absolute(dual, b)).tangent
    torch.testing.assert_close(tangent, (a - b).sign().mean())


@pytest.mark.parametrize("lpips", [True, False])
@pytest.mark.parametrize("normalize", [True, False])
def test_lpips_without_gradients(piece, tmp_path, lpips, normalize):
    torch.manual_seed(2)
    path = tmp_path / "linear.pth"
    torch.save({f"lin{i}.model.1.weight": torch.rand(1, c, 1, 1) for i, c in enumerate(CHANNELS)}, path)
    loss = LPIPS(net=network(width=1.0), model_path=path, lpips=lpips).double()
    x, y = (torch.rand(2, 3, 16, 24, dtype=torch.float64) for _ in range(2))
    expected, of_layers = loss(x, y, normalize=normalize, retPerLayer=True)
    with torch.no_grad():
        found, layers = loss(x, y, normalize=normalize, retPerLayer=True)
    assert found.shape == (2, 1, 1, 1)
    for ours, theirs in zip([found, *layers], [expected, *of_layers], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
