"""Exact zeros: a gradient that is zero outside one cell reaches only the pixels that the cell sees."""

import pytest
import torch

import vggfast
from tests.acceleration.networks import trunk

pytestmark = pytest.mark.usefixtures("one_thread")


def gradient_of_a_cell(model) -> torch.Tensor:
    x = torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(1)).requires_grad_()
    model(x)[0, :, 12, 12].sum().backward()
    return x.grad


def test_set_exact_keeps_exact_zeros(torchvision, exact):
    """So that FGSM moves no pixel that the cell does not see."""
    model = trunk(torchvision, config="D")[:10]
    seen = gradient_of_a_cell(model) != 0
    assert 0 < seen.any(1).sum() <= 16 * 16
    assert torch.equal(gradient_of_a_cell(vggfast.accelerate(model)) != 0, seen)
