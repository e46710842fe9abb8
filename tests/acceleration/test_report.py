"""The table: what is taken, why not, and how much of the work that is."""

import pytest
import torch
from torch import nn

import vggfast
from tests.acceleration.networks import UNet, vgg
from vggfast.ops.fc import LEAST_WEIGHTS, on_the_cpu

pytestmark = pytest.mark.usefixtures("one_thread")
report = vggfast.accelerate.report


def model() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),  # 3 * 8 * 9 a pixel
        nn.Conv2d(8, 4, 3, padding=2, dilation=2), nn.ReLU(),  # 8 * 4 * 9 a pixel
        nn.ConvTranspose2d(4, 2, 2, stride=2),  # 4 * 2 * 4 a pixel
    )  # fmt: skip


ROWS = [
    ("0", "Conv2d", True, ""),
    ("1", "BatchNorm2d", True, ""),
    ("2", "ReLU", True, ""),
    ("3", "Conv2d", False, "its dilation must be 1, got (2, 2)"),
    ("4", "ReLU", False, "only behind one of ours in an nn.Sequential"),
    ("5", "ConvTranspose2d", False, "no kernel of ours"),
]


def test_rows_without_an_example():
    found = report(model())
    assert [(row.path, row.kind, row.taken, row.why) for row in found.rows] == ROWS
    assert all(row.share is None for row in found.rows)
    assert found.share is None
    assert str(found).splitlines()[-1].startswith("3 of 6 layers taken, for large enough inputs: give an example")


def test_shares_of_the_multiply_adds():
    found = report(model(), torch.randn(1, 3, 8, 8))
    total = 3 * 8 * 9 + 8 * 4 * 9 + 4 * 2 * 4
    assert [row.share for row in found.rows] == [n / total for n in (3 * 8 * 9, 0, 0, 8 * 4 * 9, 0, 4 * 2 * 4)]
    assert found.share == 3 * 8 * 9 / total
    assert str(found).splitlines()[0].split() == ["layer", "class", "taken", "multiply-adds", "why", "not"]
    assert str(found).splitlines()[-1] == f"3 of 6 layers taken, {100 * found.share:.1f} % of the multiply-adds"
    assert str(found) == repr(found)


def test_the_same_before_and_after():
    plain, x = UNet(), torch.randn(1, 3, 32, 32)
    before, after = report(plain, x), report(vggfast.accelerate(plain), x)
    assert [(row.path, row.taken, row.why, row.share) for row in before.rows] == [
        (row.path, row.taken, row.why, row.share) for row in after.rows
    ]
    assert {row.kind for row in before.rows} == {"Conv2d", "BatchNorm2d", "ReLU", "MaxPool2d", "ConvTranspose2d"}
    assert [row.path for row in before.rows if not row.taken] == ["ups.0", "ups.1", "ups.2"]


def test_a_report_changes_nothing():
    plain, seen = UNet(), []
    state = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    plain.down[0].register_forward_hook(lambda *_: seen.append(torch.is_grad_enabled()))
    report(plain, torch.randn(1, 3, 32, 32))
    assert seen == [False]
    assert plain.training
    assert not plain.head._forward_hooks
    assert all(torch.equal(tensor, state[name]) for name, tensor in plain.state_dict().items())


def test_several_arguments():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, a, b):
            return self.conv(a) + self.conv(b)

    assert report(Sum(), (torch.randn(1, 3, 4, 4), torch.randn(1, 3, 4, 4))).share == 1


def test_layers_that_a_hook_watches_are_taken_alone():
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
    net[1].register_forward_hook(lambda *_: None)
    assert [row.taken for row in report(net).rows] == [True, False, True]


def fc(dtype=torch.float32, **options) -> nn.Module:
    """Of as many weights as our kernels take at least."""
    return nn.Sequential(nn.Linear(LEAST_WEIGHTS >> 8, 1 << 8, dtype=dtype, **options))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("accelerated", [False, True])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_linear_layers_have_kernels_for_some_dtypes(dtype, accelerated, device):
    model = fc(dtype, device=device)
    (row,) = report(vggfast.accelerate(model) if accelerated else model).rows
    assert row.taken == on_the_cpu(dtype)
    assert row.taken == (dtype is torch.float32) or dtype is torch.bfloat16
    assert row.why == ("" if row.taken else f"of {dtype}")


@pytest.mark.parametrize("shape", [(1,), (16,), (17,), (64,), (2, 3)])
def test_linear_layers_run_few_rows(shape):
    x = torch.randn(*shape, LEAST_WEIGHTS >> 8)
    found = report(fc(), x)
    taken = shape in [(1,), (16,)]
    assert [(row.taken, row.share) for row in found.rows] == [(taken, 1)]
    assert found.rows[0].why == ("" if taken else f"torch's is as fast for an input of shape {tuple(x.shape)}")
    assert found.share == taken


def test_a_linear_layer_whose_weight_is_computed():
    model = fc(torch.float64)
    nn.utils.parametrizations.spectral_norm(model[0])
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert [row.why for row in report(model, torch.randn(1, LEAST_WEIGHTS >> 8).double()).rows] == ["of torch.float64"]
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_a_linear_layer_that_ours_run_sometimes():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = fc()

        def forward(self, few, many):
            return self.fc(few).sum() + self.fc(many).sum()

    few, many = torch.randn(1, LEAST_WEIGHTS >> 8), torch.randn(64, LEAST_WEIGHTS >> 8)
    assert [row.taken for x in ((few, many), (many, few)) for row in report(Twice(), x).rows] == [True, True]
    assert [row.taken for row in report(Twice(), (many, many)).rows] == [False]


def test_nothing_taken():
    found = report(nn.Sequential(nn.Linear(4, 4), nn.Tanh()), torch.randn(1, 4))
    assert str(found).splitlines()[1].split()[:5] == ["0", "Linear", "no", "100.0", "%"]
    assert str(found).splitlines()[-1] == "0 of 2 layers taken, 0.0 % of the multiply-adds"


def test_a_vgg(torchvision):
    found = report(vgg(torchvision, True).eval(), torch.randn(1, 3, 32, 32))
    assert {row.taken for row in found.rows if row.path.startswith("features.")} == {True}
    assert found.share > 0.99
