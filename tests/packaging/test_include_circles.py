"""A circle of includes under csrc/ is found."""

import importlib.util
from pathlib import Path

import pytest

_FILE = Path(__file__).resolve().parents[2] / "scripts" / "include_circles.py"


@pytest.fixture(scope="module")
def include_circles():
    spec = importlib.util.spec_from_file_location("include_circles", _FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _write(root, **files):
    for name, includes in files.items():
        path = root / name.replace("__", "/")
        path = path.with_name(f"{path.name}.h")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("#pragma once\n#include <vector>\n" + "".join(f"{line}\n" for line in includes))


def test_a_planted_circle_is_found(include_circles, tmp_path, capsys):
    """Through a path from the root, one beside the file, and one below include/."""
    _write(
        tmp_path,
        cpu__a=['#include "cpu/b.h"'],
        cpu__b=['#  include "c.h"'],
        cpu__c=["#include <vggfast/d.h>"],
        include__vggfast__d=['#include "cpu/a.h"', '#include "e.h"'],
        include__vggfast__e=[],
    )
    assert include_circles.main(tmp_path) == 1
    assert capsys.readouterr().out == (
        "include circle: cpu/a.h -> cpu/b.h -> cpu/c.h -> include/vggfast/d.h -> cpu/a.h\n"
    )
    (tmp_path / "cpu" / "c.h").write_text("")
    assert include_circles.main(tmp_path) == 0
    assert capsys.readouterr().out == "no include circles in 5 files\n"


def test_a_file_that_includes_itself(include_circles, tmp_path, capsys):
    _write(tmp_path, a=['#include "a.h"'])
    assert include_circles.main(tmp_path) == 1
    assert capsys.readouterr().out == "include circle: a.h -> a.h\n"


def test_there_is_none_in_csrc(include_circles, capsys):
    assert include_circles.main() == 0
    assert capsys.readouterr().out.startswith("no include circles in ")
