"""The command ``vggfast``: train, eval, predict, info."""

from __future__ import annotations

import argparse
import dataclasses
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vggfast import __version__, _native

if TYPE_CHECKING:
    from vggfast.training import TrainConfig

# Options that a resumed run may change: they do not touch what its steps compute.
_MAY_CHANGE = ("epochs", "steps", "workers", "log_every", "checkpoint_every")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command line; the process' exit code: 0 done, 1 an error (one line on stderr), 2 wrong usage."""
    try:
        parsed = _parser().parse_args(arguments)
        return parsed.run(parsed)
    except ModuleNotFoundError as error:
        print(f"vggfast: {error}: this command wants the extra, pip install 'vggfast[train]'", file=sys.stderr)
        return 1
    except (OSError, ValueError, TypeError, FloatingPointError, ImportError) as error:
        if os.environ.get("VGGFAST_TRACEBACK"):
            raise
        print(f"vggfast: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("vggfast: interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vggfast", description=__doc__)
    parser.add_argument("--version", action="version", version=f"vggfast {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_train(commands)
    _add_eval(commands)
    _add_predict(commands)
    info = commands.add_parser("info", help="what is installed here: versions, build, devices, instruction set")
    info.set_defaults(run=_info)
    return parser


# ---- train --------------------------------------------------------------------------------------------------------


def _add_train(commands: Any) -> None:
    from vggfast.training.config import PRESETS, TrainConfig

    parser = commands.add_parser(
        "train",
        help="train a network with the paper's recipe",
        description="Trains a network with the paper's recipe, evaluates it densely and writes a run folder: "
        "config.json, metrics.json, metrics.csv, steps.csv, curves.png, predictions.png, model.safetensors, "
        "checkpoint.pt. Defaults are the paper's; digits and tiny-imagenet scale them down.",
        epilog="example: vggfast train --data imagefolder:photos --config D --out runs/photos",
    )
    parser.add_argument("--out", metavar="DIR", type=Path, help="the run's folder (runs/<kind of data>-<config>)")
    parser.add_argument("--resume", metavar="DIR", type=Path,
                        help=f"go on with a run; may change {', '.join(map(_flag, _MAY_CHANGE))}")  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="replace the run that --out holds")
    groups: dict[str, Any] = {}
    for field in dataclasses.fields(TrainConfig):
        name = field.metadata["group"]
        group = groups.setdefault(name, None) or parser.add_argument_group(name)
        groups[name] = group
        presets = "".join(f"; {kind} {values[field.name]}" for kind, values in PRESETS.items() if field.name in values)
        text = f"{field.metadata['help']} (default {field.default}{presets})"
        if isinstance(field.default, bool):
            group.add_argument(_flag(field.name), action=argparse.BooleanOptionalAction, default=None, help=text)
        else:
            choices = field.metadata["choices"]
            group.add_argument(
                _flag(field.name),
                type=type(field.default),
                help=text,
                choices=choices,
                metavar=None if choices else "X",
            )
    parser.set_defaults(run=_train)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _train_config(parsed: argparse.Namespace) -> tuple[TrainConfig, Path]:
    """(configuration, folder) of a new run or of one to resume."""
    from vggfast.training.config import TrainConfig, preset_for

    given = {
        field.name: getattr(parsed, field.name)
        for field in dataclasses.fields(TrainConfig)
        if getattr(parsed, field.name) is not None
    }
    if parsed.resume is not None and (parsed.out is not None or parsed.overwrite):
        raise ValueError(f"--resume {parsed.resume} goes on in its own folder: --out and --overwrite are not for it")
    if parsed.resume is None:
        data = given.get("data", "digits")
        config = TrainConfig(**{**preset_for(data), **given})
        return config, parsed.out or Path("runs") / f"{data.partition(':')[0]}-{config.config}"
    stored = TrainConfig.read(parsed.resume / "config.json")
    for name, value in given.items():
        if name not in _MAY_CHANGE and value != getattr(stored, name):
            raise ValueError(
                f"{_flag(name)} is {value!r}, and the run in {parsed.resume} has {getattr(stored, name)!r}: "
                "a resumed run keeps it"
            )
    return dataclasses.replace(stored, **given), parsed.resume


def _train(parsed: argparse.Namespace) -> int:
    from vggfast.training.console import console
    from vggfast.training.finish import finish
    from vggfast.training.trainer import Trainer

    config, out = _train_config(parsed)
    trainer = Trainer(config, out, resume=parsed.resume is not None, overwrite=parsed.overwrite)
    parameters = sum(p.numel() for p in trainer.model.parameters())
    console.print(
        f"{config.config} ({parameters:,} parameters) on {config.data}: {len(trainer.train_set)} training and "
        f"{len(trainer.val_set)} validation images, {len(trainer.train_set.classes)} classes; {_native.threads()} "
        f"threads, {_native.cpu_isa()}"
    )
    if not trainer.run():
        console.print(f"stopped at step {trainer.progress.step}; go on with: vggfast train --resume {out}")
        return 130
    finish(trainer)
    return 0


# ---- eval and predict ---------------------------------------------------------------------------------------------


def _add_eval(commands: Any) -> None:
    parser = commands.add_parser(
        "eval",
        help="top-1 and top-5 error of a trained network",
        description="Evaluates densely, as the paper does: whole images, the FC layers as convolutions, the class "
        "score map averaged, image and mirror image averaged.",
        epilog="example: vggfast eval --model runs/demo/model.safetensors --protocol dense",
    )
    parser.add_argument(
        "--model", metavar="FILE", type=Path, required=True, help="a run's model.safetensors or checkpoint.pt"
    )
    parser.add_argument(
        "--data", metavar="SPEC", help="digits, imagefolder:DIR, tiny-imagenet:DIR (default: the run's)"
    )
    parser.add_argument("--split", choices=("train", "val"), default="val", help="which images (default val)")
    parser.add_argument("--protocol", choices=("single", "dense"), default="dense",
                        help="dense at one scale, or averaged over several (default dense)")  # fmt: skip
    parser.add_argument("--scales", metavar="Q", type=int, nargs="+",
                        help="shorter sides of the rescaled images (default: those of the training)")  # fmt: skip
    parser.add_argument("--no-flip", dest="flip", action="store_false", help="leave the mirror image out")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the figures there too")
    parser.set_defaults(run=_eval)


def _load_run(path: Path) -> tuple[Any, dict[str, Any]]:
    """(network, classes, preprocessing, data and scales) of a file that training wrote."""
    from vggfast.weights import load_model

    model, facts = load_model(path)
    if missing := {"classes", "preprocessing", "data", "scales"} - facts.keys():
        raise ValueError(f"{path} has weights but no {', '.join(sorted(missing))}: a file of a training run is wanted")
    return model, facts


def _eval(parsed: argparse.Namespace) -> int:
    from vggfast.data import Preprocessing, open_dataset
    from vggfast.evaluation import evaluate_dense
    from vggfast.training.console import Live, print_table
    from vggfast.training.finish import write_json

    model, facts = _load_run(parsed.model)
    data = parsed.data or facts["data"]
    images = open_dataset(data, parsed.split)
    if images.classes != facts["classes"]:
        raise ValueError(
            f"{parsed.model} knows {len(facts['classes'])} classes that are not the {len(images.classes)} of {data}"
        )
    scales = parsed.scales or (facts["scales"][1:2] if parsed.protocol == "single" else facts["scales"])
    if parsed.protocol == "single" and len(scales) != 1:
        raise ValueError(f"--scales is {scales}: the protocol 'single' wants one")
    preprocessing = Preprocessing.from_dict(facts["preprocessing"])
    with Live("evaluating", len(images)) as live:
        found, _ = evaluate_dense(model, images, preprocessing, scales, flip=parsed.flip, progress=live.to)
    print_table(
        f"{parsed.model} on {data} ({parsed.split}, {len(images)} images)",
        ("protocol", "scales Q", "top-1 error %", "top-5 error %"),
        [(parsed.protocol, " ".join(map(str, scales)), f"{found['top1']:.2f}", f"{found['top5']:.2f}")],
    )
    if parsed.json:
        write_json(
            parsed.json, {"protocol": parsed.protocol, "data": data, "scales": scales, "flip": parsed.flip, **found}
        )
    return 0


def _add_predict(commands: Any) -> None:
    parser = commands.add_parser(
        "predict",
        help="classes of image files",
        epilog="example: vggfast predict --model runs/demo/model.safetensors a.png",
    )
    parser.add_argument(
        "--model", metavar="FILE", type=Path, required=True, help="a run's model.safetensors or checkpoint.pt"
    )
    parser.add_argument("--scales", metavar="Q", type=int, nargs="+", help="as for eval")
    parser.add_argument("--top", metavar="K", type=int, default=5, help="classes to print (default 5)")
    parser.add_argument("images", metavar="IMAGE", nargs="+", type=Path)
    parser.set_defaults(run=_predict)


def _predict(parsed: argparse.Namespace) -> int:
    from vggfast.data import Preprocessing, open_image
    from vggfast.evaluation import dense

    model, facts = _load_run(parsed.model)
    classes = facts["classes"]
    if not 1 <= parsed.top <= len(classes):
        raise ValueError(f"--top is {parsed.top}: 1 to {len(classes)}, the number of classes, is wanted")
    preprocessing = Preprocessing.from_dict(facts["preprocessing"])
    for path in parsed.images:
        posteriors = dense(model, [open_image(path)], preprocessing, parsed.scales or facts["scales"])[0]
        best = posteriors.topk(parsed.top)
        print(path)
        for value, index in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            print(f"  {value:7.2%}  {classes[index]}")
    return 0


# ---- info ---------------------------------------------------------------------------------------------------------


def _info(_: argparse.Namespace) -> int:
    import torch

    rows = {
        "vggfast": __version__, "python": platform.python_version(), "system": platform.platform(),
        "torch": torch.__version__, "torch CUDA": torch.version.cuda or "not built",
        "threads": str(torch.get_num_threads()),
        "GPUs": ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())) or "none",
    }  # fmt: skip
    problem = None
    try:
        core = _native.load()
        rows |= {f"module: {name}": value for name, value in core.build_info()}
        rows |= {
            "instruction sets here": ", ".join(_native.cpu_isas()),
            "instruction set in use": _native.cpu_isa(),
            "OpenMP runtime": core.openmp_runtime(),
        }
    except (ImportError, ValueError) as error:
        problem = error
    for name, value in rows.items():
        print(f"{name:<30} {value}")
    if problem is not None:
        print(f"\n{problem}")
    return 0 if problem is None else 1
