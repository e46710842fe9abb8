"""benchmarks/figures.py: the picture of README.md, and the figures that README.md quotes."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("matplotlib", reason="matplotlib is not installed")
ROOT = Path(__file__).parents[2]
CASE = {"network": "D", "part": "whole", "size": 224, "batch": 8, "threads": 2, "dtype": "fp32", "isa": "best"}


def run(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, ROOT / "benchmarks/figures.py", *arguments], capture_output=True, text=True)


def write(folder: Path, name: str, times: dict[str, float], processor: str | None = None, **changed) -> None:
    said = {"processor": processor} if processor else {}
    rows = [{"engine": engine, "case": {**CASE, **changed}, "status": "timed", "seconds": [8e-3 * time] * 3}
            for engine, time in times.items()]  # fmt: skip
    (folder / f"model-cpu-{name}.json").write_text(json.dumps({"environment": said, "rows": rows}))


def test_the_committed_picture_shows_the_results_of_today(tmp_path):
    ran = run("--out", tmp_path)
    assert ran.returncode == 0, ran.stderr
    said = ran.stdout.splitlines()[-1]
    for theme in ("light", "dark"):
        for folder in (tmp_path, ROOT / "docs/images"):
            assert said in (folder / f"speed-{theme}.svg").read_text(), "make figures"


def test_the_readme_quotes_the_results_of_today(tmp_path):
    fastest = run("--out", tmp_path).stdout.splitlines()[-1].split("; ")[0]
    name, _, figures = fastest.partition(": ")
    quoted = re.search(r"vggfast takes.*?\n\n", (ROOT / "README.md").read_text(), re.DOTALL)
    text = " ".join(quoted[0].split())
    assert f"({name.partition(' (')[0]})" in text
    for bar in figures.split(", "):
        engine, _, time = bar.rpartition(" ")
        assert time in text
        assert engine in text


def test_of_each_peer_the_fastest_form_and_of_all_the_five_fastest_and_pytorch(tmp_path):
    peers = {"ncnn": 2, "mnn": 3, "openvino": 4, "onnxruntime": 5, "litert": 6, "torch-nchw": 9, "torch-compile": 7}
    write(tmp_path, "zen5", {"vggfast": 1, "vggfast-module": 0.5, **peers}, "zen5")
    write(tmp_path, "intel-6-221", {"vggfast": 0.5, "ncnn": 2}, "intel-6-221")
    write(tmp_path, "zen5-b32", {"vggfast": 0.1})  # a race apart
    write(tmp_path, "zen3", {"vggfast": 0.1}, "zen3", batch=1)  # another case
    ran = run("--results", tmp_path, "--out", tmp_path / "out", "--format", "png")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[-1] == (
        "intel-6-221: vggfast 0.5, ncnn 2.0; Zen 5 (AVX-512): "
        "vggfast 1.0, ncnn 2.0, MNN 3.0, OpenVINO 4.0, ONNX Runtime 5.0, LiteRT 6.0, PyTorch 7.0"
    )
    assert (tmp_path / "out/speed-dark.png").read_bytes().startswith(b"\x89PNG")


def test_a_folder_without_results_is_named(tmp_path):
    ran = run("--results", tmp_path, "--out", tmp_path)
    assert ran.returncode == 2
    assert f"--results must be a folder with timed model-cpu-*.json, got {tmp_path}" in ran.stderr
