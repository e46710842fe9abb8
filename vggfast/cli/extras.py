"""The packages that a command may need beside torch and numpy."""

from __future__ import annotations

from typing import NamedTuple


class Optional(NamedTuple):
    package: str
    extra: str  # of pyproject.toml's that brings it; "" where none does
    purpose: str


# By module.
OPTIONAL = {
    "rich": Optional("rich", "train", "train: progress and tables"),
    "PIL": Optional("Pillow", "train", "train: reads images"),
    "safetensors": Optional("safetensors", "train", "train: weight files"),
    "yaml": Optional("PyYAML", "train", "train: recipes"),
    "matplotlib": Optional("matplotlib", "train", "train: curves"),
    "jinja2": Optional("Jinja2", "train", "train: report"),
    "sklearn": Optional("scikit-learn", "train", "data digits"),
    "datasets": Optional("datasets", "hf", "data hf:NAME"),
    "tensorboard": Optional("tensorboard", "", "logs for TensorBoard"),
    "onnx": Optional("onnx", "convert", "convert, weights get"),
    "h5py": Optional("h5py", "convert", "convert: Keras"),
    "google": Optional("protobuf", "convert", "convert: Caffe"),
    "scipy": Optional("scipy", "convert", "convert: MatConvNet"),
    "tensorflow": Optional("tensorflow", "", "convert: TF-slim"),
}


def advice(command: str, error: Exception) -> str | None:
    """What to install for a command that ended with the error; None where it is of another kind."""
    absent = error.__cause__ if isinstance(error, ImportError) and error.__cause__ else error
    if not isinstance(absent, ModuleNotFoundError) or (absent.name or "").startswith("vggfast"):
        return None
    if absent is not error:
        return str(error)  # who raised it says what to install
    needed = OPTIONAL.get((absent.name or "").partition(".")[0])
    if needed is None:
        return None
    source = f"'vggfast[{needed.extra}]'" if needed.extra else needed.package
    return f"{command} needs {needed.package}: pip install {source}"
