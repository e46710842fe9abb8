"""What all tests share: back ends, algorithms, threads, torchvision, data sets."""

import importlib.util
import os
import random
import subprocess
import tarfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.backends import ALGORITHMS, BACKENDS, ON_TILES, Poisoned, SimulatedNetwork, simulator
from tests.support.comparisons import conv_precision
from tests.support.peers import import_torchvision
from vggfast import _native, engine
from vggfast.engine.cuda import DTYPES
from vggfast.ops import _backends

SAMPLE, ONE_IN = "VGGFAST_TEST_SAMPLE", 4  # csrc/tests/check.h has the same
SLOW_ONE_IN = 3  # of tests on the simulator, and of those marked slow
SWEEPING, MANY = ("engine", "graph", "ops", "sim"), 40  # rooms whose tests of so many cases are sampled

# ---- back ends -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Backend:
    name: str
    device: str


def pytest_addoption(parser):
    parser.addoption("--cuda", action="store_true", help="fail, rather than skip, where there is no CUDA GPU")
    parser.addoption("--kills", type=int, default=2, help="times that a distributed run is killed")
    parser.addoption("--sim", action="store_true", help="fail, rather than skip, where the simulator is not built")


def pytest_report_header(config):
    if word := os.environ.get(SAMPLE):
        rooms = ", ".join(SWEEPING)
        return (f"of cases of tests in {rooms} with over {MANY} one in {ONE_IN} runs, of the simulator's and slow "
                f"tests one in {SLOW_ONE_IN}, drawn by {SAMPLE}={word}")  # fmt: skip
    return None


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
        for _ in _with_isa(isa):
            yield Backend(request.param, "cpu")
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
        monkeypatch.setitem(engine._PARAMETERS, "cpu", DTYPES)
    return engine.Engine


@pytest.fixture(params=ALGORITHMS)
def algorithm(request):
    """How float32 convolutions are computed until the test ends; "tf32" on a GPU, where all others are "direct"."""
    kind = kind_of(request.node)
    if kind != "cpu":
        request.getfixturevalue("backend")
        with conv_precision("tf32" if request.param == "tf32" else "ieee"):
            yield request.param if kind == "torch" or request.param == "tf32" else "direct"
        return
    if "backend" in request.fixturenames:
        request.getfixturevalue("backend")  # first: the instruction set says which algorithms there are
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
        on_tiles = params["dtype"] == torch.bfloat16 and "-amx" in params.get("backend", "") and "algorithm" in params
        return on_tiles or "backend" not in params  # test_narrow.py says what the CPU makes of all others
    if params.get("memory_format") == "contiguous_format" and kind == "sim":
        return False  # what is done about it is the same on every device
    if params.get("algorithm") == "tf32":
        return kind in ("sim", "cuda")
    if params.get("algorithm") in ON_TILES:
        return "-amx" in params.get("backend", "")
    return kind == "cpu" or params.get("algorithm", "auto") == "auto"


def sampled(items: list, word: str) -> list:
    """The items without those cases of sweeps, and tests on the simulator or slow, that this word does not draw."""
    cases = Counter(item.nodeid.partition("[")[0] for item in items)

    def is_slow(item) -> bool:
        simulated = item.path.parent.name == "sim" or (hasattr(item, "callspec") and kind_of(item) == "sim")
        return simulated or item.get_closest_marker("slow") is not None

    def is_kept(item) -> bool:
        swept = item.path.parent.name in SWEEPING and cases[item.nodeid.partition("[")[0]] > MANY
        one_in = ONE_IN if swept else SLOW_ONE_IN if is_slow(item) else 1
        return random.Random(f"{word} {item.nodeid}").randrange(one_in) == 0

    return [item for item in items if is_kept(item)]


def pytest_collection_modifyitems(config, items):
    chosen = [item for item in items if has_a_point(item)]
    if word := os.environ.get(SAMPLE):
        chosen = sampled(chosen, word)
    if len(chosen) < len(items):
        kept = set(chosen)
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = chosen


def _with_isa(name: str):
    before = _native.cpu_isa()
    _native.set_cpu_isa(name)
    yield name
    _native.set_cpu_isa(before)


@pytest.fixture(params=["amx", "amx-emulated"])
def tiles(request):
    """An instruction set with tile registers, until the test ends; skips by name where this machine has none."""
    if request.param not in _native.cpu_isas():
        pytest.skip(f"this machine has no {request.param}")
    yield from _with_isa(request.param)


@pytest.fixture
def no_tiles():
    """The best instruction set without tile registers, until the test ends."""
    yield from _with_isa([isa for isa in _native.cpu_isas() if not isa.startswith("amx")][-1])


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


@pytest.fixture(scope="session")
def torchvision():
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed")
    return import_torchvision()


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
def many(tmp_path) -> str:
    """A data set of two classes, 25 pictures each, of differing sizes."""
    generator = np.random.default_rng(0)
    for name in ("blue", "red"):
        (tmp_path / "many" / name).mkdir(parents=True)
        for i in range(25):
            height, width = generator.integers(12, 40, 2)
            pixels = generator.integers(0, 256, (height, width, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "many" / name / f"{i:02d}.png")
    return f"imagefolder:{tmp_path / 'many'}"


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
