"""`import vggfast` brings the library alone: nothing that the extras are for, and no compiler."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

_HEAVY = (
    "{'rich', 'matplotlib', 'PIL', 'sklearn', 'safetensors', 'yaml', 'jinja2', 'datasets', 'onnx', 'h5py', "
    "'torch._dynamo'}"
)


@pytest.mark.parametrize(
    "module", ["vggfast", "vggfast.cli", "vggfast.data", "vggfast.evaluate", "vggfast.losses", "vggfast.report"]
)
def test_importing_is_light(module):
    program = f"import torch, sys; before = set(sys.modules); import {module}\n"
    program += f"print(sorted({_HEAVY} & (set(sys.modules) - before)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_what_the_documentation_names_is_there_after_importing_vggfast():
    root = Path(__file__).parents[2]
    text = "".join(path.read_text() for path in [root / "README.md", *(root / "docs").rglob("*.md")])
    names = {found[1] for found in re.finditer(r"(?<![\w/.])vggfast\.([A-Za-z_][\w.]*\w)", text)}
    assert "style_transfer.stylise" in names
    program = "import operator, sys, vggfast; first = {*vars(vggfast), *vggfast._LAZY, 'load'}; names = sys.argv[1:]\n"
    program += "print([name for name in names if name.partition('.')[0] not in first])\n"
    program += "for name in names: operator.attrgetter(name)(vggfast)"
    done = subprocess.run([sys.executable, "-c", program, *names], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
