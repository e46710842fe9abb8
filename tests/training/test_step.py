"""Whole training steps, tensor by tensor, against the same network made of torch's own layers."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.support.comparisons import plain_torch, relative_error
from vggfast import VGG
from vggfast.graph import runs
from vggfast.ops.conv import conv
from vggfast.ops.mask import mask_gather

pytestmark = pytest.mark.usefixtures("one_thread")
STEPS = 4
NETWORKS = {
    "A": {"config": "A"},
    "A-LRN": {"config": "A-LRN"},
    "C": {"config": "C"},
    "D with batch norm": {"config": "D", "batch_norm": True},
    "A, dense": {"config": "A", "head": "conv"},
}


class Plain(nn.Module):
    """The network's layers by hand: torch's convolutions, pools, FC layers, and the mean of a score map."""

    def __init__(self, model: VGG) -> None:
        super().__init__()
        self.features, self.classifier = plain_torch(model.features), plain_torch(model.classifier)
        self.dense = model.head == "conv"

    def forward(self, x):
        x = self.features(x)
        if self.dense:
            return self.classifier(x).mean((2, 3))
        return self.classifier(F.adaptive_avg_pool2d(x, (2, 2)).flatten(1))


def train(model, batches):
    """(loss, gradients, weights and buffers) after each step, the paper's SGD."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    for x, labels in batches:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), labels)
        loss.backward()
        gradients = {f"gradient of {name}": p.grad.clone() for name, p in model.named_parameters()}
        optimizer.step()
        yield {"loss": loss.detach(), **gradients, **{name: t.clone() for name, t in model.state_dict().items()}}


def scale_of(name, model, tensors) -> float:
    """What an error is measured by: the tensor's own norm, but for those that batch norm makes a difference of nearly
    equal numbers. Those are its running mean, and the bias that it takes out again; their rounding is that of the
    numbers before."""
    layer, _, kind = name.removeprefix("gradient of ").rpartition(".")
    before_norm = kind == "bias" and layer.startswith("features") and isinstance(model.get_submodule(layer), nn.Conv2d)
    if model.arguments["batch_norm"] and before_norm:
        name = name.removesuffix("bias") + "weight"
    elif kind == "running_mean":
        return tensors[f"{layer}.running_var"].sqrt().norm().item()
    return tensors[name].double().norm().item()


# In float64 a ReLU never falls on different sides of 0, nor a maximum on another pixel. In float32 one may, the sooner
# by Winograd's rounding, and then moves the gradients of its layer; and the sooner with batch norm, which divides by
# what may be small.
CASES = [(name, torch.float64, "auto", 1e-11) for name in NETWORKS] + [
    (name, torch.float32, algorithm, bound)
    for name, arguments in NETWORKS.items()
    for algorithm, bound in (("direct", 1e-4), ("auto", 1e-2))
    if "batch_norm" not in arguments
]


def test_twenty_steps_with_batch_norm():
    """In float32: the loss goes down, and on its way stays by that of torch's layers."""
    model = VGG("A", num_classes=6, dropout=0.0, width=0.125, hidden=32, pool_size=2, batch_norm=True)
    plain = Plain(model)
    batches = [(torch.randn(8, 3, 64, 64), torch.randint(0, 6, (8,)))] * 20
    losses = [torch.stack([step["loss"] for step in train(each, batches)]) for each in (model, plain)]
    assert losses[0][-1] < losses[0][0] / 2
    torch.testing.assert_close(*losses, rtol=0.02, atol=0.01)


@pytest.mark.parametrize(("name", "dtype", "algorithm", "bound"), CASES, indirect=["algorithm"], ids=str)
def test_steps(name, dtype, algorithm, bound):
    arguments = NETWORKS[name]
    model = VGG(num_classes=6, dropout=0.0, width=0.125, hidden=32, pool_size=2, **arguments).to(dtype)
    plain = Plain(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    batches = [(torch.randn(4, 3, 64, 75, dtype=dtype), torch.randint(0, 6, (4,))) for _ in range(STEPS)]
    for ours, theirs in zip(train(model, batches), train(plain, batches), strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            assert (value.double() - theirs[name].double()).norm() < bound * scale_of(name, model, theirs), name
    assert all(not torch.equal(before[name], p) for name, p in model.named_parameters())


def test_a_frozen_trunk_trains_the_head_alone():
    model = VGG("A", num_classes=6, dropout=0.0, width=0.125, hidden=32, pool_size=2).double()
    model.features.requires_grad_(False)
    plain, before = Plain(model), {name: t.clone() for name, t in model.state_dict().items()}
    optimizers = [torch.optim.SGD(m.classifier.parameters(), lr=0.1, momentum=0.9) for m in (model, plain)]
    x, labels = torch.randn(4, 3, 64, 64).double(), torch.randint(0, 6, (4,))
    for network, optimizer in zip((model, plain), optimizers, strict=True):
        F.cross_entropy(network(x), labels).backward()
        optimizer.step()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) == name.startswith("features")
        assert relative_error(value, plain.state_dict()[name]) < 1e-12


def test_a_deep_networks_gradient_is_that_of_its_own_masks():
    """What a ReLU or a pool selects may change with one rounding, and a deep network's gradient with it. Given what the
    forward selected, the gradient is as exact as a convolution."""
    torch.manual_seed(0)
    model = VGG("D", width=0.25, head="none", init="torchvision")
    x = torch.randn(2, 3, 96, 96)
    (out := model(x)).pow(2).sum().backward()
    weights = [p.detach().double().requires_grad_() for p in model.features.parameters()]
    float32, exact = x, x.double()
    for i, (module, _, (relu, pool)) in enumerate(runs(list(model.features))):
        with torch.no_grad():
            float32, mask = conv(float32, module.weight, module.bias, relu, pool, True)
        sums = conv(exact, weights[2 * i], weights[2 * i + 1], False, False, False)[0]
        exact = mask_gather(sums, mask)
    assert torch.equal(float32, out)
    exact.pow(2).sum().backward()
    for got, expected in zip(model.features.parameters(), weights, strict=True):
        assert relative_error(got.grad, expected.grad) < 5e-5
