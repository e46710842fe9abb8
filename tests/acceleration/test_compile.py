"""``torch.compile(model, backend="vggfast")``: what becomes ours, and that nothing else changes.

Our ops are put into the graph, and AOTAutograd's two halves run without inductor's loops, which take long to compile:
test_compile_backend.py has those.
"""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

import vggfast
from tests.acceleration.parity import MODES, largest_errors, make, step
from tests.acceleration.test_parity import WINOGRAD
from tests.support.comparisons import relative_error
from vggfast.acceleration.rewriting import rewrite

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::UserWarning:torch.*", "ignore::FutureWarning:torch.*"),
]


@pytest.fixture(autouse=True)
def _forget():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Graphs:
    """A back end that keeps what of its graphs is ours: the ops with their flags, in order."""

    def __init__(self):
        self.ops: list[tuple] = []
        self.count = 0

    def __call__(self, module, inputs):
        rewrite(module)
        self.count += 1
        for part in [part for part in module.modules() if isinstance(part, torch.fx.GraphModule)]:
            for node in part.graph.nodes:
                if "vggfast" in str(node.target):
                    flags = [arg for arg in node.args if isinstance(arg, bool)]
                    self.ops.append((str(node.target).split(".")[1], *flags))
        return torch._dynamo.lookup_backend("aot_eager_decomp_partition")(module, inputs)

    def names(self) -> list[str]:
        return [name for name, *_ in self.ops]


def both(plain, dtype):
    """The same step by torch and by a compiled copy, and the copy's graphs."""
    twin, graphs = copy.deepcopy(plain), Graphs()
    return step(twin, dtype, torch.compile(twin, backend=graphs)), step(plain, dtype), graphs


# ---- networks --------------------------------------------------------------------------------------------------------

# Our ops: those in evaluation mode, where batch norm is folded, and those in training.
COUNTS = {
    "vgg": ({"conv": 8}, {"conv": 8}),
    "vgg with batch norm": ({"conv": 8}, {"conv": 8, "batch_norm": 8}),
    "U-Net": ({"conv": 15, "max_pool": 3}, {"conv": 15, "batch_norm": 14, "max_pool": 3}),
    "EDSR": ({"conv": 12}, {"conv": 12}),
    "ResNet-18": ({"conv": 13}, {"conv": 13, "batch_norm": 20}),
}
CASES = [pytest.param((name, mode), id=f"{name}-{mode}") for name in COUNTS for mode in MODES]


@pytest.mark.parametrize("case", CASES)
def test_networks_in_float64(torchvision, case):
    got, want, graphs = both(make(torchvision, case).double(), torch.float64)
    assert max(largest_errors(got, want)) < 1e-10
    assert got[0]["y"].stride() == want[0]["y"].stride()
    found = {name: graphs.names().count(name) for name in set(graphs.names())}
    assert found == COUNTS[case[0]][MODES.index(case[1])]


@pytest.mark.parametrize("case", [("vgg with batch norm", "eval"), ("U-Net", "train")], ids=["VGG", "U-Net"])
def test_networks_in_float32(torchvision, case):
    plain = make(torchvision, case)
    exact = step(copy.deepcopy(plain).double(), torch.float64)
    ours, torchs = (largest_errors(each, exact) for each in both(plain, torch.float32)[:2])
    assert ours[0] < 2 * torchs[0] + WINOGRAD
    assert ours[1] < 2 * torchs[1] + WINOGRAD**0.5  # see test_parity.py


# ---- functions -------------------------------------------------------------------------------------------------------


def norm(y, training=False, momentum=0.1):
    c = y.shape[1]
    mean, var, weight, bias = (torch.linspace(*ends, c, dtype=y.dtype) for ends in ((-1, 1), (1, 2), (2, -2), (0, 1)))
    return F.batch_norm(y, mean, var, weight, bias, training, momentum)


def statement(x, w):
    y = F.conv2d(x, w, padding=1)
    y.relu_()
    return F.max_pool2d(y, 2), y


def seen_before(x, w):
    y = F.conv2d(x, w, padding=1)
    z = y[:, :1]
    return torch.relu_(y), z


def written_between(x, w):
    x = x * 2
    y = F.conv2d(x, w, padding=1)
    x.add_(1)
    return F.relu(y) + x


def written_behind(x, w):
    """The second convolution reads what the sum left in the first's result."""
    y = F.conv2d(x, w, padding=1)
    y += x
    return F.conv2d(y, w, padding=1)


def view_written_behind(x, w):
    y = F.conv2d(x, w, padding=1)
    z = F.conv2d(y, w, padding=1)
    y.view(-1).mul_(2)
    return y + z + F.conv2d(y, w, padding=1)


def without_gradient(x, w):
    y = F.conv2d(x, w, padding=1)
    with torch.no_grad():
        z = F.relu(F.conv2d(x, w, padding=1))
    return F.relu(y) * z


def viewed(x, w):
    return F.relu(F.conv2d(x, w, padding=1)).view(x.shape[0], -1)


def neighbours(x, w):
    """torch's functions that read NHWC maps of ours as they are."""
    y = F.conv2d(x, w, padding=1)
    y = torch.cat([y, F.interpolate(F.avg_pool2d(y, 2), scale_factor=2)], 1)
    return F.conv2d(torch.conv2d(y, w.repeat(1, 2, 1, 1), stride=2), w, padding=1)


def twice(x, w):
    y = F.conv2d(x, w, padding=1)
    return torch.cat([F.relu(y), norm(y)])


def conv(relu=False, pool=False, save=True):
    return ("conv", relu, pool, save and (relu or pool))


POOL, NORM = ("max_pool", False, True), "batch_norm"
FUNCTIONS = {
    "conv": (lambda x, w: F.conv2d(x, w, padding=(1, 1)), [conv()]),
    "same": (lambda x, w: torch.relu(F.conv2d(x, w, None, 1, "same")), [conv(True)]),
    "1x1": (lambda x, w: F.conv2d(x, w[:, :, :1, 1:2], w[0, :, 0, 0]).relu(), [conv(True)]),
    "pool": (lambda x, w: torch.max_pool2d(F.conv2d(x, w, padding=1), 2), [conv(False, True)]),
    "in place": (lambda x, w: F.max_pool2d(F.relu(F.conv2d(x, w, padding=1), True), 2, 2), [conv(True, True)]),
    "norm": (lambda x, w: F.max_pool2d(norm(F.conv2d(x, w, padding=1)).relu_(), 2), [conv(True, True)]),
    "norm of the batch": (lambda x, w: F.relu(norm(x, True)), [(NORM, True, False, True)]),
    "ceil": (lambda x, w: F.max_pool2d(x * w[0, 0, 0, 0], 2, ceil_mode=True), [("max_pool", True, True)]),
    "ceil behind": (lambda x, w: F.max_pool2d(F.conv2d(x, w), 2, 2, 0, 1, True), [("max_pool", True, True)]),
    "statement": (statement, [conv(True), POOL]),
    "seen before": (seen_before, [conv()]),
    "written behind": (written_behind, [conv()] * 2),
    "without gradient": (without_gradient, [conv(True, False, False), conv()]),
    "viewed": (viewed, [conv(True)]),
    "neighbours": (neighbours, [conv()] * 2),
    "twice": (twice, [conv()]),
    "stride": (lambda x, w: F.conv2d(x, w, stride=2, padding=1), []),
    "groups": (lambda x, w: F.conv2d(x, w[:, :1], padding=1, groups=3), []),
    "dilation": (lambda x, w: F.conv2d(x, w, padding=2, dilation=2), []),
    "no padding": (lambda x, w: F.conv2d(x, w), []),
    "1x1 with padding": (lambda x, w: F.conv2d(x, w[:, :, :1, :1], padding=1), []),
    "one image": (lambda x, w: F.conv2d(x[0], w, padding=1), []),
    "large pool": (lambda x, w: F.max_pool2d(x, 3, 2, 1), []),
    "indices": (lambda x, w: F.max_pool2d(x, 2, return_indices=True)[0], []),
    "small linear": (lambda x, w: F.linear(x.flatten(1), x.flatten(1)), []),
    "vmap": (lambda x, w: torch.func.vmap(lambda t: F.conv2d(t, w, padding=1))(x[None])[0], []),
}  # fmt: skip


def outputs_and_gradients(f, x, w):
    x, w = (t.clone(memory_format=torch.preserve_format).requires_grad_() for t in (x, w))
    ys = f(x, w)
    ys = ys if isinstance(ys, tuple) else (ys,)
    gradients = torch.autograd.grad(sum((y * y.detach().cos()).sum() for y in ys), (x, w), allow_unused=True)
    return list(ys), [g for g in gradients if g is not None]


def operands(memory_format=torch.contiguous_format, dtype=torch.float64, size=(2, 3, 8, 10)):
    generator = torch.Generator().manual_seed(3)
    x, w = (torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in (size, (3, 3, 3, 3)))
    return x.contiguous(memory_format=memory_format), w


def check_alike(got, want):
    assert [y.stride() for y in got[0]] == [y.stride() for y in want[0]]
    for ours, theirs in zip((*got[0], *got[1]), (*want[0], *want[1]), strict=True):
        assert ours.dtype == theirs.dtype
        assert relative_error(ours, theirs) < 1e-12


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name):
    f, expected = FUNCTIONS[name]
    graphs = Graphs()
    compiled = torch.compile(f, backend=graphs, fullgraph=True)
    check_alike(outputs_and_gradients(compiled, *operands()), outputs_and_gradients(f, *operands()))
    assert sorted(graphs.ops) == sorted(expected)


@pytest.mark.parametrize(("f", "count"), [(written_between, 1), (view_written_behind, 3)])
def test_writes_stay_in_their_places(f, count):
    """What is written into is needed for the backward, so without gradients."""
    graphs, (x, w) = Graphs(), operands()
    assert relative_error(torch.compile(f, backend=graphs, fullgraph=True)(x, w), f(x, w)) < 1e-12
    assert graphs.ops == [conv()] * count


@pytest.mark.parametrize("name", ["norm", "statement", "written behind", "neighbours"])
def test_channels_last(name):
    f, x = FUNCTIONS[name][0], operands(torch.channels_last)
    check_alike(outputs_and_gradients(torch.compile(f, backend=Graphs()), *x), outputs_and_gradients(f, *x))


@pytest.mark.parametrize("name", ["norm", "norm of the batch", "statement", "neighbours"])
def test_dynamic_shapes_compile_twice_at_most(name):
    f, graphs = FUNCTIONS[name][0], Graphs()
    compiled = torch.compile(f, backend=graphs)
    for size in ((2, 3, 8, 10), (3, 3, 14, 12), (5, 3, 6, 22)):
        x = operands(size=size)
        check_alike(outputs_and_gradients(compiled, *x), outputs_and_gradients(f, *x))
    assert graphs.count <= 2


def test_bfloat16(no_tiles):
    """Where no convolution has 16 bits, sums are float32, and each op rounds once."""
    f, graphs = FUNCTIONS["norm"][0], Graphs()
    x, w = operands(dtype=torch.bfloat16)
    y = torch.compile(f, backend=graphs)(x, w)
    assert y.dtype == torch.bfloat16
    assert relative_error(y, f(x.double(), w.double())) < 0.02
    assert graphs.ops == [conv(True, True, False)]


@pytest.mark.parametrize("within", [False, True])
def test_autocast_without_tiles_is_inductors(no_tiles, within):
    def f(x, w):
        with torch.autocast("cpu", enabled=within or torch.is_autocast_enabled("cpu")):
            return F.relu(F.conv2d(x, w, padding=1))

    graphs = Graphs()
    x, w = operands(dtype=torch.float32)
    with torch.autocast("cpu", enabled=not within):
        assert torch.compile(f, backend=graphs)(x, w).dtype == torch.bfloat16
    assert graphs.ops == []


def test_autocast_on_tiles(tiles):
    f, graphs = FUNCTIONS["norm"][0], Graphs()
    x, w = operands(dtype=torch.float32)
    with torch.autocast("cpu"):
        y = torch.compile(f, backend=graphs)(x, w)
    assert y.dtype == torch.bfloat16
    assert relative_error(y, f(x.double(), w.double())) < 0.02
    assert graphs.ops == [conv(True, True, False)]


@pytest.mark.parametrize(("rows", "ours"), [(2, ["linear"]), (17, [])])
def test_linear_layers_as_accelerate_takes_them(rows, ours):
    model, graphs = nn.Linear(1024, 2048), Graphs()
    x = torch.randn(rows, 1024)
    assert relative_error(torch.compile(model, backend=graphs)(x), model(x)) < 1e-6
    assert graphs.names() == ours


# ---- modules ---------------------------------------------------------------------------------------------------------


def small(training=False) -> nn.Sequential:
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(True), nn.MaxPool2d(2), nn.Conv2d(8, 4, 1)]
    return nn.Sequential(*layers).double().train(training)


def test_changed_weights_are_seen():
    model, (x, _) = small(), operands()
    compiled = torch.compile(model, backend=(graphs := Graphs()))
    optimiser = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(2):
        assert relative_error(compiled(x), model(x)) < 1e-12
        compiled(x).sum().backward()
        optimiser.step()
    model[0].weight.data.mul_(3)
    model[1].running_var.data.fill_(2)
    assert relative_error(compiled(x), model(x)) < 1e-12
    assert graphs.count == 1


def test_both_modes_of_a_model():
    model, (x, _) = small(), operands()
    twin = copy.deepcopy(model)
    compiled = torch.compile(model, backend=Graphs())
    for training in (True, False, True):
        model.train(training)
        assert relative_error(compiled(x), twin.train(training)(x)) < 1e-12
    for name, tensor in twin.state_dict().items():
        assert relative_error(model.state_dict()[name], tensor) < 1e-12, name


class Broken(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = small(), nn.Conv2d(4, 3, 3, padding=1).double()

    def forward(self, x):
        y = self.first(x)
        torch._dynamo.graph_break()
        return F.relu(self.second(y)), y


def test_graph_breaks():
    model, graphs, (x, _) = Broken(), Graphs(), operands()
    for ours, theirs in zip(torch.compile(model, backend=graphs)(x), model(x), strict=True):
        assert relative_error(ours, theirs) < 1e-12
        assert ours.stride() == theirs.stride()
    assert graphs.ops == [conv(True, True), conv(), conv(True)]


@pytest.mark.parametrize("training", [False, True])
def test_what_is_computed_again_for_the_backward(training):
    model, graphs, (x, _) = small(training), Graphs(), operands()
    twin = copy.deepcopy(model)
    compiled = torch.compile(lambda t: checkpoint(model, t, use_reentrant=False), backend=graphs)
    compiled(x.requires_grad_()).pow(2).sum().backward()
    twin(x).pow(2).sum().backward()
    ours, theirs = (torch.cat([each.grad.flatten() for each in net.parameters()]) for net in (model, twin))
    assert relative_error(ours, theirs) < 1e-12
    assert len(graphs.ops) == 2 + training


def test_accelerated_models_stay_as_they_are():
    model, (x, _) = small(), operands()
    graphs = CompileCounterWithBackend("aot_eager_decomp_partition")
    compiled = torch.compile(vggfast.accelerate(model), backend=graphs, fullgraph=True)
    assert relative_error(compiled(x), model(x)) < 1e-12
    assert relative_error(torch.compile(vggfast.accelerate(model), backend=Graphs())(x), model(x)) < 1e-12
