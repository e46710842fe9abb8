"""FusedSequential: what is fused, what un-fuses it, and that watching or rewriting it works as with torch's layers."""

import copy
import pickle
from contextlib import contextmanager

import pytest
import torch
from torch import nn
from torch.nn.modules import module as global_hooks
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support.comparisons import plain_torch, relative_error
from vggfast.nn import Conv1x1, Conv3x3, FusedSequential, LocalResponseNorm, MaxPool2x2

pytestmark = pytest.mark.usefixtures("one_thread")
CONV_RELU_POOL, CONV_RELU, CONV_POOL, CONV = (("conv", *flags) for flags in ((1, 1), (1, 0), (0, 1), (0, 0)))


class Record(TorchDispatchMode):
    """The ops of ours that run, with the epilogues of convolutions, and torch's by name."""

    def __init__(self):
        super().__init__()
        self.ours, self.torchs = [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().split("::")[1]
        if func.namespace != "vggfast":
            self.torchs.append(name)
        else:
            self.ours.append((name, int(args[3]), int(args[4])) if name == "conv" else name)
        return func(*args, **(kwargs or {}))


def make() -> FusedSequential:
    return FusedSequential(
        Conv3x3(3, 9), nn.ReLU(inplace=True), MaxPool2x2(),
        Conv3x3(9, 10), nn.ReLU(inplace=True), Conv1x1(10, 8), nn.ReLU(inplace=True), MaxPool2x2(),
        Conv3x3(8, 6), MaxPool2x2(),
    ).double()  # fmt: skip


FUSED = [CONV_RELU_POOL, CONV_RELU, CONV_RELU_POOL, CONV_POOL]


def batch_norm(channels) -> nn.Module:
    """In eval mode, since with a batch's own mean the bias before it has no gradient that could be compared."""
    return nn.BatchNorm2d(channels).double().eval()


def image(**options) -> torch.Tensor:
    return torch.randn(2, 3, 19, 26, dtype=torch.float64, **options)


def ops_of(net, x) -> list:
    with Record() as record:
        net(x)
    return record.ours


def assert_like(net, twin):
    """Output, and the gradients of input and of every parameter that has one, as the twin's."""
    x = image(requires_grad=True)

    def all_of(model):
        y = model(x)
        leaves = [x, *(p for p in model.parameters() if p.requires_grad)]
        return [y, *torch.autograd.grad(y.pow(2).sum(), leaves)]

    ours, theirs = all_of(net), all_of(twin)
    assert max(map(relative_error, ours, theirs)) < 1e-13


def test_a_run_is_one_op():
    net = make()
    assert ops_of(net, image()) == FUSED
    assert_like(net, plain_torch(net))


def test_a_default_device_changes_nothing():
    """torch sees to it by a mode that takes part in every call."""
    net, x = make(), image()
    with torch.device("cpu"):
        assert ops_of(net, x) == FUSED


@pytest.mark.parametrize("cut", range(1, 10))
def test_slices_stay_fused(cut):
    net, x = make(), image()
    first, second = net[:cut], net[cut:]
    assert type(first) is type(second) is FusedSequential
    assert len(ops_of(first, x)) + len(ops_of(second, first(x))) <= len(FUSED) + 1
    assert relative_error(second(first(x)), plain_torch(net)(x)) < 1e-13


def test_the_ops_of_a_slice():
    assert ops_of(make()[3:8], torch.randn(1, 9, 8, 8).double()) == FUSED[1:3]


def test_other_modules_stay_themselves():
    net = FusedSequential(Conv3x3(3, 8), batch_norm(8), nn.ReLU(), MaxPool2x2(), LocalResponseNorm(),
                          nn.Conv2d(8, 4, 3), nn.Sequential(nn.ReLU())).double()  # fmt: skip
    assert ops_of(net, image()) == [CONV, "batch_norm", "lrn"]
    assert_like(net, plain_torch(net))


def test_a_relu6_is_no_relu_and_a_subclass_of_ours_no_convolution_of_ours():
    class Doubled(Conv3x3):
        def forward(self, x):
            return 2 * super().forward(x)

    net = FusedSequential(Conv3x3(3, 4), nn.ReLU6(), Doubled(4, 4), nn.ReLU()).double()
    with Record() as record:
        y = net(image())
    assert record.ours == [CONV, CONV]
    assert "hardtanh" in record.torchs
    assert y.min() == 0


# ---- memory format ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("normed", [False, True])
def test_one_conversion_at_each_edge(monkeypatch, normed):
    net = make()
    if normed:
        net.insert(1, batch_norm(9))
    converted = []
    to_nhwc = torch.Tensor.contiguous

    def nhwc(t):
        y = to_nhwc(t, memory_format=torch.channels_last)
        converted.append(y.data_ptr() != t.data_ptr())
        return y

    monkeypatch.setattr("vggfast.ops._library.nhwc", nhwc)
    with Record() as record, torch.no_grad():
        y = net(image())
    assert converted[0]
    assert not any(converted[1:])
    assert record.torchs.count("clone") == 1
    assert y.is_contiguous()


def test_channels_last_needs_no_conversion():
    net, x = make(), image().contiguous(memory_format=torch.channels_last)
    with Record() as record, torch.no_grad():
        y = net(x)
    assert "clone" not in record.torchs
    assert y.is_contiguous(memory_format=torch.channels_last)


# ---- hooks --------------------------------------------------------------------------------------------------------


def watch_forward(module, seen):
    return module.register_forward_hook(lambda m, args, y: seen.extend([args[0].clone(), y.clone()]))


def watch_pre(module, seen):
    return module.register_forward_pre_hook(lambda m, args: seen.append(args[0].clone()))


def watch_backward(module, seen):
    return module.register_full_backward_hook(lambda m, gx, gy: seen.extend([*gx, *gy]))


def watch_backward_pre(module, seen):
    return module.register_full_backward_pre_hook(lambda m, gy: seen.extend(gy))


def not_in_place(net):
    """torch refuses full backward hooks on a module whose output is then changed in place."""
    for module in net:
        if isinstance(module, nn.ReLU):
            module.inplace = False
    return net


@pytest.mark.parametrize("watch", [watch_forward, watch_pre, watch_backward, watch_backward_pre])
@pytest.mark.parametrize("at", range(10))
def test_a_hook_sees_what_torchs_layers_show(watch, at):
    net = not_in_place(make())
    twin = plain_torch(net)
    ours, theirs = [], []
    handle = watch(net[at], ours)
    watch(twin[at], theirs)
    assert_like(net, twin)
    assert len(ours) == len(theirs) > 0
    assert max(map(relative_error, ours, theirs)) < 1e-13
    handle.remove()
    assert ops_of(net, image()) == FUSED


def test_a_hook_unfuses_its_run_alone():
    net = make()
    net[1].register_forward_hook(lambda m, args, y: None)
    assert ops_of(net, image()) == [CONV, "max_pool", *FUSED[1:]]


def test_a_hook_may_change_what_goes_on():
    net = make()
    twin = plain_torch(net)
    for model in (net, twin):
        model[4].register_forward_hook(lambda m, args, y: y + 1)
        model[2].register_forward_pre_hook(lambda m, args: (args[0] * 2,))
    assert_like(net, twin)


@contextmanager
def removed(handle):
    try:
        yield
    finally:
        handle.remove()


@pytest.mark.parametrize(
    "register", [global_hooks.register_module_forward_hook, global_hooks.register_module_forward_pre_hook]
)
def test_a_global_hook_sees_every_module(register):
    net, seen = make(), []
    with removed(register(lambda module, *args: seen.append(module))):
        net(image())
    assert set(net) <= set(seen)
    assert ops_of(net, image()) == FUSED


def test_a_global_backward_hook_sees_every_module():
    net, seen = not_in_place(make()), []
    with removed(global_hooks.register_module_full_backward_hook(lambda module, gx, gy: seen.append(module))):
        net(image(requires_grad=True)).sum().backward()
    assert set(net) <= set(seen)


def test_a_replaced_forward_is_called():
    net = make()
    net[1].forward = lambda x: x.abs()
    twin = plain_torch(net)
    twin[1] = nn.Module()
    twin[1].forward = lambda x: x.abs()
    assert_like(net, twin)


# ---- rewriting ----------------------------------------------------------------------------------------------------

REWRITES = {
    "replaced relu": lambda net: net.__setitem__(1, nn.Tanh()),
    "replaced conv": lambda net: net.__setitem__(3, nn.Conv2d(9, 10, 5, padding=2).double()),
    "replaced pool": lambda net: net.__setitem__(2, nn.AvgPool2d(2)),
    "ceil_mode": lambda net: setattr(net[2], "ceil_mode", True),
    "pool stride": lambda net: setattr(net[2], "stride", 1),
    "pool kernel": lambda net: setattr(net[2], "kernel_size", 3),
    "pool padding": lambda net: setattr(net[2], "padding", 1),
    "conv stride": lambda net: setattr(net[3], "stride", (2, 2)),
    "conv padding": lambda net: setattr(net[3], "padding", (0, 0)),
    "conv dilation": lambda net: setattr(net[3], "dilation", (2, 2)),
    "no bias": lambda net: setattr(net[0], "bias", None),
    "removed": lambda net: net.__delitem__(4),
    "inserted": lambda net: net.insert(1, batch_norm(9)),
    "appended": lambda net: net.append(nn.ReLU()),
}


@pytest.mark.parametrize("rewrite", REWRITES.values(), ids=REWRITES)
def test_rewriting(rewrite):
    net = make()
    twin = plain_torch(net)
    before = net(image()).shape
    for model in (net, twin):
        torch.manual_seed(1)
        rewrite(model)
    assert_like(net, twin)
    assert before == make()(image()).shape


def test_padding_mode():
    net = FusedSequential(Conv3x3(3, 4), nn.ReLU()).double()
    twin = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), nn.ReLU()).double()
    twin.load_state_dict(net.state_dict())
    net[0].padding_mode, net[0]._reversed_padding_repeated_twice = "reflect", [1, 1, 1, 1]
    assert_like(net, twin)


def test_return_indices():
    pool = MaxPool2x2()
    pool.return_indices = True
    x = image()
    torch.testing.assert_close(pool(x), nn.MaxPool2d(2, return_indices=True)(x))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_copies_are_their_own(copied):
    net = make()
    other = copied(net)
    assert ops_of(other, image()) == FUSED
    x = image()
    assert torch.equal(other(x), net(x))
    with torch.no_grad():
        other[0].weight.zero_()
    assert not torch.equal(other(x), net(x))


# ---- frozen weights -----------------------------------------------------------------------------------------------


def saved_by(net, x) -> list[torch.Tensor]:
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        net(x)
    return saved


@pytest.mark.parametrize("frozen", [slice(0, 1), slice(0, 4), slice(3, 6), slice(0, 10)], ids=str)
def test_frozen_weights(frozen):
    net = make()
    net[frozen].requires_grad_(False)
    assert_like(net, plain_torch(net))


def test_a_frozen_network_keeps_weights_and_bits_alone():
    net = make().requires_grad_(False)
    weights = {p.data_ptr() for p in net.parameters()}
    others = [t for t in saved_by(net, image(requires_grad=True)) if t.data_ptr() not in weights]
    assert {t.dtype for t in others} == {torch.uint8}


def test_nothing_is_kept_before_the_first_trained_layer():
    net = make()
    net[:5].requires_grad_(False)
    assert len(saved_by(net, image())) == len(saved_by(net[5:], net[:5](image())))
    assert saved_by(net.requires_grad_(False), image()) == []
