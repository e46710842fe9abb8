"""What a run takes over from the trained network that it starts from, and which runs do so by themselves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vggfast.io import WeightFile
from vggfast.preprocessing import Preprocessing
from vggfast.training.presets import preset, preset_for
from vggfast.weights.files import model_of

_SLOW = 3e-5  # the rate where the convolutions are trained too
_PREPROCESSING = {Preprocessing.caffe(): "caffe", Preprocessing.torchvision(): "torchvision"}


def suits(given: Mapping[str, Any]) -> bool:
    """Whether a run that names no preset is fine-tuning: it starts from a trained network of its own configuration.

    A deeper network that starts from A's layers is not, nor is one that goes on with all layers at another scale, nor
    one whose data have a preset.

    Args:
        given: the values of TrainConfig that are asked for.
    """
    if not given.get("init_from") or given.get("init_layers", "features") not in ("features", "body"):
        return False
    if given.get("predict", "classes") != "classes" or preset_for(given.get("data", "digits")):
        return False
    return given.get("config") in (None, _opened(given["init_from"])[0].arguments["config"])


def finetune(given: Mapping[str, Any]) -> dict[str, Any]:
    """The values of the preset "finetune" for the network that `given` starts from, without those of `given` itself.

    Raises:
        ValueError: `given` names no network.
        FileNotFoundError, ValueError: as :func:`vggfast.weights.load_model`.
    """
    if not given.get("init_from"):
        raise ValueError("the preset finetune starts from a trained network: give --init-from FILE")
    model, extra = _opened(given["init_from"])
    arguments = model.arguments
    crop = 32 * arguments["pool_size"]
    scales = extra.get("scales") or [0, round(crop * 8 / 7)]  # S = 256 for crops of 224
    values = {
        **preset("finetune"),
        **{name: arguments[name] for name in ("config", "width", "batch_norm")},
        "preprocessing": _PREPROCESSING.get(model.preprocessing, "measured"),
        "crop": crop, "scale_min": scales[1], "scale_max": scales[1],
        "init_layers": "features" if model.head == "none" else "body",
    }  # fmt: skip
    if given.get("init_layers", values["init_layers"]) != "features":
        values["hidden"] = arguments["hidden"]
    if given.get("train_layers") == "all":
        values["lr"] = _SLOW
    return values


def _opened(path: str) -> tuple[Any, dict[str, Any]]:
    """(the network without its values, what its file says beside)."""
    return model_of(WeightFile(Path(path)), empty=True)
