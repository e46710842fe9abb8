"""bench_data.py: that it compares before it times, and what it writes."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import bench_data


@pytest.fixture
def large(tmp_path) -> Path:
    """Photos, as far as the benchmark can tell: 70 of two classes, a few of them too small."""
    generator = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / "large" / name).mkdir(parents=True)
        for i in range(39):
            side = 256 if i < 36 else 100
            pixels = generator.integers(0, 256, (side, side + i, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "large" / name / f"{i}.bmp")
    return tmp_path / "large"


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["bench_data.py", *map(str, arguments)])
    monkeypatch.setattr(bench_data, "WORKERS", (0,))
    threads = torch.get_num_threads()
    try:
        bench_data.main()
    finally:
        torch.set_num_threads(threads)


@pytest.mark.slow
def test_it_writes_every_sample(large, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out.json"
    run(monkeypatch, large, "--images", 64, "--rounds", 2, "--json", out)
    rows = json.loads(out.read_text())["rows"]
    assert {row["by"] for row in rows} == {"PIL", "0 workers", "vggfast", "PIL, numpy, torch", "this process"}
    assert all(len(row["seconds"]) == 2 and row["per_second"] > 0 for row in rows)
    assert {row["second_of"] for row in rows if row["by"] in ("PIL", "vggfast", "this process")} == {"core"}
    assert "crop 224 x 224, S = 256, as in the cache" in capsys.readouterr().out


def test_too_few_photos(large, tmp_path, monkeypatch):
    for path in (large / "b").iterdir():
        path.unlink()
    Image.new("RGB", (8, 8)).save(large / "b" / "0.bmp")
    Image.new("RGB", (8, 8)).save(large / "b" / "1.bmp")
    with pytest.raises(SystemExit, match=r"must have 64 images of at least 256 x 256, got \d+"):
        run(monkeypatch, large, "--json", tmp_path / "out.json")


@pytest.mark.parametrize(("resampled", "off"), [(False, 0.0015), (True, 1.2)])
def test_crops_that_differ_are_not_timed(resampled, off):
    ours = torch.zeros(1, 3, 2, 2)
    bench_data.check(ours, ours + off / 200, (100.0, 100.0, 100.0), resampled)
    with pytest.raises(SystemExit, match="nothing was timed"):
        bench_data.check(ours, ours + off / 100, (100.0, 100.0, 100.0), resampled)
