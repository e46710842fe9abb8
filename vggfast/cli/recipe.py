"""What a command line asks `vggfast train` for: defaults < preset < YAML file < command line."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vggfast.cli.errors import UsageError
from vggfast.data.sources import KINDS
from vggfast.initialisation import INITS
from vggfast.runs.config import TrainConfig, read_values
from vggfast.training.finetuning import finetune, suits
from vggfast.training.presets import preset, preset_for, scale_of, starting_scale

# Options that a resumed run may change: they do not touch what its steps compute.
MAY_CHANGE = ("epochs", "steps", "workers", "log_every", "checkpoint_every", "keep", "device")
# Configurations by number of weight layers. C has 16 too; -c11 says so.
DEPTHS = {11: "A", 13: "B", 16: "D", 19: "E"}
_FROM_A = ("paper-B", "paper-C", "paper-D", "paper-E")


@dataclass(frozen=True)
class Order:
    """A run to do.

    Attributes:
        config, out: its configuration and folder.
        resume: whether it goes on with the run that the folder holds.
        note: a line to print first; "" for none.
    """

    config: TrainConfig
    out: Path
    resume: bool = False
    note: str = ""


def flag(name: str) -> str:
    """The option of a field of TrainConfig."""
    return "--" + name.replace("_", "-")


def order(parsed: argparse.Namespace) -> Order:
    """The run that the options of `vggfast train` ask for.

    Raises:
        UsageError: options that contradict each other.
        FileNotFoundError, ValueError, TypeError: a value or a file that does not fit; the text names it.
    """
    name, given = _given(parsed)
    if parsed.resume not in (None, "auto"):
        if parsed.out is not None or parsed.overwrite:
            raise UsageError(f"--resume {parsed.resume} continues in its own folder: leave out --out and --overwrite")
        return _resumed(Path(parsed.resume), given)
    if parsed.resume == "auto" and parsed.overwrite:
        raise UsageError("--resume auto keeps the run that --overwrite would replace: give only one of them")
    config = _new(name, given)
    out = parsed.out or Path("runs") / f"{config.data.partition(':')[0]}-{config.config}{scale_of(name)}"
    if parsed.resume == "auto" and (out / "config.yaml").is_file():
        return _resumed(out, given)
    _check_start(name, config)
    return Order(config, out, note=_note(name, config))


def diagnosis(parsed: argparse.Namespace) -> tuple[TrainConfig, list[str], Path]:
    """(configuration, initialisations, folder) of `--diagnose-init`. Raises as `order` does."""
    if parsed.resume is not None or parsed.overwrite or parsed.stop_after is not None:
        raise UsageError("--diagnose-init trains no network: leave out --resume, --overwrite and --stop-after")
    name, given = _given(parsed)
    config = _new(name, given)
    if config.predict != "classes":
        raise UsageError(f"--diagnose-init is for networks that predict classes: leave out --predict {config.predict}")
    inits = parsed.diagnose_init or ([config.init] if "init" in given else list(INITS))
    return config, inits, parsed.out or Path("runs") / f"init-{config.config}"


def _given(parsed: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """(the preset's name or "", every value that preset, file and command line give by name)."""
    file = read_values(parsed.recipe) if parsed.recipe else {}
    name = str(parsed.preset or file.get("preset", ""))
    given = {field: value for field, value in file.items() if field != "preset"} | _typed(parsed)
    if name == "finetune" or (not name and suits(given)):
        return "finetune", finetune(given) | given
    return name, given if name in ("", "none") else preset(name) | given


def _typed(parsed: argparse.Namespace) -> dict[str, Any]:
    """The values on the command line itself."""
    fields = [field.name for field in dataclasses.fields(TrainConfig)]
    values = {name: getattr(parsed, name) for name in fields if getattr(parsed, name) is not None}
    for option, name, value in _replicated(parsed):
        if values.setdefault(name, value) != value:
            raise UsageError(
                f"{option} means {flag(name)} {value}, and {flag(name)} is {values[name]}: give only one of them"
            )
    return values


def _replicated(parsed: argparse.Namespace) -> Iterator[tuple[str, str, Any]]:
    """(option, field, value) of the flags that another replication has."""
    if parsed.c11:
        if parsed.d not in (None, 16):
            raise UsageError(f"-d must be 16 with -c11, the net of 16 layers with 1x1 convolutions, got {parsed.d}")
        yield "-c11", "config", "C"
    elif parsed.d is not None:
        yield f"-d {parsed.d}", "config", DEPTHS[parsed.d]
    if parsed.i in INITS:
        yield f"-i {parsed.i}", "init", parsed.i
    elif parsed.i is not None:
        if not Path(parsed.i).is_file():
            raise ValueError(f"-i must be a weight file or one of {', '.join(INITS)}, got {parsed.i!r}")
        yield f"-i {parsed.i}", "init_from", parsed.i
        yield f"-i {parsed.i}", "init_layers", "all"
    for option, name, value in (("-t", "data", parsed.t), ("-v", "val_data", parsed.v)):
        if value is not None:
            yield f"{option} {value}", name, _spec(value)


def _spec(text: str) -> str:
    """A folder as a data set of class folders; any other form of data set as it is."""
    if Path(text).is_dir():
        return f"imagefolder:{text}"
    return text if ":" in text or text in KINDS else f"imagefolder:{text}"


def _new(name: str, given: dict[str, Any]) -> TrainConfig:
    data, predict = (given.get(field, getattr(TrainConfig, field)) for field in ("data", "predict"))
    suited = preset_for(data, predict) if not name else ""
    return TrainConfig(**({**preset(suited), **given} if suited else given))


def _resumed(out: Path, given: dict[str, Any]) -> Order:
    stored = TrainConfig.read(out / "config.yaml")
    fixed = ("epochs", "steps") if stored.knows_its_end else ()
    for name, value in given.items():
        if (name not in MAY_CHANGE or name in fixed) and value != getattr(stored, name):
            why = ", because the rate or the crops of its steps depend on it" if name in fixed else ""
            raise ValueError(
                f"{flag(name)} is {value!r}, and the run in {out} has {getattr(stored, name)!r}: a resumed run keeps "
                f"it{why}"
            )
    return Order(dataclasses.replace(stored, **given), out, resume=True)


def _check_start(name: str, config: TrainConfig) -> None:
    if config.init_layers not in ("all", "body") or config.init_from:
        return
    if scale := starting_scale(name):
        raise ValueError(f"{name} goes on from the net of S = {scale}: give --init-from RUN/model.safetensors")
    raise ValueError(
        f"init_layers is {config.init_layers!r}, and init_from names no net to take them from: give --init-from FILE"
    )


def _note(name: str, config: TrainConfig) -> str:
    if name == "finetune":
        trained = "its FC layers alone" if config.train_layers == "fc" else "all layers"
        return (
            f"note: {config.init_layers} of {config.init_from}, {trained} are trained: the preset finetune, for small "
            "folders; --preset none takes the paper's recipe"
        )
    if name not in _FROM_A or config.init_from:
        return ""
    return (
        f"note: the paper started {config.config}'s first four convolutions and its FC layers from a trained A, and "
        "--init-from RUN-OF-A/model.safetensors does so. Glorot's initialisation needs no such start, the authors add."
    )
