"""The benchmark of what 8 bits cost, on networks too small to say anything."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

import vggfast
from tests.engine.test_quantise import network
from vggfast.engine import int8
from vggfast.weights import save_model


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return importlib.import_module("bench_int8")


def test_plain_torch_gives_the_same(bench):
    model, x = network("D"), torch.randn(2, 3, 40, 48)
    torch.testing.assert_close(bench.plain(model)(x), model(x), rtol=1e-4, atol=1e-4)


def test_rules_are_put_in_place(bench):
    counts = torch.zeros(int8.BINS, dtype=torch.float64)
    counts[[0, 1]] = torch.tensor([9999.0, 1.0]).double()
    kept = int8.scale_of, int8.quantised, int8.MOST_ERROR
    found = {}
    for name in bench.RULES:
        with bench.rule(name):
            found[name] = int8.scale_of(counts, 255.0), int8.quantised, int8.MOST_ERROR
    assert found["largest value"][0] == 1
    assert found["99.99 % of values"][0] == pytest.approx(1 / int8.BINS)
    assert found["99.999 % of values"][0] == pytest.approx(2 / int8.BINS)
    assert found["bias as it was"][1] is not kept[1]
    assert found["last FC layer in int8"][2] > 1 > 0 > found["last FC layer in float32"][2]
    assert (int8.scale_of, int8.quantised, int8.MOST_ERROR) == kept


def test_trained_networks(bench, tmp_path, monkeypatch):
    model = vggfast.VGG("A", width=0.05, hidden=16, pool_size=1, num_classes=10).eval()
    model.preprocessing = vggfast.Preprocessing()
    save_model(model, tmp_path / "a.safetensors", {"classes": list("0123456789")})
    given = ["trained", "--model", tmp_path / "a.safetensors", "--data", "digits", "--scale", 32, "--count", 4]
    monkeypatch.setattr(sys, "argv", ["bench_int8.py", *map(str, given), "--out", str(tmp_path / "found.json")])
    bench.main()
    found = json.loads((tmp_path / "found.json").read_text())["trained digits"]["found"]
    assert found["images"] == 359
    assert found["float32"] > 50
    assert 0 < found["least mean squared error"]["output"] < 0.2
