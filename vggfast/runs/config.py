"""Everything that defines a training run. Defaults are the paper's values, but for pixel_std and init.

A run's configuration is made of, each over the one before: these defaults, a preset (presets.py), a YAML file, the
command line. What comes out is stored with the run as config.yaml, which is itself such a file.

Source: Simonyan & Zisserman, section 3.1.
"""

from __future__ import annotations

import dataclasses
import math
import re
import reprlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vggfast.data.sources import SPECS
from vggfast.initialisation import INITS
from vggfast.io import on_one_line, shown, write_atomically
from vggfast.models import CONFIGURATIONS


def _option(default: Any, text: str, group: str, choices: Any = None) -> Any:
    return dataclasses.field(default=default, metadata={"help": text, "group": group, "choices": choices})


_POSITIVE = ("batch_size", "accumulate", "epochs", "log_every", "checkpoint_every", "keep", "crop")
_NOT_NEGATIVE = (
    "steps", "workers", "drops", "patience", "early_stop", "warmup", "lr", "momentum", "weight_decay", "colour_shift",
    "clip_norm", "seed", "low_momentum",
)  # fmt: skip
_FRACTIONS = ("label_smoothing", "ema", "dropout", "min_area")
_GROWTH = 16  # pixels by which a crop grows


@dataclass
class TrainConfig:
    """A run. Raises ValueError, naming the field, its value and what is allowed, where something does not fit."""

    data: str = _option("digits", f"training images: one of {SPECS}", "data")
    val_data: str = _option("", "validation images, in the same forms, if --data does not bring them", "data")
    crop: int = _option(224, "side of the square training crop, a multiple of 32 pixels", "data")
    scale_min: int = _option(256, "shortest side S of the rescaled training image", "data")
    scale_max: int = _option(256, "S is drawn for each image from scale-min to scale-max; equal values fix it", "data")
    min_area: float = _option(0.0, "take training crops of a random share of the image, from this one to 1, and of a "
                              "random shape, 3:4 to 4:3, resized to the crop; 0 crops at S", "data")  # fmt: skip
    grow_from: int = _option(0, "side of the crop in the first epoch, from which it grows to --crop in steps of "
                             f"{_GROWTH} pixels, and S with it; 0 keeps it", "data")  # fmt: skip
    grow_until: float = _option(0.5, "share of the epochs after which the crop has grown to --crop", "data")
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
                           "classes (the paper's SCR); or boxes, one a class (PCR). The log's top1_error and "
                           "top5_error are then the shares of boxes with an IoU of at most 0.5, and of at most 0.75",
                           "network", ("classes", "box", "boxes"))  # fmt: skip
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
                            "the paper's), along a cosine to 0, not at all (constant), or along a line to 0 after "
                            "having risen along another (one-cycle)", "optimisation",
                            ("plateau", "cosine", "constant", "one-cycle"))  # fmt: skip
    warmup: int = _option(0, "number of steps in which the learning rate first rises from 0", "optimisation")
    rise: float = _option(
        0.3, "for one-cycle: share of the steps in which the learning rate rises from 0 to --lr", "optimisation"
    )
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
    low_momentum: float = _option(0.0, "for one-cycle: momentum of SGD where the learning rate is highest, towards "
                                  "which it falls as the rate rises, and back; 0 keeps --momentum",
                                  "optimisation")  # fmt: skip
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
            setattr(self, field.name, _checked(field, getattr(self, field.name)))
        for names, least in ((_POSITIVE, 1), (_NOT_NEGATIVE, 0)):
            for name in names:
                if not least <= getattr(self, name) < math.inf:
                    raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        for name, value in vars(self).items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{name} must be finite, got {value}")
        for name in _FRACTIONS:
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 0 and less than 1, got {getattr(self, name)}")
        if self.predict != "classes" and self.label_smoothing:
            raise ValueError(f"label_smoothing must be 0 where predict is {self.predict!r}, got {self.label_smoothing}")
        self._check_cycle()
        if self.crop % 32:
            raise ValueError(f"crop must be a multiple of 32, what the five pools divide by, got {self.crop}")
        if not self.crop <= self.scale_min <= self.scale_max:
            raise ValueError(
                "crop, scale_min and scale_max must be crop <= scale_min <= scale_max, "
                f"got {self.crop}, {self.scale_min}, {self.scale_max}"
            )
        if self.grow_from and (self.grow_from % _GROWTH or not 32 <= self.grow_from <= self.crop):
            raise ValueError(
                f"grow_from must be 0, or a multiple of {_GROWTH} from 32 to the crop, {self.crop}, got "
                f"{self.grow_from}"
            )
        if not 0 < self.grow_until <= 1:
            raise ValueError(f"grow_until must be more than 0 and at most 1, got {self.grow_until}")

    def _check_cycle(self) -> None:
        if not 0 < self.rise < 1:
            raise ValueError(f"rise must be more than 0 and less than 1, got {self.rise}")
        if self.schedule != "one-cycle":
            return
        if self.warmup:
            raise ValueError(
                f"warmup must be 0 where schedule is 'one-cycle', which rises by itself, got {self.warmup}"
            )
        if self.low_momentum > self.momentum:
            raise ValueError(f"low_momentum must be at most momentum, {self.momentum}, got {self.low_momentum}")

    @property
    def pool_size(self) -> int:
        """Extent of the map that the head sees; training and dense evaluation see the same network."""
        return self.crop // 32

    @property
    def knows_its_end(self) -> bool:
        """Whether what a step does depends on how long the run is."""
        return self.schedule in ("cosine", "one-cycle") or bool(self.grow_from)

    def crop_at(self, epoch: int) -> int:
        """Side of the training crop in an epoch, from 0: each smaller one has an equal part of `grow_until`."""
        smaller = range(self.grow_from or self.crop, self.crop, _GROWTH)
        index = int(epoch * len(smaller) / (self.grow_until * self.epochs))
        return smaller[index] if index < len(smaller) else self.crop

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
        values = read_values(path)
        try:
            return cls(**{name: value for name, value in values.items() if name != "preset"})
        except ValueError as error:
            raise ValueError(f"{shown(path)}: {error}") from error


_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
_MOST = 2**63 - 1


def _checked(field: dataclasses.Field, value: Any) -> Any:
    """A field's value, where it may have it; errors as of TrainConfig."""
    expected: Any = type(field.default)
    choices = field.metadata["choices"]
    if expected is float and type(value) is int and abs(value) <= _MOST:
        value = float(value)
    if type(value) is not expected:
        raise TypeError(f"{field.name} must be {_KINDS[expected]}, got {reprlib.repr(value)}")
    if choices and value not in choices:
        raise ValueError(f"{field.name} must be one of {', '.join(choices)}, got {reprlib.repr(value)}")
    if expected is int and abs(value) > _MOST:
        raise ValueError(f"{field.name} must be at most {_MOST}, got {reprlib.repr(value)}")
    return value


def read_values(path: Path) -> dict[str, Any]:
    """The values of a YAML file: names of :class:`TrainConfig`'s fields, and `preset`.

    Raises:
        FileNotFoundError, ValueError, TypeError: no such file, not YAML, a name that is none or comes twice, or a value
            of another kind; the text names it.
    """
    name = shown(path)
    values = _parsed(path, name)
    fields = {field.name: field for field in dataclasses.fields(TrainConfig)}
    if not isinstance(values, dict):
        raise ValueError(f"{name} must hold lines such as 'lr: 0.01', and holds no values")
    if strangers := [str(key)[:40] for key in values if key not in (*fields, "preset")]:
        allowed = ", ".join(sorted([*fields, "preset"]))
        raise ValueError(f"{name} must have names among {allowed}, got {', '.join(strangers[:10])}")
    try:
        return {key: _checked(fields[key], value) if key in fields else value for key, value in values.items()}
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name}: {error}") from error


def _parsed(path: Path, name: str) -> Any:
    """What a YAML file holds. A number is one as people write it: 1e-3 is none in YAML 1.1, where 010 is 8."""
    import yaml

    class Loader(yaml.SafeLoader):
        yaml_implicit_resolvers = {  # noqa: RUF012
            first: [each for each in found if each[0].rpartition(":")[2] in ("bool", "null", "merge")]
            for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
        }

        def compose_node(self, parent: Any, index: Any) -> Any:
            event = self.peek_event()
            if isinstance(event, yaml.AliasEvent) or event.tag is not None:
                what = f"*{event.anchor}" if isinstance(event, yaml.AliasEvent) else f"!{event.tag}"
                raise yaml.YAMLError(f"a recipe has no aliases and no tags, got {what}")
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            keys = [self.construct_object(key, deep=True) for key, _ in node.value]
            if twice := [key for i, key in enumerate(keys) if key in keys[:i]]:
                raise yaml.YAMLError(f"{reprlib.repr(twice[0])} stands there twice")
            return super().construct_mapping(node, deep)

    numbers = {
        "int": r"[-+]?(0|[1-9][0-9]*)",
        "float": r"[-+]?(([0-9]+\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)",
    }
    for kind, pattern in numbers.items():
        Loader.add_implicit_resolver(f"tag:yaml.org,2002:{kind}", re.compile(f"^({pattern})$"), list("-+.0123456789"))
    try:
        return yaml.load(path.read_bytes(), Loader)
    except FileNotFoundError:
        raise FileNotFoundError(f"{name}: no such file") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(on_one_line(f"{name} is not a YAML file: {' '.join(str(error).split())[:500]}")) from error
