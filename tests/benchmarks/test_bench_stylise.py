"""The benchmark of style transfer: its peer has the same loss, and a row for each optimiser is written."""

import json

import bench_stylise as bench
import pytest
import torch

from tests.losses.conftest import network

pytestmark = pytest.mark.usefixtures("set_threads")


def test_rows(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("GLIBC_TUNABLES", "")  # which is chosen for a process to come
    out = tmp_path / "out.json"
    bench.main(f"--size 32 --width 0.1 --steps 2 --rounds 2 --threads 1 --out {out}".split())
    rows = json.loads(out.read_text())["rows"]
    assert [row["optimiser"] for row in rows] == ["lbfgs", "adam"]
    assert all(len(each) == 2 for row in rows for each in row["seconds"].values())
    assert "2 steps, 32 x 32, 1 threads" in capsys.readouterr().out


def test_the_peer_has_the_same_gradient():
    content, ours, theirs = (each.double() for each in bench.losses(32, network()))
    theirs.content, theirs.style = ({k: v.double() for k, v in kept.items()} for kept in (theirs.content, theirs.style))
    x = content + 0.1 * torch.randn_like(content)
    for got, want in zip(bench.gradient(ours, x), bench.gradient(theirs, x), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-8)


def test_another_loss_ends_it(monkeypatch):
    monkeypatch.setattr(bench, "CONTENT_LAYERS", {"relu4_2": 2.0})
    with pytest.raises(SystemExit, match=r"adam differs from torch's by .* in value and .* in gradient"):
        bench.measure("adam", 32, network(), 1, 2)
