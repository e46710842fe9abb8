"""State dictionaries, out of .safetensors files and torch's .pth and .pt. Nothing in a file is executed."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

METADATA = "vggfast"  # the key of a .safetensors file's metadata under which we keep the network's arguments


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors, .pth or .pt file. Nothing in the file is executed.

    Raises:
        FileNotFoundError, ValueError: no such file, or no weights in it; the text names the path.
    """
    return read_weights(Path(path))[0]


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """(tensors, arguments of the network or None) of a .safetensors, .pth or .pt file. Raises as `read_state_dict`."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such weight file")
    try:
        if path.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(path, "pt") as file:
                metadata = (file.metadata() or {}).get(METADATA)
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            return tensors, json.loads(metadata) if metadata else None
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, ValueError, RuntimeError, EOFError, pickle.UnpicklingError, KeyError) as error:
        # torch's first sentence says what is wrong, and its others how to run what a file holds.
        said = str(error).partition(". ")[0] or "it ends too soon"
        raise ValueError(f"{path} is not a weight file that can be read: {said}") from error
    except Exception as error:
        if type(error).__name__ == "SafetensorError":
            raise ValueError(f"{path} is not a weight file that can be read: {error}") from error
        raise
    arguments = None
    if isinstance(content, Mapping) and "model" in content:  # a training checkpoint of ours
        content, arguments = content["model"], content.get("arguments")
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"{path} must hold a state_dict, a mapping from names to tensors, and holds none")
    return dict(content), arguments


def state_dict_of(weights: Any, progress: bool = True) -> dict[str, Tensor]:
    """The state_dict behind a path, a mapping, or an object with torchvision's ``get_state_dict``."""
    if isinstance(weights, Mapping):
        return dict(weights)
    if isinstance(weights, str | Path):
        if not Path(weights).is_file():
            raise FileNotFoundError(
                f"{weights}: no such weight file; weights must be a path, a state_dict or a torchvision weights enum "
                "(torchvision.models.VGG16_Weights.DEFAULT)"
            )
        return read_state_dict(weights)
    if hasattr(weights, "get_state_dict"):
        return dict(weights.get_state_dict(progress=progress, check_hash=True))
    raise TypeError(f"weights must be a path, a state_dict or a torchvision weights enum, got {type(weights).__name__}")
