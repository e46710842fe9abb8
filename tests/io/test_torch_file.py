"""Checkpoints of all kinds of values, as torch.save writes them: what torch.load reads of them is read."""

import random

import numpy as np
import pytest
import torch

from tests.fuzz import checkpoints
from vggfast.io import read_state_dict
from vggfast.io.safetensors_file import DTYPES


@pytest.mark.parametrize("seed", range(8))
def test_nested_checkpoints(tmp_path, seed):
    cases = [checkpoints.case(random.Random(f"{seed} {i}"), tmp_path) for i in range(20)]
    assert sum(cases) > 10


@pytest.mark.parametrize("form", [{}, {"_use_new_zipfile_serialization": False}, {"pickle_protocol": 5}])
@pytest.mark.parametrize(
    "value",
    [
        torch.tensor([1 + 2j, 3 - 4j]).conj().imag,
        torch.tensor([1 + 2j, 3 - 4j]).conj(),
        torch.nn.Buffer(torch.ones(2)),
        np.array([1, 258], ">f4"),
        np.array([1, 258], ">i2"),
    ],
    ids=["negative", "conjugate", "buffer", "big-endian floats", "big-endian integers"],
)
def test_values_that_are_kept_otherwise(tmp_path, form, value):
    torch.save({"layer.weight": value}, tmp_path / "m.pth", **form)
    found = read_state_dict(tmp_path / "m.pth")["layer.weight"]
    assert found.tolist() == value.tolist()
    assert found.dtype.itemsize == value.dtype.itemsize


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_safetensors_of_its_own_library(tmp_path, dtype):
    safetensors = pytest.importorskip("safetensors.torch")
    tensors = {name: torch.arange(6, dtype=torch.uint8).repeat(8).view(torch.uint8) % 2 for name in ("a.b", "\u00fc.c")}
    tensors = {name: tensor if dtype is torch.uint8 else tensor.view(dtype) for name, tensor in tensors.items()}
    safetensors.save_file(tensors, tmp_path / "m.safetensors", {"format": "pt"})
    found = read_state_dict(tmp_path / "m.safetensors")
    assert all(found[name].dtype is dtype for name in tensors)
    assert all(torch.equal(found[name].view(torch.uint8), tensors[name].view(torch.uint8)) for name in tensors)
