"""Everything that defines a training run. Defaults are the paper's values, but for pixel_std and init.

A run's configuration is made of, each over the one before: these defaults, a preset (presets.py), a YAML file, the
command line. What comes out is stored with the run as config.yaml, which is itself such a file.

Source: Simonyan & Zisserman, section 3.1.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vggfast.data.sources import SPECS
from vggfast.io import write_atomically
from vggfast.models import CONFIGURATIONS, INITS


def _option(default: Any, text: str, group: str, choices: Any = None) -> Any:
    return dataclasses.field(default=default, metadata={"help": text, "group": group, "choices": choices})


_POSITIVE = ("batch_size", "accumulate", "epochs", "log_every", "checkpoint_every", "keep", "crop")
_NOT_NEGATIVE = (
    "steps", "workers", "drops", "patience", "early_stop", "warmup", "lr", "momentum", "weight_decay", "colour_shift",
    "clip_norm", "seed",
)  # fmt: skip
_FRACTIONS = ("label_smoothing", "ema", "dropout")


@dataclass
class TrainConfig:
    """A run. Raises ValueError, naming the field, its value and what is allowed, where something does not fit."""

    data: str = _option("digits", f"training images: one of {SPECS}", "data")
    val_data: str = _option("", "validation images, in the same forms, if --data does not bring them", "data")
    crop: int = _option(224, "side of the square training crop, a multiple of 32 pixels", "data")
    scale_min: int = _option(256, "shortest side S of the rescaled training image", "data")
    scale_max: int = _option(256, "S is drawn for each image from scale-min to scale-max; equal values fix it", "data")
    flip: bool = _option(True, "mirror each training image with a probability of 1/2", "data")
    colour_shift: float = _option(0.1, "standard deviation of the PCA colour shift; 0 turns it off", "data")
    pixel_std: bool = _option(
        True, "divide by the pixels' standard deviation; --no-pixel-std only subtracts the mean", "data"
    )
    preprocessing: str = _option("measured", "how images are prepared: measured (RGB minus the mean of the training "
                                 "images, divided as --pixel-std says), or as published weights need them: caffe (BGR "
                                 "minus a mean, for the authors' and Keras' weights), torchvision", "data",
                                 ("measured", "caffe", "torchvision"))  # fmt: skip
    workers: int = _option(2, "processes of each rank that read images; batches are the same for any number", "data")
    on_bad_image: str = _option("fail", "at an image that does not decode: stop the run (fail), or count it and "
                                "take another in its place (skip)", "data", ("fail", "skip"))  # fmt: skip

    config: str = _option("A", "configuration of the paper", "network", tuple(CONFIGURATIONS))
    width: float = _option(1.0, "factor of the number of channels of every convolution", "network")
    hidden: int = _option(4096, "width of the two hidden FC layers", "network")
    batch_norm: bool = _option(False, "batch norm after each convolution (not in the paper); under several ranks each "
                               "normalises with its own images", "network")  # fmt: skip
    dropout: float = _option(0.5, "dropout after the first two FC layers", "network")
    init: str = _option("glorot", "initialisation of the weights", "network", tuple(INITS))
    init_from: str = _option("", "file of a trained network from whose layers this one starts", "network")
    init_layers: str = _option("ends", "which layers --init-from gives: 'ends', the first four convolutions and the FC "
                               "layers, as the paper's deeper nets start from A; 'features', every convolution; "
                               "'body', all layers but the last; or 'all'", "network",
                               ("ends", "features", "body", "all"))  # fmt: skip
    predict: str = _option("classes", "what the last layer gives: scores of the classes; the object's box, one for all "
                           "classes (the paper's SCR); or boxes, one a class (PCR). The log's top1 and top5 are then "
                           "the shares of boxes with an IoU of at most 0.5, and of at most 0.75", "network",
                           ("classes", "box", "boxes"))  # fmt: skip
    train_layers: str = _option("all", "whether all layers are trained, or the FC layers alone", "network",
                                ("all", "fc"))  # fmt: skip

    batch_size: int = _option(256, "images in a step, over all ranks together", "optimisation")
    accumulate: int = _option(
        1, "number of parts in which each rank computes its images of a step, to save memory", "optimisation"
    )
    epochs: int = _option(74, "passes over the training images", "optimisation")
    steps: int = _option(0, "stop after so many steps; 0 stops after --epochs", "optimisation")
    optimiser: str = _option("sgd", "SGD with momentum (the paper), Adam or AdamW", "optimisation",
                             ("sgd", "adam", "adamw"))  # fmt: skip
    lr: float = _option(1e-2, "first learning rate", "optimisation")
    schedule: str = _option("plateau", "how the learning rate falls: divided by 10 when validation stalls (plateau, "
                            "the paper's), along a cosine to 0, or not at all (constant)", "optimisation",
                            ("plateau", "cosine", "constant"))  # fmt: skip
    warmup: int = _option(0, "number of steps in which the learning rate first rises from 0", "optimisation")
    drops: int = _option(3, "for plateau: how many times the learning rate is divided by 10", "optimisation")
    patience: int = _option(
        3,
        "for plateau: the learning rate falls after more than so many epochs without a better validation top-1",
        "optimisation",
    )
    early_stop: int = _option(
        0, "stop after so many epochs without a better validation top-1; 0 never stops", "optimisation"
    )
    momentum: float = _option(0.9, "momentum of SGD", "optimisation")
    weight_decay: float = _option(5e-4, "factor of the L2 penalty (for AdamW, of the decoupled decay)", "optimisation")
    decay_all: bool = _option(
        True, "decay biases and batch norm too; --no-decay-all decays the weights alone", "optimisation"
    )
    label_smoothing: float = _option(0.0, "share of the label's probability spread over all classes", "optimisation")
    clip_norm: float = _option(
        0.0, "largest norm of the gradient, which is clipped to it; 0 does not clip", "optimisation"
    )
    ema: float = _option(0.0, "decay per step of a running average of the weights, which is then validated and saved; "
                         "0 keeps none", "optimisation")  # fmt: skip
    precision: str = _option("fp32", "fp32, or autocast to bf16, or to fp16 with loss scaling", "optimisation",
                             ("fp32", "bf16", "fp16"))  # fmt: skip
    channels_last: bool = _option(False, "keep weights in torch's channels_last layout", "optimisation")
    seed: int = _option(0, "seed of weights, order of images, augmentation and dropout", "optimisation")

    device: str = _option("auto", "where to train; auto takes a GPU for each rank if there are any", "run",
                          ("auto", "cpu", "cuda"))  # fmt: skip
    compress: bool = _option(False, "average the gradients of the ranks in bfloat16", "run")
    log_every: int = _option(10, "number of steps that a row of steps.csv is about", "run")
    checkpoint_every: int = _option(200, "number of steps between checkpoints, beside the one after each epoch", "run")
    keep: int = _option(2, "number of checkpoints to keep", "run")

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, expected = getattr(self, field.name), type(field.default)
            if expected is float and type(value) is int:
                value = float(value)
                setattr(self, field.name, value)
            if type(value) is not expected:
                raise TypeError(f"{field.name} must be {_kind(expected)}, got {value!r}")
            choices = field.metadata["choices"]
            if choices and value not in choices:
                raise ValueError(f"{field.name} must be one of {', '.join(choices)}, got {value!r}")
        for names, least in ((_POSITIVE, 1), (_NOT_NEGATIVE, 0)):
            for name in names:
                if not least <= getattr(self, name) < math.inf:
                    raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        for name in _FRACTIONS:
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 0 and less than 1, got {getattr(self, name)}")
        if self.predict != "classes" and self.label_smoothing:
            raise ValueError(f"label_smoothing must be 0 where predict is {self.predict!r}, got {self.label_smoothing}")
        if self.crop % 32:
            raise ValueError(f"crop must be a multiple of 32, what the five pools divide by, got {self.crop}")
        if not self.crop <= self.scale_min <= self.scale_max:
            raise ValueError(
                "crop, scale_min and scale_max must be crop <= scale_min <= scale_max, "
                f"got {self.crop}, {self.scale_min}, {self.scale_max}"
            )

    @property
    def pool_size(self) -> int:
        """Extent of the map that the head sees; training and dense evaluation see the same network."""
        return self.crop // 32

    def test_scales(self) -> tuple[int, int, int]:
        """The paper's three test scales Q: around a fixed S by S / 8 (its 32 of 256), or across the range of S."""
        low, high = self.scale_min, self.scale_max
        if low == high:
            return max(self.crop, low - low // 8), low, low + low // 8
        return low, (low + high) // 2, high

    def write(self, path: Path) -> None:
        """Writes the YAML file that `read` reads."""
        import yaml

        text = yaml.safe_dump(dataclasses.asdict(self), sort_keys=False)
        write_atomically(path, lambda temporary: temporary.write_text(text))

    @classmethod
    def read(cls, path: Path) -> TrainConfig:
        """The configuration of a run.

        Raises:
            FileNotFoundError, ValueError, TypeError: no such file, or one that is no configuration; the text names it.
        """
        if not path.is_file():
            raise FileNotFoundError(f"{path}: not there, so there is no run to resume")
        return cls(**read_values(path))


def _kind(expected: type) -> str:
    return {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}[expected]


def read_values(path: Path) -> dict[str, Any]:
    """The values of a YAML file: names of :class:`TrainConfig`'s fields, and `preset`.

    Raises:
        FileNotFoundError, ValueError: no such file, not YAML, or a name that is none; the text names it.
    """
    import yaml

    try:
        values = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a YAML file: {' '.join(str(error).split())}") from error
    names = {field.name for field in dataclasses.fields(TrainConfig)} | {"preset"}
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold lines such as 'lr: 0.01', and holds no values")
    if strangers := [str(name) for name in values if name not in names]:
        raise ValueError(f"{path} must have names among {', '.join(sorted(names))}, got {', '.join(strangers)}")
    # YAML 1.1 reads 1e-3 as a text; a number is meant.
    floats = {field.name for field in dataclasses.fields(TrainConfig) if isinstance(field.default, float)}
    return {name: _number(value) if name in floats else value for name, value in values.items()}


def _number(value: Any) -> Any:
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value
