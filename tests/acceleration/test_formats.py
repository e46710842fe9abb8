"""One conversion into NHWC and one out of it, whatever stands between the layers; and where that is not done."""

import copy
import functools
import sys
import threading
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import vggfast
from tests.acceleration.networks import EDSR, CSRNet, UNet, resnet18, vgg
from tests.support.comparisons import relative_error
from vggfast.layers import within

pytestmark = pytest.mark.usefixtures("one_thread")
accelerate = vggfast.accelerate


class Conversions(TorchDispatchMode):
    """Counts maps that are copied into another memory format."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        y = func(*args, **(kwargs or {}))
        if func.overloadpacket is torch.ops.aten.clone and y.dim() == 4 and y.stride() != args[0].stride():
            self.count += 1
        return y


def conversions(model, x) -> int:
    counted = Conversions()
    to_nhwc = vggfast.ops._library.nhwc

    def nhwc(t):
        y = to_nhwc(t)
        counted.count += y.data_ptr() != t.data_ptr()  # kernels ask below the dispatcher
        return y

    with pytest.MonkeyPatch.context() as patch, counted, torch.no_grad():
        patch.setattr("vggfast.ops._library.nhwc", nhwc)
        model(x)
    return counted.count


def image(**options) -> torch.Tensor:
    return torch.randn(1, 3, 32, 48, **options)


BUILD = {"U-Net": UNet, "EDSR": EDSR}


@pytest.mark.parametrize("name", BUILD)
def test_one_conversion_at_each_edge(name):
    fast = accelerate(BUILD[name]().eval())
    assert conversions(fast, image()) == 2
    assert fast(image()).is_contiguous()
    assert conversions(fast, image().contiguous(memory_format=torch.channels_last)) == 0
    assert fast(image().contiguous(memory_format=torch.channels_last)).is_contiguous(memory_format=torch.channels_last)


def test_a_residual_network(torchvision):
    """torch's first convolution takes NHWC, and the skip connection is added as it is; scores have no format."""
    fast = accelerate(resnet18(torchvision).eval())
    pooled = []
    fast.maxpool.register_forward_pre_hook(lambda module, args: pooled.append(args[0]))
    assert conversions(fast, image()) == 1
    assert pooled[0].is_contiguous(memory_format=torch.channels_last)
    assert len(fast.conv1._forward_pre_hooks) == 1
    assert not accelerate.restore(fast).conv1._forward_pre_hooks
    assert conversions(accelerate(copy.deepcopy(fast), inplace=True), image()) == 1


def test_one_sequence_needs_no_hooks(torchvision):
    """So that readers of networks, which refuse hooks, read on."""
    fast = accelerate(vgg(torchvision).eval())
    assert not fast._forward_hooks
    assert not fast._forward_pre_hooks
    assert conversions(fast, image()) == 2
    assert vggfast.Engine(fast)(image()).shape == (1, 5)


def test_parts_keep_the_format_of_their_input(torchvision):
    """What is called by itself is the outermost."""
    fast = accelerate(CSRNet(torchvision).eval())
    assert fast.frontend(image()).is_contiguous()
    assert fast.output_layer(torch.randn(1, 16, 4, 6)).is_contiguous()


class Flattening(nn.Module):
    """As people wrote before there was nn.Flatten."""

    def __init__(self, flatten):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.flatten = flatten

    def forward(self, x):
        return self.flatten(self, self.b(self.a(x).relu()))


class Viewing(Flattening):
    def forward(self, x):
        y = self.b(self.a(x).relu())
        return y.view(y.size(0), -1)


class ViewingWithin(Flattening):
    def forward(self, x):
        return (lambda y: y.view(y.size(0), -1))(self.b(self.a(x).relu()))


VIEW = [Viewing, ViewingWithin, lambda flatten: torch.fx.symbolic_trace(Viewing(flatten))]


@pytest.mark.parametrize("build", VIEW, ids=["in forward", "in a function within", "in a traced graph"])
def test_code_that_views_maps_gets_contiguous_ones(build):
    model = build(None).double()
    fast, x = accelerate(model), image(dtype=torch.float64)
    assert not fast._forward_hooks
    assert relative_error(fast(x), model(x)) < 1e-13


class View(nn.Module):
    def forward(self, x):
        return x.view(x.size(0), -1)


class AsStrided(nn.Module):
    def forward(self, x):
        return x.as_strided((x.size(0), x[0].numel()), (x[0].numel(), 1))


class Lambda(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Split(nn.Module):
    def forward(self, x):
        return x, x.view(-1)


def viewed(x):
    return x.view(x.size(0), -1)


class OfAFunction(nn.Module):
    def forward(self, x):
        return viewed(x)


class OfADecoratedFunction(nn.Module):
    @torch.autocast("cpu", enabled=False)
    def forward(self, x):
        return helpers.viewed(x)


class Reshape(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.shape = x.shape
        return x.view(x.size(0), -1).clone()

    @staticmethod
    def backward(ctx, gy):
        return gy.view(ctx.shape)


class OfAClass(nn.Module):
    def forward(self, x):
        return Reshape.apply(x)


def scripted():
    return torch.jit.script(View())


helpers = sys.modules[__name__]
OTHERS = {
    "view": View,
    "as_strided": AsStrided,
    "a lambda": lambda: Lambda(lambda x: x.view(x.size(0), -1)),
    "a partial call": lambda: Lambda(functools.partial(viewed)),
    "within": lambda: nn.Sequential(nn.Identity(), View()),
    "a function": OfAFunction,
    "a decorated function": OfADecoratedFunction,
    "a class": OfAClass,
    "a traced graph": lambda: torch.fx.symbolic_trace(View()),
    "a script": scripted,
}
of_others = pytest.mark.parametrize("build", OTHERS.values(), ids=OTHERS)
for_scripts = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


def layers(*last):
    """A sequence, which hands NHWC on within; two channels or more, for one has but one format."""
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), *last).double()


@for_scripts
@of_others
def test_others_code_in_a_sequence_gets_contiguous_maps(build):
    model, x = layers(build(), nn.Linear(4 * 16 * 24, 2)), image(dtype=torch.float64)
    assert relative_error(accelerate(model)(x), model(x)) < 1e-13


@for_scripts
@of_others
def test_others_code_in_a_sequence_of_a_larger_model(build):
    model, x = nn.Sequential(layers(), nn.Conv2d(4, 3, 1), layers(build())).double(), image(dtype=torch.float64)
    assert relative_error(accelerate(model)(x), model(x)) < 1e-13


@for_scripts
@of_others
@pytest.mark.parametrize("larger", [False, True])
def test_others_code_that_comes_later(build, larger):
    last, x = layers(nn.Identity()), image(dtype=torch.float64)
    model = nn.Sequential(layers(), nn.Conv2d(4, 3, 1), last).double() if larger else last
    fast = accelerate(model)
    (fast[-1] if larger else fast)[-1] = last[-1] = build()
    assert relative_error(fast(x), model(x)) < 1e-13


def test_what_is_no_tensor_leaves_a_sequence():
    model, x = layers(Split()), image(dtype=torch.float64)
    for got, want in zip(accelerate(model)(x), model(x), strict=True):
        assert relative_error(got, want) < 1e-13


def test_a_network_of_ours_with_others_code():
    net, x = vggfast.nn.FusedSequential(vggfast.nn.Conv3x3(3, 4), nn.ReLU(), View()), image()
    want = nn.functional.conv2d(x, net[0].weight, net[0].bias, padding=1).relu().flatten(1)
    assert relative_error(net(x), want) < 1e-5
    assert relative_error(torch.compile(net, backend="eager", fullgraph=True)(x), want) < 1e-5


class Outer(nn.Module):
    def __init__(self, inner, answer):
        super().__init__()
        self.inner, self.last, self.answer = inner, nn.Conv2d(3, 3, 3, padding=1), answer

    def forward(self, x):
        y = self.inner(x)
        return self.answer(y, self.last(y))


def test_a_model_within_a_model():
    """Converts nothing that goes on; alone it does."""
    fast = accelerate(Outer(accelerate(EDSR()), lambda y, z: z))
    assert conversions(fast, image()) == 2
    assert fast.inner(image()).is_contiguous()
    assert not accelerate.restore(fast).inner._forward_hooks


def test_all_maps_that_come_out_are_converted():
    model = Outer(EDSR(), lambda y, z: {"maps": [y, z], "scores": z.mean((2, 3)), "name": "z"})
    y = accelerate(model)(image())
    assert y["name"] == "z"
    assert all(t.is_contiguous() for t in (*y["maps"], y["scores"]))


@dataclass
class Answer:
    maps: list[torch.Tensor]
    name: str = "z"


@dataclass(frozen=True)
class Frozen:
    maps: list[torch.Tensor]
    name: str = "z"


class Dict(dict):
    maps = property(lambda self: self["maps"])
    name = property(lambda self: self["name"])


class List(list):
    maps = property(lambda self: self[0])
    name = property(lambda self: self[1])


UNKNOWN = {
    "dataclass": lambda y, z: Answer([y, z]),
    "frozen dataclass": lambda y, z: Frozen([y, z]),
    "subclass of dict": lambda y, z: Dict(maps=[y, z], name="z"),
    "subclass of list": lambda y, z: List([[y, z], "z"]),
    "within": lambda y, z: Answer([], Answer([y, Dict(maps=z)])),
}


@pytest.mark.parametrize("answer", UNKNOWN.values(), ids=UNKNOWN)
def test_maps_in_objects_that_torch_does_not_look_into(answer):
    fast = accelerate(Outer(EDSR(), answer))
    got = fast(image())
    assert type(got) is type(answer(None, None))
    if isinstance(got.name, Answer):
        got = got.name
    for t in got.maps:
        assert (t if isinstance(t, torch.Tensor) else t["maps"]).is_contiguous()


def test_an_object_that_holds_itself():
    def answer(y, z):
        found = Answer([z])
        found.name = found
        return found

    found = accelerate(Outer(EDSR(), answer))(image())
    assert found.maps[0].is_contiguous()
    assert found.name is found


def fail(y, z):
    raise ValueError("of the model")


def interrupt(y, z):
    raise KeyboardInterrupt


def test_an_error_ends_it():
    fast = accelerate(Outer(EDSR(), fail))
    with pytest.raises(ValueError, match="of the model"):
        fast(image())
    assert within.calls == []
    assert fast.last(image()).is_contiguous()


def interrupted():
    """A model whose call was interrupted, and what came of it, which has the frames."""
    fast = accelerate(Outer(EDSR(), interrupt))
    with pytest.raises(KeyboardInterrupt) as caught:
        fast(image())
    return fast, caught


def test_the_call_after_an_interrupted_one():
    fast, _ = interrupted()
    fast.answer = lambda y, z: z
    assert fast(image()).is_contiguous()
    assert within.calls == []


AFTER = {
    "accelerated": lambda: accelerate(Outer(EDSR(), lambda y, z: z)),
    "a sequence": lambda: accelerate(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU())),
    "of ours": lambda: vggfast.nn.Conv3x3(3, 4),
}


@pytest.mark.parametrize("build", AFTER.values(), ids=AFTER)
def test_another_model_after_an_interrupted_call(build):
    """While something still holds the frames of that call, as a debugger does."""
    model, (_, caught) = build(), interrupted()
    assert model(image()).is_contiguous()
    assert within.calls == []
    del caught


def test_a_model_that_goes_on_after_an_interrupt_within():
    def catch(y, z):
        _, caught = interrupted()
        assert not vggfast.nn.Conv3x3(3, 4)(image()).is_contiguous(), "this call still runs"
        del caught
        return z

    assert accelerate(Outer(EDSR(), catch))(image()).is_contiguous()


def test_other_threads_are_not_within():
    found = []

    def beside(y, z):
        thread = threading.Thread(target=lambda: found.append(fast.last(image())))
        thread.start()
        thread.join()
        return z

    fast = accelerate(Outer(EDSR(), beside))
    fast(image())
    assert found[0].is_contiguous()
