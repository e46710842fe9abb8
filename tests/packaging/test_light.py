"""`import vggfast` brings the library alone: nothing that the extras are for, and no compiler."""

import subprocess
import sys

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
