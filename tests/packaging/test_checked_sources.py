"""scripts/checked_sources.py: which sources need no second build."""

import importlib
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    monkeypatch.setitem(sys.modules, "kernel_resources", importlib.import_module("kernel_resources"))
    return importlib.import_module("checked_sources")


@pytest.fixture
def tree(tmp_path):
    for name in ("CMakeLists.txt", "csrc/cuda/conv/a.cu", "csrc/cpu/b.cpp"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    return tmp_path


def test_sources_that_were_checked(script, tree, capsys):
    assert script.main([], tree) == 1
    assert "are not those that `make resources` checked last" in capsys.readouterr().out
    assert script.main(["--write"], tree) == script.main([], tree) == 0
    assert "are those that `make resources` checked" in capsys.readouterr().out


@pytest.mark.parametrize("change", ["content", "name", "more", "core", "nvcc"])
def test_any_change_asks_for_a_build(script, tree, monkeypatch, change):
    source = tree / "csrc/cuda/conv/a.cu"
    script.main(["--write"], tree)
    if change == "content":
        source.write_text("other")
    elif change == "name":
        source.rename(source.with_name("c.cu"))
    elif change == "more":
        source.with_name("a.h").touch()
    elif change == "core":
        (tree / "csrc/core").mkdir()
        (tree / "csrc/core/checks.h").touch()
    else:
        monkeypatch.setattr(script, "nvcc_version", lambda: "14.0.1")
    assert script.main([], tree) == 1


def test_the_cpu_kernels_do_not_matter(script, tree):
    script.main(["--write"], tree)
    (tree / "csrc/cpu/b.cpp").write_text("other")
    assert script.main([], tree) == 0
