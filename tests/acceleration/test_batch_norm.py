"""Batch norms outside an nn.Sequential: what they compute, when that is on kernels of ours, and what else they do."""

import copy
import pickle

import pytest
import torch
from torch import nn

import vggfast
from tests.acceleration.networks import resnet18
from tests.models.test_nn import ops_of
from tests.support.comparisons import relative_error
from vggfast import layers
from vggfast import nn as ours

pytestmark = pytest.mark.usefixtures("one_thread")
accelerate = vggfast.accelerate


@pytest.fixture
def any_size(monkeypatch):
    """Our kernels take small maps too."""
    monkeypatch.setattr(layers, "LEAST_MAPS", 1)


class Block(nn.Module):
    """As ResNet has it."""

    def __init__(self, **options):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn, self.relu = nn.BatchNorm2d(8, **options), nn.ReLU(inplace=True)

    def forward(self, x):
        return self.relu(self.bn(self.conv(x)))


def block(**options) -> nn.Module:
    """In float64, with statistics and parameters as after training."""
    model = Block(**options).double()
    for name, tensor in model.bn.state_dict().items():
        if tensor.dim():
            tensor.uniform_(-1, 1) if name in ("bias", "running_mean") else tensor.uniform_(0.5, 2)
    return model


def maps(*shape, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(*(shape or (2, 3, 6, 7)), dtype=dtype).contiguous(memory_format=torch.channels_last)


def steps(model, x) -> list[torch.Tensor]:
    """Outputs and gradients of two steps, and the buffers behind them."""
    found = []
    for _ in range(2):
        own = x.clone().requires_grad_()
        y = model(own)
        found += [y, *torch.autograd.grad(y.pow(2).sum(), [own, *model.parameters()])]
    return found + list(model.buffers())


OPTIONS = [{}, {"momentum": None}, {"affine": False}, {"track_running_stats": False}, {"eps": 0.5}]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("training", [False, True])
def test_it_is_torchs(any_size, options, training):
    model = block(**options).train(training)
    fast, x = accelerate(copy.deepcopy(model)), maps()
    tracks = options.get("track_running_stats", True)
    assert type(fast.bn) is (ours.BatchNorm2d if tracks else nn.BatchNorm2d)
    assert ("batch_norm" in ops_of(fast, x)) == tracks
    fast = accelerate(copy.deepcopy(model))  # without the statistics of that call
    torch.testing.assert_close(steps(fast, x), steps(model, x))


@pytest.mark.parametrize("training", [False, True])
def test_a_resnet(torchvision, any_size, training):
    model = resnet18(torchvision).double().train(training)
    fast, x = accelerate(copy.deepcopy(model)), torch.randn(2, 3, 64, 64, dtype=torch.float64)
    assert relative_error(fast(x), model(x)) < 1e-10
    for mine, theirs in zip(fast.buffers(), model.buffers(), strict=True):
        torch.testing.assert_close(mine, theirs)
    assert ops_of(fast, x).count("batch_norm") == 20


def test_the_least_maps():
    norm = ours.BatchNorm2d(64)
    for h, expected in ((127, False), (128, True)):
        x = torch.empty(2, 64, h, 128)
        assert layers.runs_batch_norm(norm, x.contiguous(memory_format=torch.channels_last)) == expected
        assert not layers.runs_batch_norm(norm, x), "contiguous maps would be converted"


OTHERS = {
    "contiguous maps": lambda norm, x: norm(x.contiguous()),
    "16 bits": lambda norm, x: norm.bfloat16()(x.bfloat16()),
    "a subclass of tensors": lambda norm, x: norm(x.as_subclass(type("Own", (torch.Tensor,), {}))),
    "torch.func": lambda norm, x: torch.func.vjp(norm, x)[0],
    "forward mode": lambda norm, x: torch.func.jvp(norm, (x,), (x,))[0],
    "torch.compile": lambda norm, x: torch.compile(norm, backend="eager", fullgraph=True)(x),
    "torch.jit.trace": lambda norm, x: torch.jit.trace(norm, (x,), check_trace=False)(x),
    "make_fx": lambda norm, x: torch.fx.experimental.proxy_tensor.make_fx(norm)(x)(x),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("call", OTHERS.values(), ids=OTHERS)
def test_what_runs_torchs(any_size, monkeypatch, call):
    norm, x = accelerate(block()).bn.eval(), maps(2, 8, 6, 7)
    expected = nn.BatchNorm2d.forward(norm, x)
    assert layers.runs_batch_norm(norm, x)
    monkeypatch.setattr(layers, "batch_norm", None)
    assert relative_error(call(norm, x).double(), expected) < 2e-2


@pytest.mark.parametrize("training", [False, True])
def test_torch_fx_keeps_it_as_a_module(any_size, training):
    model = block().train(training)
    fast, x = accelerate(copy.deepcopy(model)), maps()
    traced = torch.fx.symbolic_trace(fast)
    assert [node.target for node in traced.graph.nodes if node.op == "call_module"] == ["bn", "relu"]
    torch.testing.assert_close(steps(traced, x), steps(model, x))


def test_errors_are_torchs(any_size):
    norm = accelerate(nn.BatchNorm2d(3))
    with pytest.raises(ValueError, match="expected 4D input"):
        norm(torch.randn(2, 3))
    with pytest.raises(RuntimeError, match="running_mean should contain"):
        norm(maps(2, 5, 4, 4, dtype=torch.float32))


def test_hooks_copies_and_restore(any_size):
    model, seen = block().eval(), []
    model.bn.register_forward_hook(lambda module, args, y: seen.append(y.clone()))
    fast, x = accelerate(model), maps()
    y = pickle.loads(pickle.dumps(accelerate(block().eval())))
    assert type(y.bn) is ours.BatchNorm2d
    assert "batch_norm" in ops_of(fast, x)
    assert relative_error(seen.pop(), nn.BatchNorm2d.forward(model.bn, model.conv(x))) < 1e-13
    assert type(accelerate.restore(fast).bn) is type(model.bn) is nn.BatchNorm2d
    assert type(nn.SyncBatchNorm.convert_sync_batchnorm(fast).bn) is nn.SyncBatchNorm


def test_in_a_sequence_of_any_size():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()).double()
    fast = accelerate(model)
    assert type(fast[1]) is ours.BatchNorm2d
    assert ops_of(fast, maps()) == [("conv", 0, 0), "batch_norm"]
    synchronised = accelerate(nn.SyncBatchNorm.convert_sync_batchnorm(model))
    assert type(synchronised[1]) is nn.SyncBatchNorm
    assert "batch_norm" not in ops_of(synchronised, maps())
    assert ops_of(synchronised.eval(), maps()) == [("conv", 0, 0), "batch_norm"]
    x = maps()
    assert relative_error(synchronised(x), model.eval()(x)) < 1e-13


def test_a_report():
    model = Block().to(memory_format=torch.channels_last)
    small, large = torch.randn(1, 3, 8, 8), torch.randn(1, 3, 512, 512)
    assert [row.taken for row in accelerate.report(model).rows] == [True, True, False]
    rows = accelerate.report(model, small).rows
    assert [row.taken for row in rows] == [True, False, False]
    assert rows[1].why == "torch's is as fast for maps of shape (1, 8, 8, 8)"
    assert rows[1].share == 0
    assert accelerate.report(model, large.contiguous(memory_format=torch.channels_last)).rows[1].taken
    nn.utils.parametrize.register_parametrization(model.bn, "weight", nn.Identity())
    assert type(accelerate(model).bn) is type(model.bn)
    assert accelerate.report(model).rows[1].why == "its tensors are computed"
    assert accelerate.report(Block().bfloat16()).rows[1].why == "of torch.bfloat16"
    assert accelerate.report(nn.SyncBatchNorm(3)).rows[0].why == "only in an nn.Sequential, in evaluation mode"
