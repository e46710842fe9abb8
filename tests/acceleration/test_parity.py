"""An accelerated network computes what it did: outputs, gradients of input and parameters, running statistics."""

import copy
import importlib
import json

import pytest
import torch

import vggfast
from tests.acceleration import __main__ as table
from tests.acceleration.networks import LARGE, NETWORKS
from tests.acceleration.parity import MODES, largest_errors, make, step

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL_CASES = [pytest.param((name, mode), id=f"{name}-{mode}") for name in NETWORKS for mode in MODES]
LARGE_CASES = [
    pytest.param((name, mode), id=f"{name}-{mode}", marks=pytest.mark.slow)
    for name in LARGE
    for mode in MODES
    if (name, mode) != ("SSD300", "train")  # nothing in it knows its mode
]
WINOGRAD = 1e-5  # relative error of a layer that is not direct


def float32_errors(torchvision, case) -> tuple[tuple[float, float], tuple[float, float]]:
    """Ours and torch's own, against float64."""
    plain = make(torchvision, case)
    want = step(copy.deepcopy(plain).double(), torch.float64)
    fast = vggfast.accelerate(copy.deepcopy(plain))
    return largest_errors(step(fast, torch.float32), want), largest_errors(step(plain, torch.float32), want)


@pytest.mark.parametrize("case", [*SMALL_CASES, *LARGE_CASES])
def test_float64(torchvision, case):
    plain = make(torchvision, case).double()
    fast = vggfast.accelerate(copy.deepcopy(plain))
    assert max(largest_errors(step(fast, torch.float64), step(plain, torch.float64))) < 1e-10


@pytest.mark.parametrize("case", SMALL_CASES)
def test_float32_of_direct_sums(torchvision, exact, case):
    ours, torchs = float32_errors(torchvision, case)
    assert ours[0] < 2 * torchs[0] + 1e-6
    assert ours[1] < 2 * torchs[1] + 1e-6


@pytest.mark.parametrize("case", [*SMALL_CASES, *LARGE_CASES])
def test_float32(torchvision, case):
    """A value that rounding moves across the corner of a ReLU, or behind another in a pool, changes its gradient as a
    whole: where a share of e of all are, gradients have an error of the root of e."""
    ours, torchs = float32_errors(torchvision, case)
    assert ours[0] < 2 * torchs[0] + WINOGRAD
    assert ours[1] < 2 * torchs[1] + WINOGRAD**0.5


# ---- the table -----------------------------------------------------------------------------------------------------


def test_table(torchvision, tmp_path, capsys):
    out = tmp_path / "parity.json"
    table.main(["DnCNN", "U-Net", "--by", "accelerated", "--out", str(out)])
    rows = json.loads(out.read_text())["rows"]
    assert [(row["network"], row["mode"]) for row in rows] == [(n, m) for n in ("DnCNN", "U-Net") for m in MODES]
    for row in rows:
        assert max(row["float64"]) < 1e-10 < min(row["torch_float32"]) < 1e-3
        assert row["float32"][0] < 2 * row["torch_float32"][0] + WINOGRAD
    assert capsys.readouterr().out.count("accelerated") == 4


def test_table_says_what_cannot_be_built(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(table, "import_torchvision", lambda: importlib.import_module("no_such_package"))
    table.main(["FCN", "--by", "accelerated", "--out", str(tmp_path / "parity.json")])
    said = "ModuleNotFoundError: No module named 'no_such_package'"
    assert json.loads((tmp_path / "parity.json").read_text())["rows"] == [{"network": "FCN", "refused": said}]
    assert "cannot be built" in capsys.readouterr().out


def test_table_of_an_unknown_network(capsys):
    with pytest.raises(SystemExit):
        table.main(["AlexNet", "--out", "parity.json"])
    assert "NETWORK must be one of vgg, " in capsys.readouterr().err


def test_table_has_the_compiled_where_there_is_our_back_end(torchvision, monkeypatch, tmp_path):
    asked, out = [], tmp_path / "parity.json"
    monkeypatch.setattr(torch._dynamo, "list_backends", lambda: ["vggfast"])
    monkeypatch.setattr(torch, "compile", lambda model, backend: asked.append(backend) or model)
    table.main(["DnCNN", "--out", str(out)])
    rows = json.loads(out.read_text())["rows"]
    assert [(row["mode"], row["by"]) for row in rows] == [(m, by) for m in MODES for by in ("accelerated", "compiled")]
    assert asked == ["vggfast"] * 4
    assert all(row["float64"] == [0, 0] for row in rows if row["by"] == "compiled")  # by the stand-in
    monkeypatch.setattr(torch._dynamo, "list_backends", lambda: ["inductor"])
    assert list(table.ways()) == ["accelerated"]
