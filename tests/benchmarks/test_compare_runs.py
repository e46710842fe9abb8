"""benchmarks/compare_runs.py on the runs that are committed."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("matplotlib", reason="matplotlib is not installed")
COMMAND = [sys.executable, Path(__file__).parents[2] / "benchmarks" / "compare_runs.py"]
RUNS = Path(__file__).parents[2] / "benchmarks" / "results" / "bf16-training"


def test_a_picture_and_a_line_for_each_run(tmp_path):
    runs = [RUNS / "digits-fp32", RUNS / "digits-bf16"]
    ran = subprocess.run([*COMMAND, *runs, "--out", tmp_path / "x.png"], check=True, capture_output=True, text=True)
    assert ran.stdout.startswith("digits-fp32: 1150 steps, validation loss 0.0043, top-1 error 0.00 %\ndigits-bf16: ")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_no_run_is_named(tmp_path):
    ran = subprocess.run([*COMMAND, tmp_path, "--out", tmp_path / "x.png"], capture_output=True, text=True)
    assert ran.returncode == 2
    assert f"DIR must have a steps.csv, got {tmp_path}" in ran.stderr
