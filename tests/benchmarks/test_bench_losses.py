"""The benchmark of losses: its peers compute the same, and what graphs keep is counted."""

import importlib
from pathlib import Path

import pytest
import torch

from tests.losses.conftest import network
from vggfast.losses import Perceptual


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return importlib.import_module("bench_losses")


def test_perceptual_on_torchs_modules(bench):
    layers = ("relu1_2", "relu3_3")
    model, x, y = network(), torch.randn(1, 3, 32, 32), torch.randn(1, 3, 32, 32)
    ours = Perceptual(dict.fromkeys(layers, 1.0), model, normalize=False).target(y)
    theirs = bench.TorchPerceptual(model, layers).target(y)
    rows = bench.measure("small", ours, theirs, x, 2)
    assert [row["what"] for row in rows] == ["forward", "and backward"]
    bytes_of = rows[1]["kept_bytes"]
    assert bytes_of["vggfast"] < bytes_of["torch"] / 2
    assert "small" in bench.shown(rows[1])
    with pytest.raises(SystemExit, match="small differs from torch's by"):
        bench.measure("small", ours, bench.TorchPerceptual(network(), layers).target(y), x, 2)


def test_kept_counts_what_a_graph_holds(bench):
    class Square(torch.nn.Module):
        def forward(self, x):
            return (x * 2).exp().sum()

    assert bench.kept(Square(), torch.zeros(10, 100)) == 4000
