"""timm's VGGs (.pth, .pt, .safetensors): torchvision's convolutions, and a head of other names."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from vggfast.io import read_state_dict
from vggfast.preprocessing import Preprocessing
from vggfast.weights.formats._parts import Raw
from vggfast.weights.formats.torchvision import as_linear

_HEAD = {"fc1": "pre_logits.fc1", "fc2": "pre_logits.fc2", "fc3": "head.fc"}


def is_timm(names: Iterable[str]) -> bool:
    return any(name.startswith(tuple(_HEAD.values())) for name in names)


def read(path: Path, key: str | None = None) -> Raw:
    """A state_dict of timm's, whose first two FC layers are convolutions."""
    return Raw(
        read_state_dict(path, key, allow_non_finite=True),
        lambda key, place, kind: f"{_HEAD[place]}.{kind}" if place in _HEAD else key,
        as_linear, Preprocessing.torchvision(), "the convention of timm, which is torchvision's",
    )  # fmt: skip
