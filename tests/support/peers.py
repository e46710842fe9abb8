"""Packages that networks come from."""

from __future__ import annotations

import functools
import importlib
from types import ModuleType

import torch


@functools.cache
def _torchvision_ops() -> torch.library.Library:
    """The two ops that torchvision's Python code looks for, for a torchvision whose compiled part does not load."""
    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in ("nms(Tensor a, Tensor b, float c) -> Tensor", "qnms(Tensor a, Tensor b, float c) -> Tensor"):
        if not hasattr(torch.ops.torchvision, schema.split("(")[0]):
            library.define(schema)
    return library


def import_torchvision() -> ModuleType:
    _torchvision_ops()
    return importlib.import_module("torchvision")
