"""scripts/kernel_resources.py: reading what ptxas and cuobjdump print, and comparing it with a budget."""

import importlib.util
import json
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "kernel_resources.py"
specification = importlib.util.spec_from_file_location("kernel_resources", SCRIPT)
resources = importlib.util.module_from_spec(specification)
sys.modules["kernel_resources"] = resources  # dataclasses look there for their module
specification.loader.exec_module(resources)
Resources = resources.Resources

DOUBLE = "_ZN7vggfast4cuda36_GLOBAL__N__7a99d6df_4_k_cu_02b55f224kernIdLi64EEEvPT_"
FLOAT = "_ZN7vggfast4cuda36_GLOBAL__N__7a99d6df_4_k_cu_02b55f224kernIfLi32EEEvPT_"
OTHER = "_ZN7vggfast4cuda36_GLOBAL__N__7a99d6df_4_k_cu_02b55f225otherINS1_3ArrEEEvT_Pf"
needs_filter = pytest.mark.skipif(shutil.which("c++filt") is None, reason="no c++filt")

# As nvcc 13.0 and cuobjdump 13.2 print them.
PTXAS = f"""ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '{DOUBLE}' for 'sm_80'
ptxas info    : Function properties for {DOUBLE}
    128 bytes stack frame, 8 bytes spill stores, 16 bytes spill loads
ptxas info    : Function properties for some_other_function
    640 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 31 registers, used 1 barriers, 128 bytes cumulative stack size, 512 bytes smem, 360 bytes cmem[0]
ptxas info    : Compile time = 23.342 ms
ptxas info    : Compiling entry function '{OTHER}' for 'sm_80'
ptxas info    : Function properties for {OTHER}
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 8 registers, used 0 barriers, 368 bytes cmem[0]
"""
CUOBJDUMP = f"""
member build/libvggfast_core.a:k.cu.o:

Fatbin elf code:
================
arch = sm_80
code version = [1,8]
host = linux
compile_size = 64bit

Resource usage:
 Common:
  GLOBAL:0
 Function {DOUBLE}:
  REG:31 STACK:128 SHARED:512 LOCAL:0 CONSTANT[0]:360 TEXTURE:0 SURFACE:0 SAMPLER:0
 Function {FLOAT}:
  REG:32 STACK:0 SHARED:128 LOCAL:0 CONSTANT[0]:360 TEXTURE:0 SURFACE:0 SAMPLER:0

Fatbin elf code:
================
arch = sm_90a
code version = [1,8]

Resource usage:
 Common:
  GLOBAL:0
 Function {FLOAT}:
  REG:168 STACK:0 SHARED:1152 LOCAL:0 CONSTANT[0]:536 TEXTURE:0 SURFACE:0 SAMPLER:0

Fatbin ptx code:
================
arch = sm_90
code version = [9,0]
"""
SERIALISED = (
    "ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized due to "
    f"non wgmma instructions defining accumulator registers of a wgmma between start and end in the function '{FLOAT}'"
)


def test_what_ptxas_prints():
    assert resources.from_ptxas(PTXAS) == {
        (DOUBLE, "sm_80"): Resources(31, 512, 128, 24),
        (OTHER, "sm_80"): Resources(8, 0, 0, 0),
    }


def test_what_cuobjdump_prints_less_the_systems_kilobyte():
    assert resources.from_cuobjdump(CUOBJDUMP) == {
        (DOUBLE, "sm_80"): Resources(31, 512, 128),
        (FLOAT, "sm_80"): Resources(32, 128, 0),
        (FLOAT, "sm_90a"): Resources(168, 128, 0),
    }


@needs_filter
def test_names_are_those_of_the_source_whatever_its_hash():
    again = FLOAT.replace("7a99d6df", "00000000")
    found = resources.named({(FLOAT, "sm_80"): Resources(32, 0, 0, 0), (OTHER, "sm_80"): Resources(8, 0, 0, 0),
                             (again, "sm_80"): Resources(16, 128, 0, 0)})  # fmt: skip
    assert found == {
        ("kern<float, 32>", "sm_80"): Resources(32, 128, 0, 0),
        ("other<Arr>", "sm_80"): Resources(8, 0, 0, 0),
    }


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("void vggfast::cuda::(anonymous namespace)::k<(vggfast::cuda::Mode)1, 64>(vggfast::cuda::A<float>)",
         "k<(Mode)1, 64>"),
        ("plain(int, void (*)(float))", "plain"),
        ("extern_c_kernel", "extern_c_kernel"),
    ],
)  # fmt: skip
def test_short_names(text, name):
    assert resources.short(text) == name


def test_comparing_names_each_kernel_and_what_is_wrong():
    budget = {"a": {"sm_80": {"registers": 64, "shared": 0, "stack": 0}, "sm_90a": {}}, "old": {"sm_80": {}}}
    found = {
        ("a", "sm_80"): Resources(72, 0, 16, 8),
        ("b", "sm_80"): Resources(8, 0, 0, 0),
    }
    assert resources.compare(found, budget) == [
        "a, sm_80: spills must be 0 bytes, got 8",
        "a, sm_80: registers must be at most 64, got 72",
        "a, sm_80: stack must be at most 0, got 16",
        "b, sm_80: not in the budget: --write adds it",
        "old, sm_80: in the budget, but not built: --write removes it",
    ]


def test_a_budget_of_what_was_found_is_kept_and_leaves_other_architectures_alone():
    old = {"a": {"sm_90a": {"registers": 168, "shared": 0, "stack": 0}, "sm_80": {}}, "gone": {"sm_80": {}}}
    found = {("a", "sm_80"): Resources(40, 128, 0, 0)}
    made = resources.as_budget(found, old)
    assert made == {"a": {"sm_80": {"registers": 40, "shared": 128, "stack": 0}, "sm_90a": old["a"]["sm_90a"]}}
    assert resources.compare(found, made) == []


def test_serialised_products_are_found_once():
    text = f"{PTXAS}\n{SERIALISED}\n{SERIALISED}\nptxas info : (C7519) something else\n"
    assert resources.warnings(text) == [SERIALISED]


def test_sources_are_those_of_cmake():
    assert resources.sources("set(cuda_sources a.cu\n  b/c.cu)\nset(d e)", "cuda_sources") == ["a.cu", "b/c.cu"]
    for name in ("cuda_sources", "sm90_sources"):
        for source in resources.sources((resources.ROOT / "CMakeLists.txt").read_text(), name):
            assert (resources.ROOT / source).is_file()


@needs_filter
def test_the_command(tmp_path, monkeypatch, capsys):
    log, budget = tmp_path / "build.log", tmp_path / "resources.json"
    log.write_text(SERIALISED)
    budget.write_text('{"nvcc": "", "kernels": {}, "stage_loops": {"k": {}}}')  # scripts/stage_loops.py's stay
    monkeypatch.setattr(resources, "dumped", lambda path: CUOBJDUMP)
    base = ["--object", "x.a", "--budget", str(budget)]
    assert resources.main(base) == 1
    assert "kern<float, 32>, sm_90a: not in the budget" in capsys.readouterr().out
    assert resources.main([*base, "--write"]) == 0
    written = json.loads(budget.read_text())
    assert written["kernels"]["kern<float, 32>"]["sm_90a"]["registers"] == 168
    assert written["stage_loops"] == {"k": {}}
    assert "3 kernels are within resources.json" in capsys.readouterr().out
    assert resources.main([*base, "--log", str(log)]) == 1
    assert "ptxas: ptxas info    : (C7510)" in capsys.readouterr().out


def fill(build):
    """A build's folder with PTXAS beside the first object and nothing beside the others; returns the first log."""
    text = (resources.ROOT / "CMakeLists.txt").read_text()
    logs = [
        build / "CMakeFiles" / f"{target}.dir" / f"{source}.o.ptxas"
        for name, target in resources.LISTS.items()
        for source in resources.sources(text, name)
    ]
    for log in logs:
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(PTXAS if log is logs[0] else "")
    return logs[0]


@needs_filter
def test_what_a_build_kept_is_read_and_its_warnings_count(tmp_path, capsys):
    log, budget = fill(tmp_path), tmp_path / "resources.json"
    base = ["--build", str(tmp_path), "--budget", str(budget)]
    assert resources.main([*base, "--write"]) == 1
    assert "kern<double, 64>, sm_80: spills must be 0 bytes, got 24" in capsys.readouterr().out
    log.write_text(PTXAS.replace("8 bytes spill stores, 16 bytes", "0 bytes spill stores, 0 bytes"))
    assert resources.main(base) == 0
    assert "2 kernels are within resources.json" in capsys.readouterr().out
    with log.open("a") as file:
        file.write(SERIALISED)
    assert resources.main(base) == 1
    assert "ptxas: ptxas info    : (C7510)" in capsys.readouterr().out


def test_a_build_without_a_log_is_named(tmp_path, capsys):
    log = fill(tmp_path)
    log.unlink()
    assert resources.main(["--build", str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        f"kernel_resources: --build is {tmp_path}: it has no {log.relative_to(tmp_path)}: build there with CUDA\n"
    )


KEEPER = resources.ROOT / "cmake" / "keep_ptxas.sh"


@pytest.mark.parametrize("status", [0, 1])
def test_the_compilers_words_are_kept_and_all_but_the_table_is_shown(tmp_path, status):
    nvcc = tmp_path / "nvcc"
    nvcc.write_text(f"#!/bin/sh\ncat >&2 <<'END'\n{PTXAS}{SERIALISED}\nk.cu(3): warning #1\nEND\nexit {status}\n")
    nvcc.chmod(nvcc.stat().st_mode | stat.S_IXUSR)
    command = ["sh", KEEPER, nvcc, "-O3", '-DNAME="a b"', "-c", "k.cu", "-o", tmp_path / "k.cu.o"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == status
    assert done.stderr == f"{SERIALISED}\nk.cu(3): warning #1\n"
    assert (tmp_path / "k.cu.o.ptxas").read_text() == f"{PTXAS}{done.stderr}"


def test_the_keeper_passes_arguments_on_as_they_are(tmp_path):
    command = ["sh", KEEPER, "printf", "%s|", "a b", "", "$c", "-o", str(tmp_path / "k.o")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"a b||$c|-o|{tmp_path}/k.o|"
    assert subprocess.run(["sh", KEEPER, "true"], capture_output=True).returncode == 2


def test_object_that_is_not_there(capsys):
    assert resources.main(["--object", "no/such.a"]) == 2
    assert "--object must be a file, got no/such.a" in capsys.readouterr().err
