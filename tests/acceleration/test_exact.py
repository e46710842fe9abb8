"""Exact zeros: a gradient that is zero outside one cell reaches only the pixels that the cell sees."""

import copy
import pickle
import re
from pathlib import Path

import pytest
import torch
from torch import nn

import vggfast
from tests.acceleration.networks import trunk
from vggfast import _native

pytestmark = pytest.mark.usefixtures("one_thread")
accelerate = vggfast.accelerate
DOCUMENT = Path(__file__).parents[2] / "docs/guides/accelerate.md"


def images() -> torch.Tensor:
    return torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(1))


def gradient_of_a_cell(model) -> torch.Tensor:
    x = images().requires_grad_()
    model(x)[0, :, 12, 12].sum().backward()
    return x.grad


@pytest.fixture
def model(torchvision):
    return trunk(torchvision, config="D")[:10]


@pytest.fixture
def seen(model):
    """What a cell of torch's sees."""
    found = gradient_of_a_cell(model) != 0
    assert 0 < found.any(1).sum() <= 16 * 16
    return found


def test_set_exact_keeps_exact_zeros(model, seen, exact):
    assert torch.equal(gradient_of_a_cell(accelerate(model)) != 0, seen)
    assert not torch.equal(gradient_of_a_cell(accelerate(model, exact=False)) != 0, seen)


def watched(model):
    for layer in model:
        layer.register_forward_hook(lambda *args: None)
    return model


FORMS = {
    "in a sequence": lambda model: model,
    "layer by layer": watched,
    "within other code": lambda model: Around(model),
    "compiled": lambda model: torch.compile(model, backend="aot_eager"),
    "copied": copy.deepcopy,
    "pickled": lambda model: pickle.loads(pickle.dumps(model)),
    "parallel": lambda model: nn.DataParallel(model),
    "accelerated again": accelerate,
    "reported on": lambda model: accelerate.report(model, images()) and model,
}


class Around(nn.Module):
    """Calls each layer by itself."""

    def __init__(self, layers):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


@pytest.mark.parametrize("change", FORMS.values(), ids=FORMS)
def test_an_exact_model_keeps_exact_zeros(model, seen, change):
    assert _native.conv_algorithm() == "auto"
    fast = change(accelerate(model, exact=True))
    assert torch.equal(gradient_of_a_cell(fast) != 0, seen)


def test_a_model_that_is_never_exact(model, exact):
    x = images()
    y = accelerate(model, exact=False)(x)
    direct = accelerate(model)(x)
    vggfast.set_exact(False)
    assert torch.equal(accelerate(model)(x), y)
    assert not torch.equal(direct, y)


def test_models_side_by_side(model, seen):
    """On the same parameters; the backward comes when both have run."""
    x = images().requires_grad_()
    given, exact = accelerate(model), accelerate(model, exact=True)
    cells = [net(x)[0, :, 12, 12].sum() for net in (given, exact)]
    zeros = [torch.equal(torch.autograd.grad(cell, x)[0] != 0, seen) for cell in cells]
    assert zeros == [False, True]


def test_none_leaves_what_an_earlier_call_said():
    inner = accelerate(nn.Conv2d(3, 3, 3, padding=1), exact=True)
    outer = accelerate(nn.Sequential(inner, nn.Conv2d(3, 3, 1)), inplace=True)
    assert re.findall("exact=.*", str(outer)) == ["exact=True)"]
    accelerate(outer, inplace=True, exact=False)
    assert re.findall("exact=.*", str(outer)) == ["exact=False)"] * 2


def test_the_given_model_stays_and_restore_leaves_nothing():
    model = vggfast.VGG11(head="none", width=0.125)
    before = [dict(vars(module)) for module in model.modules()]
    fast = accelerate(model, exact=True)
    assert [vars(module) for module in model.modules()] == before
    plain = accelerate.restore(fast)
    assert any("_exact" in vars(module) for module in fast.modules())
    assert not any("_exact" in vars(module) for module in plain.modules())


@pytest.mark.parametrize("wrong", ["yes", 2])
def test_what_is_no_flag(wrong):
    model = nn.Conv2d(3, 3, 1)
    with pytest.raises(TypeError, match=f"exact must be True, False or None, got .*{wrong}"):
        accelerate(model, inplace=True, exact=wrong)
    assert type(model) is nn.Conv2d


def test_fgsm_as_the_documentation_has_it(model, seen):
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.S) if "FGSM" in block]
    known = {"vggfast": vggfast, "model": model, "images": images(), "eps": 2 / 255}
    exec(code, known)
    moved = known["attacked"] != known["images"]
    assert torch.equal(moved, seen)
