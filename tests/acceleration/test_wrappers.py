"""Copies, files, wrappers around models, before and after; and what accelerate refuses."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import vggfast
from tests.acceleration.networks import UNet
from tests.acceleration.test_accelerate import classes, image, tensors
from tests.support.comparisons import relative_error
from vggfast import nn as ours

pytestmark = pytest.mark.usefixtures("one_thread")
accelerate = vggfast.accelerate

# ---- copies, files, wrappers -----------------------------------------------------------------------------------------


def saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), saved])
def test_copies(copied):
    fast, x = accelerate(UNet().eval()), image()
    other = copied(fast)
    assert classes(other) == classes(fast)
    assert torch.equal(other(x), fast(x))
    assert other(x).is_contiguous()
    assert tensors(other).keys() == tensors(fast).keys()
    assert not set(tensors(other).values()) & set(tensors(fast).values())


def test_modes_are_each_models_own():
    model = UNet()
    model.down[0][0].weight.requires_grad_(False)
    fast = accelerate(model)
    assert fast.training
    assert not fast.down[0][0].weight.requires_grad
    fast.eval()
    assert all(module.training for module in model.modules())


@pytest.fixture
def one_rank(tmp_path):
    torch.distributed.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("when", ["before", "after, in place", "after"])
def test_distributed_data_parallel(one_rank, when):
    model, parallel = UNet().double(), nn.parallel.DistributedDataParallel
    twin = copy.deepcopy(model)
    wrapped = parallel(accelerate(model) if when == "before" else model)
    if when != "before":
        wrapped = accelerate(wrapped, inplace="place" in when)
    assert type(wrapped) is parallel
    assert type(wrapped.module.head) is ours.Conv1x1
    x = image(dtype=torch.float64)
    for net in (wrapped, twin):
        net(x).pow(2).mean().backward()
    assert wrapped(x).is_contiguous()
    for (name, tensor), want in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert relative_error(tensor.grad, want.grad) < 1e-10, name


def test_data_parallel():
    model, x = UNet().double().eval(), image(dtype=torch.float64)
    wrapped = accelerate(nn.DataParallel(model))
    assert relative_error(wrapped(x), model(x)) < 1e-12
    assert relative_error(nn.DataParallel(accelerate(model))(x), model(x)) < 1e-12


def test_torch_compile_comes_afterwards():
    model, x = UNet().double().eval(), image(dtype=torch.float64)
    compiled = torch.compile(accelerate(model), backend="eager", fullgraph=True)
    assert relative_error(compiled(x), model(x)) < 1e-12


TRACERS = {
    "torch.jit.trace": torch.jit.trace,
    "torch.fx.symbolic_trace": lambda model, x: torch.fx.symbolic_trace(model),
    "torch.export": lambda model, x: torch.export.export(model, (x,)).module(),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("trace", TRACERS.values(), ids=TRACERS)
def test_tracers(trace):
    model, x = UNet().double().eval(), image(dtype=torch.float64)
    traced = trace(accelerate(model), x)
    assert relative_error(traced(x), model(x)) < 1e-12
    assert traced(x).is_contiguous()


class Checkpointed(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.last = UNet(), nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, x):
        return self.last(checkpoint(self.body, x, use_reentrant=False))


def test_what_is_computed_again_for_the_backward():
    """Outside the model's call, where layers keep formats."""
    model, x = Checkpointed().double().eval(), image(dtype=torch.float64, requires_grad=True)
    got, want = (torch.autograd.grad(net(x).pow(2).sum(), x)[0] for net in (accelerate(model), model))
    assert relative_error(got, want) < 1e-12


# ---- refusals --------------------------------------------------------------------------------------------------------


def compiled_in_place():
    model = nn.Sequential(nn.Conv2d(3, 3, 1))
    model[0].compile()
    return model


REFUSED = {
    "no module": (lambda: torch.relu, "model must be a module, got builtins?.*"),
    "script": (lambda: torch.jit.script(nn.Conv2d(3, 3, 1)), "model must not be compiled by torch.jit, got Rec"),
    "trace": (lambda: torch.jit.trace(nn.Conv2d(3, 3, 1), image()), "model must not be compiled by torch.jit, got Top"),
    "compiled": (lambda: torch.compile(nn.Conv2d(3, 3, 1)), "model must not be compiled yet, got OptimizedModule: com"),
    "compiled in place": (compiled_in_place, "model.0 must not be compiled yet, got Conv2d: compile what comes back"),
    "lazy": (lambda: nn.Sequential(nn.LazyConv2d(3, 1)), "model.0 must have a weight, got a LazyConv2d that never ran"),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize(("build", "text"), REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("call", [accelerate, accelerate.restore, accelerate.report])
def test_refusals(build, text, call):
    with pytest.raises(TypeError, match=text):
        call(build())


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_script_within_stays():
    script = torch.jit.script(nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU()))
    model = nn.Sequential(script, nn.Conv2d(3, 3, 1)).double()
    fast, x = accelerate(model), image(dtype=torch.float64)
    assert fast[0] is script
    assert relative_error(fast(x), model(x)) < 1e-13
    assert [(row.path, row.why) for row in accelerate.report(model).rows] == [("0", "torch.jit compiled it"), ("1", "")]
