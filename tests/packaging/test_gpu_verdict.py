"""scripts/gpu_verdict.py: what a session's results come to."""

import importlib.util
import json
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "gpu_verdict.py"
specification = importlib.util.spec_from_file_location("gpu_verdict", SCRIPT)
verdict = importlib.util.module_from_spec(specification)
specification.loader.exec_module(verdict)


@pytest.fixture
def session(tmp_path):
    (tmp_path / "results").mkdir()

    def write(name: str, rows: list) -> None:
        (tmp_path / "results" / f"{name}-h200.json").write_text(json.dumps({"rows": rows}))

    conv = [("fprop", "a", 1.0, 2.0), ("fprop", "b", 1.0, 0.5), ("wgrad", "a", 1.0, 1.5)]
    write("conv", [{"which": which, "title": title, "seconds": {"vggfast": [ours] * 3, "cuDNN NHWC": [theirs] * 3}}
                   for which, title, ours, theirs in conv]
                  + [{"which": "others", "title": "pool", "seconds": {"vggfast": [1.0], "eager": [0.1]}}])  # fmt: skip
    groups = [("whole, batch 64, 1 of 2", "jax", 3.0), ("whole, batch 64, 2 of 2", "torch-compile", 1.25)]
    write("model", [{"what": what, "engine": engine, "seconds": [seconds] * 3}
                    for what, peer, theirs in groups for engine, seconds in (("vggfast", 1.0), (peer, theirs))]
                   + [{"what": "whole, batch 64, 2 of 2", "engine": "torch-nchw", "seconds": []}])  # fmt: skip
    (tmp_path / "build.code").write_text("0\n")
    (tmp_path / "quick_tests.code").write_text("1\n")
    (tmp_path / "quick_tests.log").write_text("...\n= 3 failed, 400 passed, 2 skipped in 9s =\n")
    return tmp_path


def test_ten_lines_at_most(session):
    assert verdict.verdict(session, "h200") == [
        "built: yes",
        "right: quick_tests 3 failed, 400 passed",
        "fprop: faster than the best peer in 1 of 2 layers, median 1.25x",
        "wgrad: faster than the best peer in 1 of 1 layers, median 1.50x",
        "loses: fprop b 0.50 of cuDNN NHWC",
        "forward: whole, batch 64: 1.25x torch-compile",
        "unknown: train, memory, tune",
    ]


def test_a_build_that_failed(tmp_path):
    (tmp_path / "build.code").write_text("1\n")
    (tmp_path / "build.log").write_text("nvcc fatal: no such file\n\n")
    assert verdict.verdict(tmp_path, "h100")[0] == "built: no, nvcc fatal: no such file"
