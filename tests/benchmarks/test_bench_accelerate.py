"""The benchmark of accelerated networks, on networks too small to say anything."""

import json
import sys

import bench_accelerate as bench
import pytest
import torch

pytestmark = pytest.mark.usefixtures("one_thread")
BY = ["eager, contiguous", "eager, channels_last", "vggfast"]


def test_rows(monkeypatch, tmp_path, capsys):
    out = tmp_path / "out.json"
    arguments = ["--quick", "--rounds", "2", "--threads", "1", "--works", "EDSR", "U-Net", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["bench_accelerate.py", *arguments, "--candidates", *BY])
    bench.main()
    rows = json.loads(out.read_text())["rows"]
    titles = ["U-Net", "U-Net, training step", "EDSR-baseline body"]
    assert [(row["work"], row["by"]) for row in rows] == [(title, by) for title in titles for by in BY]
    assert all(len(row["seconds"]) == 2 for row in rows)
    assert capsys.readouterr().out.count("x the best of torch's") == 3


@pytest.mark.parametrize("training", [False, True])
def test_another_result_ends_it(monkeypatch, training):
    def wrong(model, **_):
        with torch.no_grad():
            list(model.parameters())[-1].add_(1)
        return model

    monkeypatch.setattr(bench.vggfast, "accelerate", wrong)
    work = next(each for each in bench.works(True) if each.trains == training and each.title.startswith("U-Net"))
    with pytest.raises(SystemExit, match=r"U-Net.*: vggfast differs from eager, contiguous by \["):
        list(bench.race(work, [BY[0], "vggfast"], 2, True))
