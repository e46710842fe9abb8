"""bfloat16 and float16 tensors without tiles (test_tiles.py): computed in float32, and each result rounded once."""

import pytest
import torch

from tests.ops.test_memory import each_op
from tests.support.comparisons import assert_same_bits, in_format
from vggfast import VGG, ops

pytestmark = [
    pytest.mark.usefixtures("no_tiles"),
    pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str),
]


@each_op
@pytest.mark.parametrize("memory_format", ["contiguous_format", "channels_last"])
def test_rounds_what_float32_gives(op, shapes, options, memory_format, dtype):
    narrow = [torch.randn(shape).to(dtype) for shape in shapes]
    narrow[0] = in_format(narrow[0], memory_format)
    wide = [t.float().requires_grad_() for t in narrow]
    y, expected = op(*(t.requires_grad_() for t in narrow), **options), op(*wide, **options)
    assert_same_bits(y, expected.to(dtype))
    assert y.stride() == expected.stride()
    gy = torch.randn_like(y)
    gradients, expected = torch.autograd.grad(y, narrow, gy), torch.autograd.grad(expected, wide, gy.float())
    for gradient, want in zip(gradients, expected, strict=True):
        assert_same_bits(gradient, want.to(dtype))


@pytest.mark.parametrize("reduce", ["mean", "sum"])
def test_sum_pool(reduce, dtype):
    x = torch.randn(3, 7, 5, 6).to(dtype)
    assert_same_bits(ops.sum_pool(x, reduce=reduce), ops.sum_pool(x.float(), reduce=reduce).to(dtype))


def test_a_network_trains(dtype):
    torch.manual_seed(0)
    model = VGG("A-LRN", num_classes=5, width=0.125, hidden=16, pool_size=1, dropout=0)
    x, target = torch.randn(2, 3, 32, 32), torch.tensor([0, 3])
    expected = torch.nn.functional.cross_entropy(model(x), target)
    expected = [expected, *torch.autograd.grad(expected, list(model.parameters()))]
    model = model.to(dtype)
    loss = torch.nn.functional.cross_entropy(model(x.to(dtype)).float(), target)
    loss.backward()
    for got, want in zip([loss, *(p.grad for p in model.parameters())], expected, strict=True):
        assert (got.float() - want).norm() < 0.25 * want.norm()
