"""Networks from one format to another."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vggfast.preprocessing import Preprocessing
from vggfast.weights.files import save_model
from vggfast.weights.formats import Found, onnx_writer, torchvision

# By name: the suffixes that its files may have.
TARGETS = {"ours": (".safetensors",), "torchvision": (".pth", ".pt", ".safetensors"), "onnx": (".onnx",)}


def target_of(out: Path, to: str | None = None) -> str:
    """The format to write: `to`, or what the suffix says.

    Raises:
        ValueError: none of TARGETS, or a suffix of another; the text names it.
    """
    if to is None:
        to = next((name for name, suffixes in TARGETS.items() if out.suffix in suffixes), None)
    if to not in TARGETS or out.suffix not in TARGETS[to]:
        allowed = "; ".join(f"{', '.join(suffixes)} for {name}" for name, suffixes in TARGETS.items())
        raise ValueError(f"{out} must have the suffix {allowed}, got {out.suffix!r}")
    return to


def write(found: Found, out: str | Path, to: str | None = None, classes: Sequence[str] | None = None) -> str:
    """Writes a network that :func:`vggfast.weights.formats.read` gave.

    Args:
        found: the network.
        out: the file, written atomically.
        to: one of TARGETS; None tells it by the suffix of `out`.
        classes: their names, for files of ours and ONNX; None takes those of the source, where it has them.

    Returns:
        What is to be known of the written file.

    Raises:
        ValueError: the format has no such network, or the number of classes is another; the text names it.
        ImportError, OSError: no package that writes it; it could not be written.
    """
    out = Path(out)
    to = target_of(out, to)
    if to == "torchvision" and classes is not None:
        raise ValueError(f"{out} will be in torchvision's format, which cannot hold class names: leave out --classes")
    count = found.model.arguments["num_classes"]
    classes = found.extra.get("classes", []) if classes is None else list(classes)
    if classes and (found.model.head == "none" or len(classes) != count):
        has = "no classes" if found.model.head == "none" else f"{count}"
        raise ValueError(f"there are {len(classes)} names of classes, and the network has {has}")
    widened = "; its 8 bits have no place in it: weights are written as float32, and nothing is rounded"
    widened = widened if found.model.quantisation else ""
    if to == "torchvision":
        lost = [key for key in found.extra if key != "preprocessing"]
        left_out = f"; the source's {', '.join(lost)} have no place in it, and are left out" if lost else ""
        return torchvision.write(found.model, out) + left_out + widened
    extra = {**found.extra, **({"classes": classes} if classes else {})}
    if found.model.preprocessing is not None:
        extra["preprocessing"] = found.model.preprocessing.as_dict()
    if to == "onnx":
        return onnx_writer.write(found.model, out, extra) + widened
    save_model(found.model, out, extra)
    return "with its preprocessing"


def describe(preprocessing: Preprocessing | None) -> str:
    """In words, such as "BGR, 0 to 255, mean 103.939 116.779 123.68, std 1 1 1"."""
    if preprocessing is None:
        return "none"
    mean, std = (" ".join(f"{value:g}" for value in values) for values in (preprocessing.mean, preprocessing.std))
    return f"{preprocessing.order}, 0 to {preprocessing.top:g}, mean {mean}, std {std}"
