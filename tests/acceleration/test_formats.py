"""One conversion into NHWC and one out of it, whatever stands between the layers; and where that is not done."""

import copy
import threading

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
    """torch's first convolution has NCHW, and its skip connection is added as it is; scores have no format."""
    fast = accelerate(resnet18(torchvision).eval())
    assert conversions(fast, image()) == 1
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


def fail(y, z):
    raise ValueError("of the model")


def interrupt(y, z):
    raise KeyboardInterrupt


def test_an_error_ends_it():
    fast = accelerate(Outer(EDSR(), fail))
    with pytest.raises(ValueError, match="of the model"):
        fast(image())
    assert within.models == []
    assert fast.last(image()).is_contiguous()


def test_the_call_after_an_interrupted_one():
    fast = accelerate(Outer(EDSR(), interrupt))
    with pytest.raises(KeyboardInterrupt):
        fast(image())
    fast.answer = lambda y, z: z
    assert fast(image()).is_contiguous()
    assert within.models == []


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
