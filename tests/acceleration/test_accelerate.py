"""What accelerate and restore keep: tensors, names, hooks, modes, references, settings; and what they refuse."""

import copy
import weakref
from collections import Counter, OrderedDict, defaultdict, deque
from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch.nn.utils import fusion, parametrizations, prune, spectral_norm, weight_norm
from torch.utils._pytree import tree_leaves

import vggfast
from tests.acceleration.networks import EDSR, NETWORKS, Slices, UNet, double_conv
from tests.support.comparisons import relative_error
from vggfast import nn as ours
from vggfast.acceleration.choice import TWINS

pytestmark = pytest.mark.usefixtures("one_thread")
accelerate = vggfast.accelerate


def image(channels=3, **options) -> torch.Tensor:
    return torch.randn(2, channels, 16, 24, **options)


def classes(model) -> list[type]:
    return [type(module) for module in model.modules()]


def tensors(model) -> dict[str, int]:
    return {name: id(tensor) for name, tensor in (*model.named_parameters(), *model.named_buffers())}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_given_model_stays_and_shares_its_tensors(torchvision, name):
    model = NETWORKS[name](torchvision)
    before, fast = classes(model), accelerate(model)
    assert classes(model) == before
    assert not model._forward_hooks
    assert type(fast) is type(model)
    assert tensors(fast) == tensors(model)
    assert [path for path, _ in fast.named_modules()] == [path for path, _ in model.named_modules()]
    assert list(fast.state_dict()) == list(model.state_dict())
    changed = [(old, new) for old, new in zip(before, classes(fast), strict=True) if old is not new]
    assert len(changed) > 2
    assert all(issubclass(new, old) and TWINS[new] is old for old, new in changed)


@pytest.mark.parametrize("name", NETWORKS)
def test_restore(torchvision, name):
    model = NETWORKS[name](torchvision).eval()
    fast = accelerate(model)
    plain = accelerate.restore(fast)
    assert classes(plain) == classes(model)
    assert tensors(plain) == tensors(model)
    assert not plain._forward_hooks
    assert not plain._forward_pre_hooks
    assert not plain._forward_hooks_with_kwargs
    assert not plain._forward_hooks_always_called
    assert classes(fast) == classes(accelerate(model))
    x = torch.randn(1, 3, 32, 48)
    assert all(map(torch.equal, *(tree_leaves(net(x)) for net in (plain, model))))


def test_restore_of_a_network_of_ours():
    plain = accelerate.restore(vggfast.VGG11(head="none", width=0.125))
    kinds = {type(module) for module in plain.modules()}
    assert kinds == {vggfast.VGG11, nn.Sequential, nn.Conv2d, nn.ReLU, nn.MaxPool2d}


def test_in_place():
    model = UNet()
    assert accelerate(model, inplace=True) is model
    assert type(model.head) is ours.Conv1x1
    assert accelerate.restore(model, inplace=True) is model
    assert classes(model) == classes(UNet())


def test_twice_is_once():
    once = accelerate(EDSR())
    assert classes(accelerate(once)) == classes(once)
    assert len(accelerate(once)._forward_hooks) == len(once._forward_hooks) == 1


def test_an_optimiser_that_was_built_before():
    model = UNet()
    twin = copy.deepcopy(model)
    for net, optimised in ((accelerate(model), model), (twin, twin)):
        optimiser = torch.optim.SGD(optimised.parameters(), 0.1)
        torch.manual_seed(2)
        for _ in range(2):
            optimiser.zero_grad()
            net(image()).pow(2).mean().backward()
            optimiser.step()
    for (name, tensor), want in zip(model.state_dict().items(), twin.state_dict().values(), strict=True):
        assert relative_error(tensor, want) < 1e-4, name


ROOTS = {
    "3x3": (lambda: nn.Conv2d(3, 4, 3, padding=1), ours.Conv3x3),
    "3x3 same": (lambda: nn.Conv2d(3, 4, 3, padding="same", bias=False), ours.Conv3x3),
    "1x1": (lambda: nn.Conv2d(3, 4, 1), ours.Conv1x1),
    "1x1 valid": (lambda: nn.Conv2d(3, 4, 1, padding="valid"), ours.Conv1x1),
    "pool": (lambda: nn.MaxPool2d(2), ours.MaxPool2x2),
    "pool of pairs": (lambda: nn.MaxPool2d([2, 2], (2, 2), ceil_mode=True), ours.MaxPool2x2),
    "LRN": (lambda: nn.LocalResponseNorm(3), ours.LocalResponseNorm),
    "sequence": (lambda: double_conv(3, 4), ours.FusedSequential),
    "batch norm": (lambda: nn.BatchNorm2d(3), ours.BatchNorm2d),
}


@pytest.mark.parametrize(("build", "kind"), ROOTS.values(), ids=ROOTS)
def test_a_layer_as_the_root(build, kind):
    model = build().double()
    fast, x = accelerate(copy.deepcopy(model)), image(dtype=torch.float64)
    assert type(fast) is kind
    assert relative_error(fast(input=x), model(x)) < 1e-13
    assert fast(x).is_contiguous()


def test_a_large_linear_layer_runs_on_our_kernels():
    model, x = nn.Linear(2048, 1024), torch.randn(4, 2048)
    fast = accelerate(model)
    assert type(fast) is ours.Linear
    assert relative_error(fast(input=x), model.double()(x.double())) < 1e-6
    assert type(accelerate(nn.Linear(8, 8))) is nn.Linear


# ---- what stays ------------------------------------------------------------------------------------------------------


class Doubled(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


class Named(nn.Conv2d):
    """Has nothing of its own, but somebody may look for it."""


class Twice(nn.Sequential):
    def forward(self, x):
        return super().forward(super().forward(x))


def patched():
    layer = nn.Conv2d(3, 3, 3, padding=1)
    layer.forward = lambda x: 2 * x
    return layer


STAY = {
    "stride": lambda: nn.Conv2d(3, 4, 3, 2, 1),
    "dilation": lambda: nn.Conv2d(3, 4, 3, padding=2, dilation=2),
    "groups": lambda: nn.Conv2d(3, 3, 3, padding=1, groups=3),
    "padding": lambda: nn.Conv2d(3, 4, 3),
    "reflection": lambda: nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"),
    "7x7": lambda: nn.Conv2d(3, 4, 7, padding=3),
    "transposed": lambda: nn.ConvTranspose2d(3, 4, 2, 2),
    "3x3 pool": lambda: nn.MaxPool2d(3, 2),
    "pool with indices": lambda: nn.MaxPool2d(2, return_indices=True),
    "complex": lambda: nn.Conv2d(3, 4, 1, dtype=torch.complex64),
    "own forward": lambda: Doubled(3, 4, 3, padding=1),
    "a subclass": lambda: Named(3, 4, 3, padding=1),
    "replaced forward": patched,
    "sequence of no run": lambda: nn.Sequential(nn.ReLU(), nn.Tanh()),
    "quantised": lambda: torch.ao.nn.quantized.Conv2d(3, 4, 3, padding=1),
    "quantisation-aware": lambda: torch.ao.nn.qat.Conv2d(
        3, 4, 3, padding=1, qconfig=torch.ao.quantization.get_default_qat_qconfig("x86")
    ),
}


@pytest.mark.parametrize("build", STAY.values(), ids=STAY)
def test_what_stays(build):
    model = nn.ModuleList([build()])
    assert classes(accelerate(model)) == classes(model)
    assert accelerate.report(model).rows[0].why


def test_children_of_a_sequence_with_its_own_forward():
    model = Twice(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU()).double()
    fast, x = accelerate(model), image(dtype=torch.float64)
    assert classes(fast) == [Twice, ours.Conv3x3, nn.ReLU]
    assert relative_error(fast(x), model(x)) < 1e-13


def test_what_is_no_tensor_goes_through_a_sequence():
    class First(nn.Module):
        def forward(self, pair):
            return pair["a"] + pair["b"]

    model = nn.Sequential(First(), nn.Conv2d(3, 3, 3, padding=1), nn.ReLU()).double()
    pair = {"a": image(dtype=torch.float64), "b": image(dtype=torch.float64)}
    assert type(accelerate(model)) is ours.FusedSequential
    assert relative_error(accelerate(model)(pair), model(pair)) < 1e-13


# ---- references, hooks, computed tensors -----------------------------------------------------------------------------


@pytest.mark.parametrize("inplace", [False, True])
def test_references_stay_one_module(torchvision, inplace):
    model = Slices(torchvision)
    model.shared = model.slice1
    model.table = {"last": [(model.slice5, 1)], model.slice2: "second"}
    model.run = model.slice3.forward
    fast = accelerate(model, inplace=inplace)
    assert (fast is model) == inplace
    assert fast.slices[0] is fast.slice1 is fast.shared
    assert fast.table["last"][0][0] is fast.slice5
    assert fast.slice2 in fast.table
    assert fast.run.__self__ is fast.slice3
    assert type(fast.slice1) is ours.FusedSequential
    assert (model.slices[0] is fast.slice1) == inplace


class Pair(NamedTuple):
    layer: nn.Module
    count: int


def test_what_else_holds_modules():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU())
    held = model[0]
    model.counted = Counter({("a", 3): 2, "b": 1})
    model.ordered = OrderedDict(first=held)
    model.default = defaultdict(list, first=[held])
    model.recent = deque([1, held, held], maxlen=2)
    model.few = frozenset([held])
    model.pair = Pair(held, 1)
    model.weak = weakref.ref(held)
    fast = accelerate(model)
    assert fast.counted == model.counted
    assert fast.default["second"] == []
    assert model.default.keys() == {"first"}
    assert fast.recent.maxlen == 2
    assert type(fast.pair) is Pair
    for each in (
        fast.ordered["first"],
        fast.default["first"][0],
        *fast.recent,
        *fast.few,
        fast.pair.layer,
        fast.weak(),
    ):
        assert each is fast[0]
    fast.recent.append(None)
    assert model.recent[-1] is held


class Fixing(nn.Module):
    """Counts, by hooks that are methods of its own, what is loaded into it."""

    def __init__(self):
        super().__init__()
        self.body, self.loaded = nn.Conv2d(3, 4, 3, padding=1), []
        self._register_load_state_dict_pre_hook(self.fix)
        self._register_load_state_dict_pre_hook(self.fix, with_module=False)
        self.register_load_state_dict_post_hook(lambda module, keys: module.loaded.append("after"))
        self.register_state_dict_pre_hook(self.note)

    def fix(self, *args):
        self.loaded.append("before")

    def note(self, *args):
        self.loaded.append("saved")


def test_hooks_of_state_dicts():
    model = Fixing()
    fast = accelerate(model)
    fast.load_state_dict(fast.state_dict())
    assert model.loaded == []
    assert fast.loaded == ["saved", "before", "before", "after"]


class Watching(nn.Module):
    """Keeps what a layer gives, by a hook that is a method of its own."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 1))
        self.body[0].register_forward_hook(self.keep)
        self.kept = None

    def keep(self, module, args, y):
        self.kept = y.detach()

    def forward(self, x):
        return self.body(x)


def test_hooks():
    model, seen = Watching().double(), []
    model.body[1].register_full_backward_hook(lambda module, gx, gy: seen.append(gy[0].clone()))
    fast, x = accelerate(model), image(dtype=torch.float64, requires_grad=True)
    fast(x).sum().backward()
    assert model.kept is None
    model(x).sum().backward()
    assert relative_error(fast.kept, model.kept) < 1e-13
    assert len(seen) == 2
    assert relative_error(*seen) < 1e-13


COMPUTED = {
    "weight_norm, a hook": weight_norm,
    "spectral_norm, a hook": spectral_norm,
    "weight_norm, a parametrisation": parametrizations.weight_norm,
    "spectral_norm, a parametrisation": parametrizations.spectral_norm,
    "pruned": lambda layer: prune.random_unstructured(layer, "weight", 0.5),
}


@pytest.mark.parametrize("change", COMPUTED.values(), ids=COMPUTED)
@pytest.mark.parametrize("training", [False, True])
def test_computed_weights(change, training):
    def build():
        torch.manual_seed(0)  # torch copies no tensors that were computed
        return nn.Sequential(change(nn.Conv2d(3, 4, 3, padding=1).double()), nn.ReLU()).train(training)

    model, twin = build(), build()
    fast = accelerate(model)
    assert isinstance(fast[0], ours.Conv3x3)
    assert not isinstance(model[0], ours.Conv3x3)
    x = image(dtype=torch.float64)
    for net in (fast, twin):
        net(x).pow(2).sum().backward()
    for (name, tensor), want in zip(fast.named_parameters(), twin.parameters(), strict=True):
        assert relative_error(tensor.grad, want.grad) < 1e-12, name
    for tensor, want in zip(fast.buffers(), twin.buffers(), strict=True):
        assert relative_error(tensor, want) < 1e-13
    assert type(accelerate.restore(fast)[0]).__name__ == type(model[0]).__name__


def test_a_parametrisation_goes():
    fast = accelerate(parametrizations.weight_norm(nn.Conv2d(3, 4, 3, padding=1)))
    assert type(fast).__name__ == "ParametrizedConv3x3"
    nn.utils.parametrize.remove_parametrizations(fast, "weight")
    assert type(fast) is ours.Conv3x3
    assert isinstance(fast.weight, nn.Parameter)


def test_fusion_of_batch_norm():
    model = double_conv(3, 4).double().eval()
    model[1].running_mean.normal_()
    fast, x = accelerate(model), image(dtype=torch.float64)
    fast[0], fast[1] = fusion.fuse_conv_bn_eval(fast[0], fast[1]), nn.Identity()
    assert type(fast[0]) is ours.Conv3x3
    assert relative_error(fast(x), model(x)) < 1e-13
