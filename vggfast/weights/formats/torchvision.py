"""torchvision's state_dicts (.pth, .pt, .safetensors), read and written, and timm's, which differ in the head's names.

A torchvision network takes RGB, 0 to 1, less a mean, over a deviation. What a network takes otherwise is folded into
its first convolution where that is exact. The channels' order, range and deviation are: they scale and swap inputs.
A mean is not: it would become a bias, and the zeros of the convolution's padding stand for the mean of what the
network takes, so that the outputs along the borders would change. The mean therefore stays the network's own.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from vggfast.io import WeightFile, write_atomically, write_safetensors
from vggfast.models import VGG
from vggfast.preprocessing import Preprocessing
from vggfast.weights.formats._parts import Raw

_METADATA = "preprocessing"


def read(path: Path, key: str | None = None) -> Raw:
    """A state_dict of torchvision's, or of one of ours."""
    preprocessing, origin = Preprocessing.torchvision(), "the convention of torchvision"
    file = WeightFile(path, key, allow_non_finite=True)
    if stored := file.metadata.get(_METADATA):
        preprocessing, origin = Preprocessing.from_dict(json.loads(stored)), "the file"
    return Raw(file.tensors(), lambda key, place, kind: key, as_linear, preprocessing, origin)


def as_linear(place: str, kind: str, tensor: Tensor) -> Tensor:
    """An FC layer that is kept as a convolution, (out, in, H, W), as (out, in * H * W); others as they are."""
    return tensor.flatten(1) if place.startswith("fc") and tensor.dim() == 4 else tensor


def write(model: VGG, path: Path) -> str:
    """Writes a state_dict that torchvision's VGG of the same configuration loads; .safetensors or .pth by the suffix.

    Returns:
        What the written network takes.

    Raises:
        ValueError: torchvision has no such network, or nothing says what it takes.
        OSError: it could not be written.
    """
    config, head = model.arguments["config"], model.head
    if config in ("A-LRN", "C"):
        raise ValueError(f"the network is configuration {config}: torchvision has A, B, D and E")
    if model.preprocessing is None:
        raise ValueError("nothing says what the network takes, so that it cannot be made to take what torchvision's do")
    folded, now = fold(model.state_dict()["features.0.weight"], model.preprocessing)
    state = (model.to_linear_head() if head == "conv" else model).state_dict()
    state = {**{key: tensor.detach().contiguous() for key, tensor in state.items()}, "features.0.weight": folded}
    if path.suffix == ".safetensors":
        metadata = {_METADATA: json.dumps(now.as_dict())}
        write_atomically(path, lambda temporary: write_safetensors(temporary, state, metadata))
    else:
        write_atomically(path, lambda temporary: torch.save(state, temporary))
    if now == Preprocessing.torchvision():
        return "takes torchvision's preprocessing"
    mean, std = (", ".join(f"{value:.7g}" for value in values) for values in (now.mean, now.std))
    return (
        f"takes RGB, 0 to 1, and a mean of its own, which no first layer can take in at the borders: "
        f"Normalize(mean=[{mean}], std=[{std}])"
    )


def fold(weight: Tensor, preprocessing: Preprocessing) -> tuple[Tensor, Preprocessing]:
    """The first convolution's weight for RGB in the range of 0 to 1 over torchvision's deviation, and what it takes.

    Args:
        weight: (out, 3, 3, 3).
        preprocessing: what it takes now.
    """
    expected = Preprocessing.torchvision()
    if preprocessing == expected:
        return weight.contiguous(), expected
    mean, std = (tuple(value / 255 for value in values) for values in (preprocessing.rgb_mean, preprocessing.rgb_std))
    rgb = weight if preprocessing.order == "RGB" else weight.flip(1)
    scale = torch.tensor([new / old for new, old in zip(expected.std, std, strict=True)], dtype=torch.float64)
    folded = (rgb.double() * scale[:, None, None]).to(weight.dtype).contiguous()
    same_mean = all(abs(ours - theirs) < 1e-6 for ours, theirs in zip(mean, expected.mean, strict=True))
    return folded, Preprocessing(expected.mean if same_mean else mean, expected.std, top=1.0)
