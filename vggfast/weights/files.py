"""Weight files: .safetensors (ours: weights and the arguments that build the network) and torch's .pth, .pt.

Files are written beside their place and renamed, so that a reader sees the old one or the new one, never a half.
"""

from __future__ import annotations

import json
import os
import pickle
import tempfile
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vggfast.graph import differences
from vggfast.preprocessing import Preprocessing

_METADATA = "vggfast"


def write_atomically(
    path: str | Path, write: Callable[[Path], Any], rename: Callable[[Path], str] | None = None
) -> None:
    """Calls `write` with a temporary path in the same folder, then renames it to `path`.

    Args:
        path: what the file is to be called.
        write: writes it.
        rename: gives another name, from the file as it was written.

    Raises:
        OSError: the text names `path`; what stood there before still does.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path if rename is None else path.with_name(rename(temporary)))
        _sync_folder(path.parent)
    except Exception as error:
        # torch and safetensors report a full disk in exceptions of their own.
        raise OSError(f"{path} could not be written ({error}); what stood there before is unchanged") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Makes a rename in it outlast a loss of power."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file; errors as of :func:`write_atomically`."""
    text = json.dumps(content, indent=2) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text))


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
                metadata = (file.metadata() or {}).get(_METADATA)
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
        raise ValueError(f"{path} holds no state_dict: a mapping from names to tensors is wanted")
    return dict(content), arguments


def state_dict_of(weights: Any, progress: bool = True) -> dict[str, Tensor]:
    """The state_dict behind a path, a mapping, or an object with torchvision's ``get_state_dict``."""
    if isinstance(weights, Mapping):
        return dict(weights)
    if isinstance(weights, str | Path):
        if not Path(weights).is_file():
            raise FileNotFoundError(
                f"{weights}: no such weight file; a path, a state_dict or a torchvision weights enum "
                "(torchvision.models.VGG16_Weights.DEFAULT) is wanted"
            )
        return read_state_dict(weights)
    if hasattr(weights, "get_state_dict"):
        return dict(weights.get_state_dict(progress=progress, check_hash=True))
    raise TypeError(
        f"weights is {type(weights).__name__}: a path, a state_dict or a torchvision weights enum is wanted"
    )


def save_model(model: Any, path: str | Path, extra: Mapping[str, Any] | None = None) -> None:
    """Writes a :class:`vggfast.VGG` as .safetensors, with the arguments that build it and `extra` as metadata.

    The model's preprocessing goes into `extra` where that has none.

    Raises:
        ValueError: layers were changed so that the arguments no longer build the network, in their settings too, or
            have code of their own, as a hook; the text names them.
        OSError: it could not be written; the text names the path.
    """
    from safetensors.torch import save_file

    from vggfast.models import VGG

    tensors = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
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
    metadata = {_METADATA: json.dumps({**arguments, **({"extra": extra} if extra else {})})}
    write_atomically(path, lambda temporary: save_file(tensors, str(temporary), metadata))


def load_model(path: str | Path) -> tuple[Any, dict[str, Any]]:
    """(the network in evaluation mode, its `extra`) of a file by :func:`save_model` or of a training checkpoint.

    The network's attribute `preprocessing` is that of the file, or None.

    Raises:
        FileNotFoundError, ValueError: no such file, or not one of ours; the text names the path.
    """
    from vggfast.models import VGG

    path = Path(path)
    tensors, arguments = read_weights(path)
    if arguments is None:
        raise ValueError(
            f"{path} holds weights but not the network's arguments: a file written by vggfast is wanted; "
            f"vggfast convert {path} OUT.safetensors makes one of torchvision's and others'"
        )
    arguments = dict(arguments)
    extra = arguments.pop("extra", {})
    try:
        model = VGG(**arguments, init=None)
        model.load_state_dict(tensors)
        if "preprocessing" in extra:
            model.preprocessing = Preprocessing.from_dict(extra["preprocessing"])
    except (TypeError, KeyError, RuntimeError, ValueError) as error:
        raise ValueError(f"{path} does not hold the network that it names ({arguments}): {error}") from error
    return model.eval(), extra
