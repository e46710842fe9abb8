"""The parts of a training step share packed weights, and no others do: on the simulated GPU, which counts packings."""

import copy

import pytest
import torch
from torch import nn

from tests.support.comparisons import conv_precision
from vggfast import VGG
from vggfast.data import Batch
from vggfast.distributed import DistributedContext
from vggfast.graph import runs_no_others
from vggfast.ops import _packed
from vggfast.runs.config import TrainConfig
from vggfast.tasks import Classification
from vggfast.training.build import build_optimiser
from vggfast.training.step import TrainStep

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.backends("sim")]
PARTS = 3


@pytest.fixture
def network(backend):
    torch.manual_seed(0)
    return VGG("A", 5, dropout=0.0, width=1 / 16, hidden=8, pool_size=1)


def trained(model, steps=1, *, parts=PARTS, between=None, **options):
    """Trains with a batch in parts; the weights' changes, and a list of the bytes that were kept at each part's end."""
    config = TrainConfig(crop=32, scale_min=32, scale_max=32, accumulate=parts, **options)
    train_step = TrainStep(config, Classification(), DistributedContext(), model, build_optimiser(config, model))
    held, backward = [], train_step._backward

    def noted(*args):
        sums = backward(*args)
        held.append(_packed.held_bytes())
        return sums

    train_step._backward = noted
    torch.manual_seed(1)
    for number in range(steps):
        batch = Batch(torch.randn(parts, 3, 32, 32), torch.arange(parts) % 5, torch.ones(parts).bool(), parts, [])
        train_step(batch, number, 0.1)
        assert not _packed._held
        if between:
            between(model)
    return [p.detach().clone() for p in model.parameters()], held


def without_keeping(monkeypatch):
    monkeypatch.setattr(_packed, "_of", lambda weight: None)


def packs(sim):
    count = sim.counters().get("pack_weights_kernel", {"launches": 0})["launches"]
    sim.clear_counters()
    return count


def halve(model):
    """Behind torch's back."""
    for p in model.parameters():
        p.data.mul_(0.5)


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_parts_share_what_is_packed(sim, network, monkeypatch, precision):
    """To the bit as if each part packed its own; nothing is kept after the step."""
    options = {"precision": "fp32" if precision == "tf32" else precision}
    other = copy.deepcopy(network)
    with conv_precision("tf32" if precision == "tf32" else "ieee"):
        packs(sim)
        mine, held = trained(network, 2, between=halve, **options)
        once = packs(sim)
        without_keeping(monkeypatch)
        each, nothing = trained(other, 2, between=halve, **options)
        assert packs(sim) == PARTS * once > 0
    assert all(map(torch.equal, mine, each))
    assert held[0] == held[1] == held[-1] > 0
    assert not any(nothing)


def test_one_part_keeps_nothing(network):
    assert trained(network, parts=1)[1] == [0]


class Hooked:
    """Each plants a write behind torch's back where somebody's own code runs within a step."""

    @staticmethod
    def pre_hook(model):
        model.features[3].register_forward_pre_hook(lambda *_: halve(model.features[3]))

    @staticmethod
    def backward_hook(model):
        model.classifier[6].register_full_backward_hook(lambda *_: halve(model.features))

    @staticmethod
    def of_a_gradient(model):
        model.features[0].weight.register_hook(lambda _: halve(model.features))

    @staticmethod
    def after_a_gradient(model):
        model.features[0].weight.register_post_accumulate_grad_hook(lambda _: halve(model.features))

    @staticmethod
    def own_forward(model):
        forward = model.avgpool.forward

        def changing(x):
            halve(model.features)
            return forward(x)

        model.avgpool.forward = changing

    @staticmethod
    def own_class(model):
        class Halving(nn.Identity):
            def forward(self, x):
                halve(model.features)
                return x

        model.features.append(Halving())


@pytest.mark.parametrize("plant", [name for name in vars(Hooked) if not name.startswith("_")])
def test_writes_by_data_within_a_step_are_seen(network, monkeypatch, plant):
    other = copy.deepcopy(network)
    for model in (network, other):
        assert runs_no_others(model)
        getattr(Hooked, plant)(model)
        assert not runs_no_others(model)
    mine, held = trained(network)
    without_keeping(monkeypatch)
    assert all(map(torch.equal, mine, trained(other)[0]))
    assert not any(held)


def test_writes_by_hooks_on_all_modules_are_seen(network, monkeypatch):
    other = copy.deepcopy(network)
    handle = nn.modules.module.register_module_forward_pre_hook(
        lambda module, _: halve(module) if isinstance(module, nn.Conv2d) else None
    )
    try:
        mine, held = trained(network)
        without_keeping(monkeypatch)
        assert all(map(torch.equal, mine, trained(other)[0]))
    finally:
        handle.remove()
    assert not any(held)
