"""What makes and tries wheels: cmake/old_glibc.py, scripts/try_wheel.py, the source archive's list."""

import importlib.util
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def _module(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


old_glibc, try_wheel = _module(ROOT / "cmake" / "old_glibc.py"), _module(ROOT / "scripts" / "try_wheel.py")

_TABLE = """
0000000000089380 g    DF .text\t0000000000000eed (GLIBC_2.2.5) pthread_create
0000000000089380 g    DF .text\t0000000000000eed  GLIBC_2.34  pthread_create
00000000000a2d70 g    DF .text\t0000000000000028 (GLIBC_2.2.5) memcpy
000000000009be70 g   iD  .text\t0000000000000109  GLIBC_2.14  memcpy
0000000000040000 g    DF .text\t0000000000000109  GLIBC_2.36  arc4random
00000000001db320  w   DO .bss\t0000000000000008  GLIBC_2.2.5 environ
00000000000e0000 g    DF .text\t0000000000000109  GLIBC_2.2.5 dl_iterate_phdr
0000000000000000      DF *UND*\t0000000000000000  GLIBC_2.3   __tls_get_addr
"""


def test_symbols_have_the_newest_version_that_the_old_glibc_knows():
    found = old_glibc.symbols(_TABLE, "2.28")
    assert found == {
        "pthread_create": ("2.2.5", False), "memcpy": ("2.14", False), "environ": ("2.2.5", True),
        "dl_iterate_phdr": ("2.2.5", False),
    }  # fmt: skip
    assert old_glibc.symbols(_TABLE, "2.36").keys() - found.keys() == {"arc4random"}
    assert old_glibc.symbols(_TABLE, "2.13")["memcpy"] == ("2.2.5", False)
    parts = old_glibc.by_library(found)
    assert parts["libpthread.so.0"].keys() == {"pthread_create"}
    assert parts["libdl.so.2"] == {}


def test_a_library_linked_with_the_stubs_asks_for_nothing_newer(tmp_path):
    if not all(shutil.which(tool) for tool in ("c++", "objdump")):
        pytest.skip("no c++ or objdump")
    old = tmp_path / "old"
    subprocess.run([sys.executable, ROOT / "cmake" / "old_glibc.py", "2.28", old], check=True)
    source = tmp_path / "a.cpp"
    source.write_text(
        "#include <cmath>\n#include <dlfcn.h>\n#include <pthread.h>\n#include <cstring>\n"
        "thread_local int calls;\nint* g() { return &calls; }\n"
        "double f(double x, void* to, const char* from, void* (*run)(void*)) {\n"
        "  pthread_t thread; pthread_create(&thread, nullptr, run, to); memcpy(to, from, x);\n"
        "  pthread_atfork(nullptr, nullptr, nullptr); return dlsym(to, from) ? std::pow(x, x) : 0; }\n"
    )
    library = tmp_path / "a.so"
    subprocess.run(["c++", "-O1", "-fPIC", "-shared", f"-L{old}", "-o", library, source, "-ldl", "-lm"], check=True)
    table = subprocess.run(["objdump", "-T", library], check=True, capture_output=True, text=True).stdout
    versions = [tuple(map(int, each.split("."))) for each in re.findall(r"UND.*GLIBC_([\d.]+)\)? ", table)]
    assert len(versions) >= 5
    assert max(versions) <= (2, 28)
    assert try_wheel.homeless(table) == []


def test_an_old_glibc_must_be_a_version(tmp_path):
    command = [sys.executable, ROOT / "cmake" / "old_glibc.py", "old", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "glibc must be a version such as 2.28, got 'old'" in done.stderr


@pytest.mark.parametrize(
    ("tag", "names", "problem"),
    [
        ("manylinux_2_28_x86_64", ["vggfast/_C.cpython-311-x86_64-linux-gnu.so"], None),
        ("linux_x86_64", ["vggfast/_C.cpython-311-x86_64-linux-gnu.so"], "has no manylinux tag"),
        ("manylinux_2_28_x86_64", ["vggfast/_C.x.so", "vggfast.libs/libgomp.so.1"], "OpenMP runtime: vggfast.libs/"),
        ("manylinux_2_28_x86_64", ["vggfast/__init__.py"], "has no compiled module"),
    ],
)  # fmt: skip
def test_problems_of_wheels(tmp_path, tag, names, problem):
    wheel = tmp_path / f"vggfast-0.1.0-cp311-cp311-{tag}.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        for name in names:
            file.writestr(name, "")
    found = try_wheel.problems(wheel)
    assert len(found) == (problem is not None)
    assert problem is None or problem in found[0]


def test_symbols_that_no_library_has_are_found():
    table = """
0000000000000000      DF *UND*\t0000000000000000 (GLIBC_2.2.5) dlsym
0000000000000000      DF *UND*\t0000000000000000 (GCC_3.0)    _Unwind_Resume
0000000000000000      D  *UND*\t0000000000000000  Base        PyList_New
0000000000000000      D  *UND*\t0000000000000000  Base        _Py_Dealloc
0000000000000000  w   D  *UND*\t0000000000000000  Base        __gmon_start__
0000000000000000      D  *UND*\t0000000000000000  Base        arc4random
00000000000688b0 g    DF .text\t00000000000001e5  Base        PyInit__C
"""
    assert try_wheel.homeless(table) == ["arc4random"]


def test_the_releases_of_torch_are_those_that_the_wheel_allows(tmp_path, monkeypatch):
    wheel = tmp_path / "vggfast-0.1.0-cp311-cp311-manylinux_2_28_x86_64.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("vggfast-0.1.0.dist-info/METADATA", "Requires-Dist: numpy\nRequires-Dist: torch>=2.11\n")
    listed = "torch (2.13.0)\nAvailable versions: 2.13.0+cpu, 2.13.0, 2.12.1, 2.11.0, 2.10.0\n"
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 0, listed, ""))
    assert try_wheel.releases(wheel) == ["2.11.0", "2.12.1", "2.13.0", "2.13.0+cpu"]
