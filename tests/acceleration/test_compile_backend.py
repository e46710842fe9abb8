"""The back end of torch.compile as a user meets it: inductor's loops, options, errors and the entry point."""

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import vggfast
from tests.acceleration.parity import largest_errors, step
from tests.acceleration.test_compile import operands, small
from vggfast.acceleration.compile import backend

pytestmark = pytest.mark.usefixtures("one_thread")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _forget():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.parametrize("way", ["compiled", "accelerated"])
def test_inductor(way, tmp_path, monkeypatch):
    """The real back end; and torch's own, for an accelerated model."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    model = small()
    model.image = (2, 3, 8, 10)
    twin = copy.deepcopy(model)
    compiled = torch.compile(twin, backend=backend) if way == "compiled" else torch.compile(vggfast.accelerate(twin))
    got, want = step(twin, torch.float64, compiled), step(model, torch.float64)
    assert max(largest_errors(got, want)) < 1e-10
    assert got[0]["y"].stride() == want[0]["y"].stride()


def test_options_are_inductors():
    with pytest.raises(RuntimeError, match="Unexpected optimization option nonsense"):
        torch.compile(small(), backend=backend, options={"nonsense": 1})(operands()[0])


def test_an_old_torch_is_named(monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.10.1")
    with pytest.raises(RuntimeError, match=r'torch must be at least 2.11 for backend="vggfast", got 2.10.1'):
        backend(torch.fx.symbolic_trace(small()), [])


def test_torch_finds_the_entry_point(tmp_path):
    """As setuptools writes it for whoever installs the package."""
    command = [sys.executable, "setup.py", "--quiet", "dist_info", "--output-dir", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    script = (
        "import sys, torch, torch._dynamo\n"
        "assert 'vggfast' in torch._dynamo.list_backends() and 'vggfast' not in sys.modules\n"
        "print(torch._dynamo.lookup_backend('vggfast').__module__)"
    )
    run = [sys.executable, "-c", f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]\n{script}"]
    found = subprocess.run(run, check=True, capture_output=True, text=True)
    assert found.stdout.split() == ["vggfast.acceleration.compile"]
