"""What the simulator takes the hardware to do, beside what the hardware did (csrc/tests/cuda/goldens.json, from
scripts/gpu_session.sh)."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "compare_goldens.py"
GOLDENS = ROOT / "csrc" / "tests" / "cuda" / "goldens.json"


@pytest.fixture
def compare(sim):
    spec = importlib.util.spec_from_file_location("compare_goldens", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_simulator_agrees_with_the_hardware(compare):
    if not GOLDENS.exists():
        pytest.skip(f"no GPU has been asked yet: {GOLDENS.name} is missing")
    assert compare.differences(json.loads(GOLDENS.read_text()), compare.simulated()) == []


def test_a_difference_is_named(compare, tmp_path):
    sim = compare.simulated()
    assert len(sim) > 50
    assert compare.differences(sim, sim) == []
    gpu = {name: list(values) for name, values in sim.items()}
    gpu["mma_fragments"][3] += 1
    gpu["precision_bf16"][0] += 1
    gpu["new"] = gpu.pop("ldmatrix_stmatrix")
    (tmp_path / "gpu.json").write_text(json.dumps(gpu))
    done = subprocess.run([sys.executable, SCRIPT, tmp_path / "gpu.json"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "mma_fragments: 1 of" in done.stdout
    assert "differ, the first at 3" in done.stdout
    assert "new: the simulator has no such list" in done.stdout
    assert "ldmatrix_stmatrix: the GPU has no such list" in done.stdout
    assert "precision_bf16, GPU:" in done.stdout
