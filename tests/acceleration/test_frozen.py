"""torchvision's FrozenBatchNorm2d in accelerated models, with and without torchvision."""

import copy
import pickle

import pytest
import torch
from torch import nn

import vggfast
from tests.graph.test_frozen import draw, made_in
from tests.models.test_nn import ops_of
from tests.support.comparisons import relative_error
from vggfast import layers

pytestmark = pytest.mark.usefixtures("one_thread")
accelerate = vggfast.accelerate


@pytest.fixture(params=["torchvision's", "without torchvision"])
def kind(request):
    if request.param == "without torchvision":
        return made_in("torchvision.ops.misc")
    return request.getfixturevalue("torchvision").ops.misc.FrozenBatchNorm2d


class Block(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3, padding=1, bias=False), draw(kind(8, eps=0.25))

    def forward(self, x):
        return self.bn(self.conv(x))


def maps() -> torch.Tensor:
    return torch.randn(2, 3, 6, 7, dtype=torch.float64).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("least", [1, 1 << 21])
@pytest.mark.parametrize("training", [False, True])
def test_it_is_torchvisions(kind, monkeypatch, training, least):
    monkeypatch.setattr(layers, "LEAST_MAPS", least)
    model = Block(kind).double().train(training)
    fast = accelerate(model)
    assert isinstance(fast.bn, kind)
    assert type(fast.bn) is not kind
    x = maps()
    assert ("batch_norm" in ops_of(fast, x)) == (least == 1)
    results = []
    for net in (fast, model):
        own = x.clone().requires_grad_()
        y = net(own)
        results.append([y, *torch.autograd.grad(y.pow(2).sum(), [own, *net.parameters()])])
    torch.testing.assert_close(*results)
    assert list(fast.state_dict()) == list(model.state_dict())


def test_restore_copies_and_engines(kind):
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), draw(kind(8)), nn.ReLU())
    fast, x = accelerate(model), torch.randn(1, 3, 8, 8)
    assert [type(layer) for layer in accelerate.restore(fast)] == [nn.Conv2d, kind, nn.ReLU]
    assert type(accelerate(fast)[1]) is type(copy.deepcopy(fast)[1]) is type(fast[1])
    assert relative_error(vggfast.Engine(fast)(x), model(x)) < 1e-5
    assert type(torch.compile(fast, backend="eager")(x)) is torch.Tensor


def test_pickles(torchvision):
    norm = accelerate(torchvision.ops.misc.FrozenBatchNorm2d(8))
    read = pickle.loads(pickle.dumps(norm))
    assert type(read) is type(norm)
    assert type(accelerate.restore(read)) is torchvision.ops.misc.FrozenBatchNorm2d


def test_what_stays(kind):
    for layer in (type("Own", (kind,), {})(8), made_in("detectron2.layers")(8)):
        assert type(accelerate(nn.ModuleList([layer]))[0]) is type(layer)
        assert accelerate.report(nn.ModuleList([layer])).rows[0].why == "no kernel of ours"


def test_a_report(kind, monkeypatch):
    model, x = Block(kind), maps().float()
    assert accelerate.report(model).rows[1].taken
    assert accelerate.report(model, x).rows[1].why == "torch's is as fast for maps of shape (2, 8, 6, 7)"
    monkeypatch.setattr(layers, "LEAST_MAPS", 1)
    assert accelerate.report(model, x).rows[1].taken
    assert accelerate.report(Block(kind).half()).rows[1].why == "of torch.float16"
