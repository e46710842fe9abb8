"""The command line where only torch, numpy and vggfast are installed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vggfast.cli import _COMMANDS
from vggfast.cli.extras import OPTIONAL
from vggfast.models import VGG11

# What torch itself brings is there.
_ABSENT = sorted(OPTIONAL.keys() - {"jinja2"})
_PROGRAM = """import contextlib, importlib.abc, io, json, sys
class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ABSENT:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
from vggfast.cli import main
done = []
for arguments in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            code = main(arguments)
        except SystemExit as stop:
            code = stop.code
    done.append((code, out.getvalue(), err.getvalue()))
print(json.dumps(done))
"""


def _call(folder, *lines):
    program = _PROGRAM.replace("ABSENT", repr(_ABSENT))
    command = [sys.executable, "-c", program, json.dumps([line.split() for line in lines])]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_each_command_explains_itself(tmp_path):
    lines = [*_COMMANDS, "localise eval", "localise predict", "weights list", "weights get"]
    for line, (code, out, err) in zip(lines, _call(tmp_path, *(f"{line} --help" for line in lines)), strict=True):
        assert (code, out.startswith(f"usage: vggfast {line} "), err) == (0, True, ""), line


def test_commands_that_need_no_more(tmp_path):
    torch.save(VGG11(num_classes=3, width=0.1, hidden=16).state_dict(), tmp_path / "a.pth")
    lines = ["info", "weights list", "convert a.pth b.safetensors", "convert b.safetensors c.pth"]
    for line, (code, out, err) in zip(lines, _call(tmp_path, *lines), strict=True):
        assert (code, bool(out), err) == (0, True, ""), line


def test_commands_say_what_to_install(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").touch()
    lines = {
        "train --data digits": "rich",
        "eval --model a.safetensors": "rich",
        "reproduce table3 --data digits --weights .": "rich",
        "predict a.png --model a.safetensors": "rich",
        "localise eval --model a.safetensors": "rich",
        "features --model a.safetensors --data digits --out f.npz --taps pool5": "rich",
        "svm a.npz --train 1 --test 1": "rich",
        "stylise --content a.png --style a.png --out b.png": "rich",
        "cache digits --out c": "rich",
        "report run": "matplotlib",
    }
    for (line, package), found in zip(lines.items(), _call(tmp_path, *lines), strict=True):
        assert found == [2, "", f"vggfast: {line.split()[0]} needs {package}: pip install 'vggfast[train]'\n"], line


def test_extras_are_those_of_pyproject():
    tomllib = pytest.importorskip("tomllib")  # since Python 3.11
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    for optional in OPTIONAL.values():
        if optional.extra:
            brought = " ".join(project["optional-dependencies"][optional.extra])
            assert optional.package in brought
