"""Weight files of ours: .safetensors, with the arguments that build the network beside the weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from vggfast._checks import check_memory
from vggfast.graph import differences
from vggfast.io import METADATA, WeightFile, write_atomically, write_safetensors
from vggfast.layers import PLAIN
from vggfast.models import VGG
from vggfast.preprocessing import Preprocessing, preprocessing_of
from vggfast.pretrained import misfit
from vggfast.quantisation import QUANTISATION, narrowed, quantisation_of, widened

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)  # whose values are all values of float32


def save_model(model: Any, path: str | Path, extra: Mapping[str, Any] | None = None) -> None:
    """Writes a :class:`vggfast.VGG` as .safetensors, with the arguments that build it and `extra` as metadata.

    The model's preprocessing and classes go into `extra` where that has none. :func:`load_model` makes a network of the
    same values, in float32 and in evaluation mode, all of whose parameters require gradients. A model with a
    `quantisation` (scales of 8 bits) is written with it, its weights as the whole numbers that they are of their
    scales, int8.

    Args:
        model: the network; its parameters are float32, float16 or bfloat16.
        path: the file, whose name ends in .safetensors.
        extra: what else to keep, of JSON's types, in which tuples become lists.

    Raises:
        ValueError: layers were changed so that the arguments no longer build the network, in their settings too, or
            have code of their own, as a hook, or tensors share memory or are not plain ones; or the arguments, `extra`
            or the path's name do not fit; the text names them.
        TypeError: the model is another's, its preprocessing is no Preprocessing, or `extra` no mapping.
        OSError: it could not be written; the text names the path.
    """
    if not isinstance(model, VGG):
        raise TypeError(f"model must be a vggfast.VGG, got {type(model).__name__}")
    if not isinstance(extra, Mapping | None):
        raise TypeError(f"extra must be a mapping, got {type(extra).__name__}")
    if Path(path).suffix != ".safetensors":
        raise ValueError(f"path must end in .safetensors, got {path}")
    tensors = _tensors(model)
    arguments = {**model.arguments} if isinstance(getattr(model, "arguments", None), Mapping) else {}
    if "classifier.6.weight" in tensors:  # the last layer is what fine-tuning replaces
        arguments["num_classes"] = len(tensors["classifier.6.weight"])
    expected = _built(arguments)
    shapes, expected_shapes = (
        {name: tuple(t.shape) for name, t in each.items()} for each in (tensors, expected.state_dict())
    )
    odd = sorted(name for name in shapes.keys() | expected_shapes if shapes.get(name) != expected_shapes.get(name))
    if what := f"{', '.join(odd[:4])} differ" if odd else "; ".join(islice(differences(model, expected), 4)):
        raise ValueError(
            f"model is no longer the network that its arguments name ({what}): "
            "save its state_dict with torch.save instead"
        )
    if quantisation := quantisation_of(model):
        tensors = narrowed(tensors, quantisation)
        arguments[QUANTISATION] = quantisation.as_dict()
    extra = dict(extra or {})
    if "classes" not in extra and (classes := getattr(model, "classes", None)) is not None:
        if len(classes) != arguments["num_classes"]:
            count = arguments["num_classes"]
            raise ValueError(f"classes of the model must be None or {count} names, one an output, got {len(classes)}")
        extra["classes"] = list(classes)
    metadata = {METADATA: _as_json(arguments, extra, preprocessing_of(model))}
    write_atomically(path, lambda temporary: write_safetensors(temporary, tensors, metadata))


def _built(arguments: Mapping[str, Any]) -> VGG:
    """The network that the arguments build, without values."""
    try:
        with torch.device("meta"):
            return VGG(**arguments, init=None)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"arguments of the model must build it again, got {arguments}{_said(error)}") from error


def _said(error: Exception) -> str:
    """Our own words in an error; Python's say nothing of a file."""
    return f": {error}" if isinstance(error, ValueError) else ""


def _as_json(arguments: Mapping[str, Any], extra: dict[str, Any], preprocessing: Preprocessing | None) -> str:
    if preprocessing is not None:
        extra.setdefault("preprocessing", preprocessing.as_dict())
    try:
        if odd := next((key for key in extra if not isinstance(key, str)), None):
            raise TypeError(f"keys must be strings, got {odd!r}")
        if "preprocessing" in extra:
            Preprocessing.from_dict(extra["preprocessing"])
        return json.dumps({**arguments, **({"extra": extra} if extra else {})})
    except (TypeError, KeyError, ValueError) as error:
        what = "arguments of the model and extra must be of JSON's types, and extra's preprocessing a Preprocessing's"
        raise ValueError(f"{what}: {error}") from error


def _tensors(model: Any) -> dict[str, Tensor]:
    """A model's tensors by name, each with memory of its own, or a ValueError that names one without."""
    tensors: dict[str, Tensor] = {}
    by_memory: dict[int, str] = {}
    own = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers(remove_duplicate=False))}
    for name, tensor in model.state_dict().items():
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{name} must be a tensor, got {type(tensor).__name__}: a file cannot hold other state")
        if is_lazy(tensor) or tensor.is_meta:
            raise ValueError(f"{name} must have values, got one that is not made yet")
        if type(tensor) not in PLAIN or tensor.layout is not torch.strided:
            raise ValueError(f"{name} must be a strided tensor, got {type(tensor).__name__} of {tensor.layout}")
        check_memory(tensor, name)
        if name in own and _lies(tensor) != _lies(own[name]):
            raise ValueError(f"{name} must be the layer's own tensor in state_dict(), got another")
        if tensor.dtype not in _DTYPES and not name.endswith("num_batches_tracked"):
            raise ValueError(f"{name} must be {' or '.join(map(str, _DTYPES))}, got {tensor.dtype}: save model.float()")
        tensors[name] = tensor.detach().contiguous().resolve_neg()
        if tensor.numel() and (other := by_memory.setdefault(tensors[name].data_ptr(), name)) != name:
            raise ValueError(
                f"{name} must have memory of its own, got that of {other}: a file cannot hold shared tensors"
            )
    return tensors


def _lies(tensor: Tensor) -> tuple[Any, ...]:
    """Where in memory, and how."""
    return tensor.data_ptr(), tensor.stride(), tensor.is_neg()


def load_model(path: str | Path, *, allow_non_finite: bool = False) -> tuple[Any, dict[str, Any]]:
    """(the network in evaluation mode, its `extra`) of a file by :func:`save_model` or of a training checkpoint.

    The network's attributes `preprocessing` and `quantisation` are those of the file, or None. The weights of a network
    of 8 bits are float32 again, the same multiples of their scales; Engine(model, dtype="int8") computes with them.

    Args:
        path: the file.
        allow_non_finite: take infinities, NaN and negative variances.

    Raises:
        FileNotFoundError, ValueError: no such file, not one of ours, or one whose weights are damaged or not finite;
            the text names the path.
    """
    return model_of(WeightFile(Path(path), allow_non_finite=allow_non_finite))


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
    said = f"{path} does not hold the network that it names ({str(arguments)[:300]})"
    try:
        arguments = dict(arguments)
        extra = dict(arguments.pop("extra", {}))
        said_of_bits = arguments.pop(QUANTISATION, None)
        shapes, quantisation = file.shapes(), None
        if said_of_bits is not None:
            shapes, quantisation = widened(shapes, said_of_bits)
        with torch.device("meta"):  # so that damaged arguments ask for no memory
            model = VGG(**arguments, init=None).float()  # whatever torch's default is
        preprocessing = Preprocessing.from_dict(extra["preprocessing"]) if "preprocessing" in extra else None
    except Exception as error:  # arguments may be of any type
        raise ValueError(f"{said}{_said(error)}") from error
    if what := misfit(shapes, model.state_dict()):
        raise ValueError(f"{said}: {what}")
    if not empty:
        tensors = file.tensors()
        if said_of_bits is not None:
            try:
                tensors, quantisation = widened(tensors, said_of_bits)
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from error
        model.to_empty(device="cpu").load_state_dict(tensors)
    model.preprocessing, model.quantisation, model.classes = preprocessing, quantisation, extra.get("classes")
    return model.eval(), extra
