"""benchmarks/bench_errors.py on small maps."""

import json
import subprocess
import sys
from pathlib import Path

COMMAND = [sys.executable, Path(__file__).parents[2] / "benchmarks" / "bench_errors.py"]


def test_errors_are_within_the_house_rule(tmp_path):
    out = tmp_path / "errors.json"
    subprocess.run([*COMMAND, "--size", "32", "--batch", "1", "--out", out], check=True, capture_output=True)
    rows = json.loads(out.read_text())["rows"]
    assert len(rows) == 9 * 3
    for row in rows:
        errors = row["errors"]
        assert 0 < errors["auto"] < 1e-5, row
        assert 0 < errors["auto bf16"] < 2 * errors["torch bf16"], row


def test_a_size_that_pools_do_not_halve(tmp_path):
    ran = subprocess.run([*COMMAND, "--size", "48"], capture_output=True, text=True)
    assert ran.returncode == 2
    assert "--size must be a multiple of 32, got 48" in ran.stderr
