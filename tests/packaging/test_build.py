"""The build description and the shape of the tree."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted(
    path
    for folder in ("csrc", "vggfast", "benchmarks", "tests", "cmake")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in {".py", ".h", ".cpp", ".cu", ".cmake"}
)


def _configure(build: Path, *options: str, path: str | None = None):
    """CMake's configure step, on a PATH where nvcc is or is not."""
    cmake = shutil.which("cmake")
    ninja = shutil.which("ninja")
    if cmake is None or ninja is None:
        pytest.skip("no cmake or ninja")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("CUDA", "CMAKE_"))}
    environment["PATH"] = path or environment["PATH"]
    command = [cmake, "-S", ROOT, "-B", build, "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}", *options]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment)
    return done.returncode, " ".join((done.stdout + done.stderr).split())


@pytest.fixture
def path_without_nvcc(tmp_path):
    """A PATH with the compilers but no nvcc."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("cc", "c++", "gcc", "g++", "ld", "as", "ar", "ranlib", "sh", "uname"):
        if found := shutil.which(name):
            (folder / name).symlink_to(found)
    return str(folder)


def test_cuda_on_without_nvcc_fails_with_one_sentence(tmp_path, path_without_nvcc):
    code, output = _configure(tmp_path / "build", "-DVGGFAST_CUDA=on", path=path_without_nvcc)
    assert code != 0
    assert "VGGFAST_CUDA=on, but no nvcc was found" in output


def test_cuda_auto_without_nvcc_or_a_gpu_says_so(tmp_path, path_without_nvcc):
    code, output = _configure(tmp_path / "build", "-DVGGFAST_CUDA=auto", path=path_without_nvcc)
    assert code == 0, output
    gpu = any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/dxg").exists()
    assert ("VGGFAST_CUDA=auto: no nvcc was found" if gpu else "VGGFAST_CUDA=auto: no GPU is seen") in output


def test_unknown_cuda_choice(tmp_path):
    code, output = _configure(tmp_path / "build", "-DVGGFAST_CUDA=maybe")
    assert code != 0
    assert "VGGFAST_CUDA must be one of auto, on, off, got 'maybe'" in output


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_house_rules(path):
    text = path.read_text()
    assert text.count("\n") <= 400, "house rule 1: a file under 400 lines"
    name = str(path.relative_to(ROOT))
    if name.startswith("csrc/"):
        assert not re.search(r'#include\s*[<"](torch|ATen|c10)/', text), "the core knows no torch"
        # GCC's intrinsics of tiles take no template argument, and its ldtilecfg reads too little.
        assembles = "/ptx/" in name or name == "csrc/cpu/isa/tiles.h"
        assert assembles or not re.search(r"\basm\s*(volatile)?\s*\(", text), "house rule 2: assembly in ptx/"
        assert name.startswith("csrc/cpu/") or "immintrin.h" not in text, "house rule 2: intrinsics in cpu/"
