"""What all tests share: back ends, algorithms, threads, torchvision, data sets, and the rule for rounding errors."""

import contextlib
import copy
import functools
import importlib.util
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vggfast import _native, engine
from vggfast.engine import _cuda
from vggfast.ops import _backends

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
from simulated import Simulated, SimulatedNetwork, simulator

# ---- back ends -----------------------------------------------------------------------------------------------------

# The CPU's instruction sets; the CUDA kernels on the simulated GPU (CPU tensors; `make sim` builds it) and on a real
# one (`pytest --cuda`); and torch's ops in their place, as GPUs get them that ours do not run on.
BACKENDS = ("cpu-portable", "cpu-avx2", "cpu-avx512", "sim", "torch", "cuda")


class Poisoned(Simulated):
    """Room for results holds NaN in every format."""

    def empty(self, like, shape, dtype, memory_format=torch.contiguous_format):
        t = super().empty(like, shape, dtype, memory_format)
        t.untyped_storage().fill_(0xFF)
        return t


@dataclass(frozen=True)
class Backend:
    name: str
    device: str


def pytest_addoption(parser):
    parser.addoption("--cuda", action="store_true", help="fail, rather than skip, where there is no CUDA GPU")
    parser.addoption("--kills", type=int, default=2, help="times that the run of test_distributed.py is killed")
    parser.addoption("--sim", action="store_true", help="fail, rather than skip, where the simulator is not built")


def pytest_configure(config):
    config.addinivalue_line("markers", "backends(*kinds): what a test of the `backend` fixture is for; else all")


def pytest_generate_tests(metafunc):
    if "backend" not in metafunc.fixturenames:
        return
    marker = metafunc.definition.get_closest_marker("backends")
    kinds = marker.args if marker else {name.partition("-")[0] for name in BACKENDS}
    chosen = [
        pytest.param(name, marks=pytest.mark.cuda if name == "cuda" else ())
        for name in BACKENDS
        if name.partition("-")[0] in kinds
    ]
    metafunc.parametrize("backend", chosen, indirect=True)


@contextlib.contextmanager
def conv_precision(name: str):
    """torch's own switch for float32 convolutions on a GPU: "ieee" or "tf32"."""
    switches = (torch.backends.cudnn.conv, torch.backends.cudnn.rnn)  # torch wants the two alike
    before = [switch.fp32_precision for switch in switches]
    for switch in switches:
        switch.fp32_precision = name
    try:
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.fp32_precision = value


def _missing(request, option: str, what: str):
    (pytest.fail if request.config.getoption(option) else pytest.skip)(what)


@pytest.fixture
def sim(request):
    """The simulator's module."""
    if simulator() is None:
        _missing(request, "--sim", "the simulator is not built: make sim")
    return simulator()


@pytest.fixture
def backend(request, monkeypatch):
    """A back end, in use until the test ends; skips by name where this machine or build has none."""
    kind, _, isa = request.param.partition("-")
    if kind == "cpu":
        if isa not in _native.cpu_isas():
            pytest.skip(f"this machine has no {isa}")
        before = _native.cpu_isa()
        _native.set_cpu_isa(isa)
        yield Backend(request.param, "cpu")
        _native.set_cpu_isa(before)
        return
    if kind == "cuda":
        if not torch.cuda.is_available():
            _missing(request, "--cuda", "no CUDA GPU")
        if not hasattr(_native.load(), "cuda"):
            _missing(request, "--cuda", "this build has no CUDA kernels")
        torch.set_default_device("cuda")
        # What torch is compared by are plain sums: cuDNN may take Winograd's, or Fourier's.
        monkeypatch.setattr(torch.backends.cudnn, "enabled", False)
        with conv_precision("ieee"):
            yield Backend(kind, "cuda")
        torch.set_default_device(None)
        return
    ours = Poisoned(request.getfixturevalue("sim")) if kind == "sim" else _backends.TorchBackend()
    monkeypatch.setitem(_backends.OF_DEVICE, "cpu", lambda index: ours)
    with conv_precision("ieee"):
        yield Backend(kind, "cpu")


@pytest.fixture
def build(backend, monkeypatch):
    """Engine as it is for models on CUDA, on this back end."""
    if backend.name != "cuda":
        monkeypatch.setitem(engine.OF_DEVICE, "cpu", SimulatedNetwork)
        monkeypatch.setitem(engine._PARAMETERS, "cpu", _cuda.DTYPES)
    return engine.Engine


ALGORITHMS = ("auto", "direct", "winograd2", "winograd4", "winograd6", "tf32")


@pytest.fixture(params=ALGORITHMS)
def algorithm(request):
    """How float32 convolutions are computed until the test ends; "tf32" on a GPU, where all others are "direct"."""
    kind = kind_of(request.node)
    if kind != "cpu":
        request.getfixturevalue("backend")
        with conv_precision("tf32" if request.param == "tf32" else "ieee"):
            yield request.param if kind == "torch" or request.param == "tf32" else "direct"
        return
    before = _native.conv_algorithm()
    _native.set_conv_algorithm(request.param)
    yield request.param
    _native.set_conv_algorithm(before)


def kind_of(item) -> str:
    """cpu, sim, torch or cuda: the kind of a test's back end."""
    return item.callspec.params.get("backend", "cpu").partition("-")[0]


def has_a_point(item) -> bool:
    """Whether a test's dtype and algorithm mean something of their own on its back end."""
    if not hasattr(item, "callspec"):
        return True
    kind, params = kind_of(item), item.callspec.params
    if params.get("dtype") in _backends.NARROW and kind not in ("sim", "cuda"):
        return "backend" not in params  # test_ops_narrow says what the CPU makes of them
    if params.get("memory_format") == "contiguous_format" and kind == "sim":
        return False  # what is done about it is the same on every device
    if params.get("algorithm") == "tf32":
        return kind in ("sim", "cuda")
    return kind == "cpu" or params.get("algorithm", "auto") == "auto"


def pytest_collection_modifyitems(config, items):
    pointless = [item for item in items if not has_a_point(item)]
    if pointless:
        config.hook.pytest_deselected(items=pointless)
        items[:] = [item for item in items if has_a_point(item)]


@pytest.fixture
def exact():
    """Direct convolutions until the test ends: their sums of whole numbers are exact, and NaN stays in its pixels."""
    before = _native.conv_algorithm()
    _native.set_exact(True)
    yield
    _native.set_conv_algorithm(before)


@pytest.fixture
def set_threads():
    """torch.set_num_threads, undone when the test ends."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def one_thread(set_threads):
    """For tests of tensors too small for more, where threads that wait for each other would take most of the time."""
    set_threads(1)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


# ---- what may be absent -------------------------------------------------------------------------------------------


@functools.cache
def _torchvision_ops() -> torch.library.Library:
    """The two ops that torchvision's Python code wants to find, for a torchvision whose compiled part does not load."""
    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in ("nms(Tensor a, Tensor b, float c) -> Tensor", "qnms(Tensor a, Tensor b, float c) -> Tensor"):
        if not hasattr(torch.ops.torchvision, schema.split("(")[0]):
            library.define(schema)
    return library


@pytest.fixture(scope="session")
def torchvision():
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed")
    _torchvision_ops()
    return importlib.import_module("torchvision")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    path = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not path.is_dir():
        pytest.skip(f"no data sets at {path}")
    return path


@pytest.fixture(scope="session")
def tiny_imagenet(shared_data, tmp_path_factory) -> Path:
    """Tiny-ImageNet, unpacked where a test may write."""
    folder = tmp_path_factory.mktemp("tiny-imagenet")
    with tarfile.open(shared_data / "tiny-imagenet-200.tar") as archive:
        archive.extractall(folder, filter="data")
    return folder / "tiny-imagenet-200"


@pytest.fixture
def photos(tmp_path) -> Path:
    """A folder with two classes of ten pictures each: noisy red, noisy blue."""
    generator = np.random.default_rng(0)
    for name, channel in (("red", 0), ("blue", 2)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(10):
            pixels = generator.integers(0, 100, (40, 48, 3), np.uint8)
            pixels[..., channel] += 150
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{i}.png")
    return tmp_path / "photos"


@pytest.fixture
def small_disk(tmp_path):
    """An empty file system of 1 MiB; skips by name where none may be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("this user may not mount a tmpfs")
    yield folder
    subprocess.run(["umount", folder], check=True)


# ---- comparing ----------------------------------------------------------------------------------------------------


def relative_error(got, want) -> float:
    """Relative L2 error; absolute where all of `want` is 0."""
    got, want = (np.asarray(t.detach().cpu().double() if torch.is_tensor(t) else t, np.longdouble) for t in (got, want))
    assert got.shape == want.shape
    scale = np.sqrt((want * want).sum())
    return float(np.sqrt(((got - want) ** 2).sum()) / (scale or 1))


def assert_as_accurate_as_torch(ours, torchs, exact):
    """The project's rule: an error of at most twice torch's own, plus one rounding."""
    assert ours.dtype == torchs.dtype
    assert relative_error(ours, exact) <= 2 * relative_error(torchs, exact) + torch.finfo(ours.dtype).eps


def assert_as_accurate_as_winograd(ours, exact):
    """The rule for 3x3 convolutions that are not direct."""
    assert relative_error(ours, exact) < 1e-5


def assert_rounded_once(ours, exact):
    """The rule for 16 bits: sums in float32, and one rounding of the result."""
    assert relative_error(ours, exact) <= torch.finfo(ours.dtype).eps / 2 + 1e-6


def assert_as_accurate_as_tf32(ours, exact):
    """The rule for products of two factors, each rounded to 11 bits."""
    assert relative_error(ours, exact) < 2.0**-8  # twice 2^-11, and what a few terms of unlike sign make of it


def assert_same_bits(a, b):
    """Equal values, signs of zero and places of NaN."""
    assert a.dtype == b.dtype
    assert a.shape == b.shape
    assert torch.equal(torch.nan_to_num(a), torch.nan_to_num(b))
    assert torch.equal(a.isnan(), b.isnan())
    assert torch.equal(a.signbit() & ~a.isnan(), b.signbit() & ~b.isnan())


def results(op, inputs, **options) -> list[torch.Tensor]:
    """An op's output, and the gradients with respect to every input for a fixed gradient of small numbers."""
    inputs = [None if t is None else t.detach().requires_grad_() for t in inputs]
    y = op(*inputs, **options)
    steps = torch.arange(y.numel(), device=y.device)
    gy = (steps * 7 % 11 - 5).reshape(y.shape).to(y.dtype) / 4
    return [y.detach(), *torch.autograd.grad(y, [t for t in inputs if t is not None], gy)]


def integers(*shape, dtype=torch.float64) -> torch.Tensor:
    """Small whole numbers: their sums of products are exact in any order, and ties are many."""
    return torch.randint(-3, 4, shape).to(dtype)


def in_format(t: torch.Tensor, name: str) -> torch.Tensor:
    return t.contiguous(memory_format=getattr(torch, name))


def plain_torch(module: torch.nn.Module) -> torch.nn.Module:
    """The same network, hand-made of torch's own layers; its parameters are copies."""
    nn = torch.nn
    if isinstance(module, nn.Conv2d):
        twin = nn.Conv2d(module.in_channels, module.out_channels, module.kernel_size, module.stride, module.padding)
        twin.bias = None
    elif isinstance(module, nn.MaxPool2d):
        twin = nn.MaxPool2d(module.kernel_size, module.stride, ceil_mode=module.ceil_mode)
    elif isinstance(module, nn.LocalResponseNorm):
        twin = nn.LocalResponseNorm(module.size, module.alpha, module.beta, module.k)
    elif isinstance(module, nn.Sequential):
        return nn.Sequential(*(plain_torch(child) for child in module))
    else:
        return copy.deepcopy(module)
    for name, parameter in module.named_parameters():
        setattr(twin, name, torch.nn.Parameter(parameter.detach().clone(), parameter.requires_grad))
    return twin
