"""The benchmark of features, on a network too small to time."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import vggfast
from vggfast.features import Block, Extractor
from vggfast.weights import save_model


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return importlib.import_module("bench_features")


@pytest.fixture
def model():
    network = vggfast.VGG("D", head="none", width=0.05).eval()
    network.preprocessing = vggfast.Preprocessing()
    return network


def test_plain_torch_gives_the_same(bench, model):
    x = torch.randn(2, 3, 40, 48)
    ours = Extractor(model, bench.TAPS, [32])
    for memory_format in bench.FORMATS:
        theirs = bench.TorchExtractor(memory_format, model, bench.TAPS, [32])
        assert theirs.blocks == ours.blocks
        for tap, value in theirs.maps(x).items():
            torch.testing.assert_close(value, ours.maps(x)[tap], rtol=1e-4, atol=1e-4)


def test_what_differs_is_not_timed(bench):
    blocks = (Block("pool4", "mean", 32, 2), Block("pool5", "mean", 32, 1))
    values = np.ones((4, 3), np.float32)
    assert bench.distances(values, values, blocks) == {"pool4.mean@32": 0, "pool5.mean@32": 0}
    other = values.copy()
    other[0, 2] = 1.1
    with pytest.raises(SystemExit, match=r"pool5\.mean@32 differs from torch's by 0\.0"):
        bench.distances(other, values, blocks)


def test_all_steps(bench, model, photos, tmp_path, monkeypatch):
    save_model(model, tmp_path / "d.safetensors")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["bench_features.py", *map(str, arguments)])
        bench.main()

    given = ["--model", tmp_path / "d.safetensors", "--data", f"imagefolder:{photos}", "--scale", 32]
    run("sample", *given, "--count", 2, "--rounds", 2, "--out", tmp_path / "sample.json")
    for by in ("vggfast", "channels_last"):
        run("whole", *given, "--by", by, "--out", tmp_path / f"{by}.npz")
    monkeypatch.setattr(bench, "caltech_protocol", lambda *given, c: protocol(*given, train=5, c=c))
    protocol = vggfast.features.caltech_protocol
    out = tmp_path / "found.json"
    run("svm", "--ours", tmp_path / "vggfast.npz", "--torch", tmp_path / "channels_last.npz",
        "--sample", tmp_path / "sample.json", "--c", 1, "--out", out)  # fmt: skip
    found = json.loads(out.read_text())
    assert [row["by"] for row in found["runs"]] == ["vggfast", "channels_last"]
    assert {row["by"] for row in found["svm"].values()} == {"vggfast", "torch"}
    assert found["svm"]["vggfast: pool5.mean@32, stack"]["train_images"] == 10
    assert max(found["distance"].values()) < bench.TOLERANCE
    assert len(found["sample"]["rows"]) == 3
