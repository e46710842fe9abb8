"""Weight files of ours: .safetensors, with the arguments that build the network beside the weights."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from vggfast.graph import differences
from vggfast.io import METADATA, WeightFile, write_atomically
from vggfast.models import VGG
from vggfast.preprocessing import Preprocessing


def save_model(model: Any, path: str | Path, extra: Mapping[str, Any] | None = None) -> None:
    """Writes a :class:`vggfast.VGG` as .safetensors, with the arguments that build it and `extra` as metadata.

    The model's preprocessing goes into `extra` where that has none.

    Raises:
        ValueError: layers were changed so that the arguments no longer build the network, in their settings too, or
            have code of their own, as a hook, or tensors share memory; the text names them.
        TypeError: the model is another's.
        OSError: it could not be written; the text names the path.
    """
    from safetensors.torch import save_file

    if not isinstance(model, VGG):
        raise TypeError(f"model must be a vggfast.VGG, got {type(model).__name__}")
    tensors = _tensors(model)
    arguments = dict(model.arguments)
    if "classifier.6.weight" in tensors:  # the last layer is what fine-tuning replaces
        arguments["num_classes"] = len(tensors["classifier.6.weight"])
    with torch.device("meta"):
        expected = VGG(**arguments, init=None)
    shapes, expected_shapes = (
        {name: tuple(t.shape) for name, t in each.items()} for each in (tensors, expected.state_dict())
    )
    odd = sorted(name for name in shapes.keys() | expected_shapes if shapes.get(name) != expected_shapes.get(name))
    if what := f"{', '.join(odd[:4])} differ" if odd else "; ".join(islice(differences(model, expected), 4)):
        raise ValueError(
            f"model is no longer the network that its arguments name ({what}): "
            "save its state_dict with torch.save instead"
        )
    extra = dict(extra or {})
    if model.preprocessing is not None:
        extra.setdefault("preprocessing", model.preprocessing.as_dict())
    metadata = {METADATA: json.dumps({**arguments, **({"extra": extra} if extra else {})})}
    write_atomically(path, lambda temporary: save_file(tensors, str(temporary), metadata))


def _tensors(model: Any) -> dict[str, Tensor]:
    """A model's tensors by name, each with memory of its own, or a ValueError that names one without."""
    tensors: dict[str, Tensor] = {}
    by_memory: dict[int, str] = {}
    for name, tensor in model.state_dict().items():
        if is_lazy(tensor) or tensor.is_meta:
            raise ValueError(f"{name} must have values, got one that is not made yet")
        tensors[name] = tensor.detach().contiguous().resolve_neg()
        if tensor.numel() and (other := by_memory.setdefault(tensors[name].data_ptr(), name)) != name:
            raise ValueError(
                f"{name} must have memory of its own, got that of {other}: a file cannot hold shared tensors"
            )
    return tensors


def load_model(path: str | Path) -> tuple[Any, dict[str, Any]]:
    """(the network in evaluation mode, its `extra`) of a file by :func:`save_model` or of a training checkpoint.

    The network's attribute `preprocessing` is that of the file, or None.

    Raises:
        FileNotFoundError, ValueError: no such file, or not one of ours; the text names the path.
    """
    return model_of(WeightFile(Path(path)))


def model_of(file: WeightFile, empty: bool = False) -> tuple[Any, dict[str, Any]]:
    """As :func:`load_model`, of an opened file.

    Args:
        file: the file.
        empty: leave out the values of the weights, which stay on torch's device "meta": for a look at the network.
    """
    path, arguments = file.path, file.arguments
    if arguments is None:
        raise ValueError(
            f"{path} must be a file written by vggfast, and holds weights but not the network's arguments; "
            f"vggfast convert {path} OUT.safetensors makes one of torchvision's and others'"
        )
    try:
        arguments = dict(arguments)
        extra = arguments.pop("extra", {})
        with torch.device("meta") if empty else contextlib.nullcontext():
            model = VGG(**arguments, init=None)
        model.load_state_dict(file.shapes() if empty else file.tensors())
        if "preprocessing" in extra:
            model.preprocessing = Preprocessing.from_dict(extra["preprocessing"])
    except (TypeError, KeyError, RuntimeError, ValueError) as error:
        raise ValueError(f"{path} does not hold the network that it names ({arguments}): {error}") from error
    return model.eval(), extra
