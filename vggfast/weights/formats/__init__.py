"""The formats of other frameworks: what each file is of, and what it holds as a network of ours."""

from __future__ import annotations

import importlib
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from vggfast.io import WeightFile, check_fields, check_finite, on_one_line, open_file
from vggfast.models import VGG
from vggfast.preprocessing import Preprocessing
from vggfast.weights.files import load_model
from vggfast.weights.formats import pt2
from vggfast.weights.formats._exported import MODEL
from vggfast.weights.formats._parts import Parts, Raw, build, quantise, sort_out

# By name: the module, what people call it, and the package that reads it.
_READERS = {
    "torchvision": ("torchvision", "torchvision", "safetensors"),
    "timm": ("timm", "timm", "safetensors"),
    "keras": ("keras", "Keras", "h5py"),
    "tf-slim": ("tf_slim", "TF-slim", "tensorflow"),
    "caffe": ("caffe", "Caffe", "protobuf"),
    "matconvnet": ("matconvnet", "MatConvNet", "scipy"),
    "onnx": ("onnx", "ONNX", "onnx"),
    "pt2": ("pt2", "torch.export", "torch"),
}
FORMATS = ("ours", *_READERS)
# What networks of each format take where their file says nothing.
CONVENTIONS = {
    "torchvision": Preprocessing.torchvision(),
    "timm": Preprocessing.torchvision(),
    "keras": Preprocessing.caffe(),
    "tf-slim": Preprocessing((123.68, 116.78, 103.94)),
    "caffe": Preprocessing.caffe(),
    "matconvnet": Preprocessing((123.68, 116.779, 103.939)),
}
_SUFFIXES = {
    ".h5": "keras", ".hdf5": "keras", ".keras": "keras", ".ckpt": "tf-slim", ".index": "tf-slim",
    ".caffemodel": "caffe", ".mat": "matconvnet", ".onnx": "onnx", ".pt2": "pt2",
    ".pth": "torchvision", ".pt": "torchvision", ".safetensors": "torchvision",
}  # fmt: skip
# Of the formats in protobuf, the fields whose own are counted: Caffe's layers and blobs, ONNX's graph, nodes, tensors.
_MESSAGES: dict[str, dict[int, Any]] = {
    "caffe": {2: {6: {}}, 100: {7: {}}},
    "onnx": {7: {1: {5: {}}, 5: {}}, 14: {}},
}
_TABLE = bytes.fromhex("57fb808b247547db")  # the end of TensorFlow's tables of tensors


@dataclass
class Found:
    """A network that was read.

    Attributes:
        model: with its preprocessing; in evaluation mode.
        format: one of FORMATS.
        part: which of its parts the file holds: "the whole network", or one of them.
        origin: where the preprocessing is from.
        extra: what else the file says, such as "classes".
        notes: what is to be known of the file, such as a softmax that is left out: a sentence each.
    """

    model: VGG
    format: str
    part: str
    origin: str
    extra: dict[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()


def _check_there(path: Path) -> None:
    """That there is such a file, or such files of a TensorFlow checkpoint; see :func:`open_file`."""
    index = path.with_name(f"{path.name}.index")
    open_file(index if index.is_file() and not path.exists() else path).close()


def detect(path: Path, key: str | None = None) -> str:
    """The format of a file that is there, by its content, or else by its suffix.

    Raises:
        ValueError: none of these formats; the text names it.
    """
    if not path.is_file():
        return "tf-slim"
    with open(path, "rb") as file:
        start = file.read(16)
        file.seek(max(0, path.stat().st_size - len(_TABLE)))
        end = file.read()
    found = _by_content(path, start, end, key) or _SUFFIXES.get(path.suffix)
    if found is None:
        raise ValueError(
            f"{path} is a weight file of no format that its content or suffix tells: --from {'|'.join(FORMATS)} says it"
        )
    return found


def _by_content(path: Path, start: bytes, end: bytes, key: str | None) -> str | None:
    if start.startswith(b"\x89HDF"):
        return "keras"
    if start.startswith(b"MATLAB"):
        return "matconvnet"
    if end == _TABLE:
        return "tf-slim"
    if start.startswith(b"PK\3\4"):
        with zipfile.ZipFile(path) as archive:  # whose directory open_file has read
            if "config.json" in archive.namelist():
                return "keras"
            if any(name.endswith(MODEL) for name in archive.namelist()):
                return "pt2"
    elif path.suffix != ".safetensors" and not start.startswith(b"\x80"):
        return None
    return _of_torch(path, key)


def _of_torch(path: Path, key: str | None) -> str:
    """Which of the formats that torch's readers read."""
    from vggfast.weights.formats.timm import is_timm

    file = WeightFile(path, key)
    if file.arguments is not None:
        return "ours"
    return "timm" if is_timm(file.shapes()) else "torchvision"


def read(
    path: str | Path | torch.nn.Module | torch.export.ExportedProgram,
    format: str | None = None,
    *,
    features: str | Path | None = None,
    features_only: bool = False,
    preprocessing: Preprocessing | None = None,
    key: str | None = None,
    allow_non_finite: bool = False,
) -> Found:
    """Reads a network of any of FORMATS. Every tensor must be accounted for.

    Args:
        path: the file; of a TensorFlow checkpoint of several files, their prefix. Or what torch.export.export(...)
            gives, or a GraphModule: that program's module(), or what torchao's convert_pt2e gives.
        format: one of FORMATS; None tells it by the content. Of a program or module it is "pt2".
        features: a file with the convolutions, where `path` has the FC layers alone; of any format.
        features_only: leave out whatever is none of the convolutions' tensors, such as another network's head.
        preprocessing: what the network takes, where the file does not say, or says what is wrong.
        key: which state_dict, where a checkpoint of torch's has several, such as "model_ema".
        allow_non_finite: take infinities, NaN and negative variances.

    Raises:
        FileNotFoundError, ValueError: no such file, or not what it should be; the text names file and tensor.
        TypeError: `path` is none of these.
        ImportError: a package that reads this format is not installed; the text names it.
    """
    if isinstance(path, torch.export.ExportedProgram):
        path = path.module()
    if not isinstance(path, str | PathLike | torch.nn.Module):
        raise TypeError(f"path must be a path, an ExportedProgram or a GraphModule, got {type(path).__name__}")
    module = path if isinstance(path, torch.nn.Module) else None
    path = Path("the module" if isinstance(path, torch.nn.Module) else path)
    try:
        return _read(path, module, format, features, features_only, preprocessing, key, allow_non_finite)
    except (ValueError, OSError, ImportError) as error:
        if (said := on_one_line(error)) != str(error):  # names in the file, which may be anything
            raise ValueError(said) from error
        raise
    except Exception as error:  # parts of a damaged file that do not fit each other
        raise ValueError(f"{path} is no weight file that can be read: its parts are not what they should be") from error


def _read(
    path: Path, module: torch.nn.Module | None, format: str | None, features: str | Path | None, features_only: bool,
    preprocessing: Preprocessing | None, key: str | None, allow_non_finite: bool,
) -> Found:  # fmt: skip
    """:func:`read`, but for errors of other kinds."""
    if module is None:
        _check_there(path)
    elif format not in (None, "pt2"):
        raise ValueError(f"format must be 'pt2' or None for a module, got {format!r}")
    format = "pt2" if module is not None else format or detect(path, key)
    if format not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(map(repr, FORMATS))}, got {format!r}")
    if key is not None and format not in ("torchvision", "timm"):
        raise ValueError(f"key must be left out for {path}, whose format is {format}, got {key!r}")
    if format == "ours":
        found = _ours(path, features_only, allow_non_finite)
    else:
        raw = _raw(path, format, key) if module is None else pt2.read_module(path, module)
        parts = sort_out(path, raw, _READERS[format][1], features_only)
        if not allow_non_finite:
            check_finite(path, parts.tensors, parts.names)
        found = _joined(parts, format, features, allow_non_finite)
    if found.model.quantisation is not None:
        found.notes = [*found.notes, f"it has {found.model.quantisation}: vggfast.Engine(model, dtype='int8') runs it"]
    found.model.classes = found.extra.get("classes")
    if features is not None and found.part != _JOINED:
        raise ValueError(f"{path} holds convolutions itself: --features is for files of FC layers alone")
    if preprocessing is not None:
        found.model.preprocessing, found.origin = preprocessing, "--preprocessing"
    elif found.model.preprocessing is None and found.model.arguments["in_channels"] == 3:
        raise ValueError(
            f"{path} does not say what pixels the network takes, and nothing else does: "
            f"give --preprocessing {'|'.join(CONVENTIONS)}"
        )
    return found


_JOINED = "the FC layers, joined to the convolutions of the other file"


def _ours(path: Path, features_only: bool, allow_non_finite: bool) -> Found:
    model, extra = load_model(path, allow_non_finite=allow_non_finite)
    if features_only and model.head != "none":
        whole, preprocessing = model, model.preprocessing
        model = VGG(**{**whole.arguments, "head": "none"}, init=None).eval()
        model.features.load_state_dict(whole.features.state_dict())
        model.preprocessing = preprocessing
        model.quantisation = whole.quantisation and whole.quantisation.of_features()
        extra.pop("classes", None)
    part = "features only (no FC layers)" if model.head == "none" else "the whole network"
    return Found(model, "ours", part, "the file", extra)


def _raw(path: Path, format: str, key: str | None) -> Raw:
    module, label, package = _READERS[format]
    if format in _MESSAGES:
        check_fields(path, _MESSAGES[format])
    try:
        return importlib.import_module(f"vggfast.weights.formats.{module}").read(path, *([key] if key else []))
    except ModuleNotFoundError as error:
        source = package if format == "tf-slim" else "'vggfast[convert]'"
        raise ImportError(f"{path}: {label} files need the package {package}: pip install {source}") from error
    except (ImportError, FileNotFoundError):
        raise
    except Exception as error:
        # Each of the libraries reports a broken file by exceptions of its own.
        if str(error).startswith(str(path)):
            raise
        plain = isinstance(error, ValueError | OSError) and not isinstance(error, UnicodeError)
        said = " ".join(str(error).split()) if plain else "its parts are not what they should be"
        raise ValueError(f"{path} is no {label} file that can be read: {said[:300]}") from error


def _joined(parts: Parts, format: str, features: str | Path | None, allow_non_finite: bool) -> Found:
    """The network of a file's parts, and of the convolutions of another file where it has none."""
    part = "the whole network" if parts.has_head else "features only (no FC layers)"
    preprocessing, origin, extra = parts.raw.preprocessing, parts.raw.origin, parts.raw.extra
    scales = None
    if not parts.has_features:
        if features is None:
            raise ValueError(
                f"{parts.path} holds the FC layers alone: give a file with the convolutions, --features FILE"
            )
        # What these round first are rows, which stand as images there.
        if parts.raw.roundings is not None and parts.raw.roundings.found:
            what = "FC layers of 8 bits alone: a quantised network must have its convolutions"
            raise ValueError(f"{parts.path} has {what}")
        donor = read(features, allow_non_finite=allow_non_finite)
        parts.tensors |= {key: t for key, t in donor.model.state_dict().items() if key.startswith("features")}
        parts.names |= {key: f"{features}: {key}" for key in parts.tensors if key.startswith("features")}
        parts.config, parts.batch_norm = (donor.model.arguments[name] for name in ("config", "batch_norm"))
        part, preprocessing, origin = _JOINED, donor.model.preprocessing, donor.origin
        scales = donor.model.quantisation
        notes = donor.notes if scales is None else donor.notes[:-1]  # the last is of all its scales
        parts.notes = [*parts.notes, *(f"{features}: {note}" for note in notes)]
        if "credit" in donor.extra:
            extra["credit"] = donor.extra["credit"]
    model = build(parts)
    quantise(model, parts)
    if scales is not None:
        model.quantisation = replace(scales.of_features(), output=None)
    if model.arguments["in_channels"] == 3:
        model.preprocessing = preprocessing
    if parts.raw.dense and parts.has_head:
        model = model.to_conv_head()
    return Found(model, format, part, origin, extra, parts.notes)
