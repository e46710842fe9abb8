"""``vggfast train``: a run, or what initialisations do in its first steps; on one process or torchrun's many."""

from __future__ import annotations

import argparse
import dataclasses
import os
import shlex
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vggfast import _native
from vggfast.cli.errors import UsageError, tell
from vggfast.cli.help import describe
from vggfast.cli.options import parse_duration
from vggfast.cli.recipe import DEPTHS, MAY_CHANGE, Order, diagnosis, flag, order
from vggfast.initialisation import INITS
from vggfast.runs.config import TrainConfig
from vggfast.training.presets import PRESETS

if TYPE_CHECKING:
    from vggfast.training.trainer import Trainer

_DESCRIPTION = (
    "Trains a network with the recipe of Simonyan & Zisserman, evaluates it densely, and writes everything into a "
    "folder: config.yaml, checkpoints, the best weights (model.safetensors), metrics, curves and a report.\n\n"
    "The recipe starts from the defaults. A preset replaces some of them, then a YAML file (--recipe), then the "
    "options of the command line. The defaults stand in brackets, followed by those of the presets digits and "
    "tiny-imagenet where they differ. They are the paper's values except for --pixel-std and --init."
)

_EXAMPLES = (
    "vggfast train --data imagefolder:photos --config D --out runs/photos",
    "torchrun --nproc-per-node=8 -m vggfast train --preset paper-D --data imagenet:DIR",
    "torchrun --nproc-per-node=8 --max-restarts=3 -m vggfast train --recipe mine.yaml --resume auto",
)

# Short forms of options, as other replications have them.
_SHORT = {"batch_size": ["-b"], "epochs": ["-e"], "early_stop": ["-es"], "lr": ["-lr"]}
_METAVARS = {"data": "SPEC", "val_data": "SPEC", "init_from": "FILE"}
_SMALL = ("digits", "tiny-imagenet")
OUT_OF_TIME = 75  # exit code: the run is not finished, and the same command with --resume auto goes on


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "vggfast train [options]"
    describe(parser, _DESCRIPTION, *_EXAMPLES)
    _add_folder(parser.add_argument_group("folder"))
    _add_recipe(parser.add_argument_group("recipe"))
    groups: dict[str, Any] = {}
    for field in dataclasses.fields(TrainConfig):
        name = field.metadata["group"]
        if name not in groups:
            groups[name] = parser.add_argument_group(name)
        _add_field(groups[name], field)
    _add_diagnosis(parser.add_argument_group("initialisations compared"))
    _add_replication(parser.add_argument_group("flags of another replication, beside -b, -e, -es and -lr"))


def _add_folder(group: Any) -> None:
    group.add_argument("--out", metavar="DIR", type=Path, help="folder of the run [runs/<kind of data>-<config>]")
    group.add_argument("--overwrite", action="store_true", help="replace the run that is in the folder already")
    group.add_argument(
        "--resume",
        metavar="DIR|auto",
        help=f"continue the run in DIR; only {', '.join(map(flag, MAY_CHANGE))} may be given anew, but --epochs and "
        "--steps not where the rate or the crops depend on them. auto: continue the run in --out if there is one, else "
        "start it",
    )
    group.add_argument("--stop-after", metavar="TIME", type=parse_duration,
                       help="such as 90m or 8h: the first step that begins later is the last of the session, which "
                       f"ends with a checkpoint and exit code {OUT_OF_TIME}; --resume goes on from it")  # fmt: skip


def _add_recipe(group: Any) -> None:
    group.add_argument(
        "--preset",
        metavar="NAME",
        choices=(*PRESETS, "none"),
        help=f"start from a preset: {', '.join(PRESETS)}, or none [the one that suits the kind of data]",
    )
    group.add_argument(
        "--recipe",
        metavar="FILE",
        type=Path,
        help="a YAML file with any of the options below, such as 'batch_size: 64', and 'preset'",
    )


def _add_field(group: Any, field: dataclasses.Field) -> None:
    """An option of TrainConfig; None where it is not given."""
    names = [*_SHORT.get(field.name, []), flag(field.name)]
    shown = [_text(field.default)] + [f"{kind} {_text(PRESETS[kind][field.name])}" for kind in _SMALL
                                      if PRESETS[kind].get(field.name, field.default) != field.default]  # fmt: skip
    text = field.metadata["help"] + (f" [{'; '.join(shown)}]" if field.default != "" else "")
    if isinstance(field.default, bool):
        group.add_argument(*names, action=argparse.BooleanOptionalAction, default=None, help=text)
        return
    choices = field.metadata["choices"]
    metavar = None if choices else _METAVARS.get(field.name) or {int: "N", float: "X"}[type(field.default)]
    group.add_argument(*names, dest=field.name, type=type(field.default), choices=choices, metavar=metavar, help=text)


def _text(value: Any) -> str:
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else f"{value}"


def _add_diagnosis(group: Any) -> None:
    group.add_argument(
        "--diagnose-init",
        metavar="INIT",
        nargs="*",
        choices=tuple(INITS),
        help="instead of training a network, run the first steps from each of these initialisations and write their "
        "logits, losses and gradients into --out [runs/init-<config>]; without a name, from the "
        "one that --init names, or else from all",
    )
    group.add_argument("--diagnose-steps", metavar="N", type=int, help="number of steps from each initialisation [200]")


def _add_replication(group: Any) -> None:
    depths = ", ".join(f"{depth} is {config}" for depth, config in DEPTHS.items())
    group.add_argument("-d", type=int, choices=tuple(DEPTHS), help=f"number of weight layers: {depths}")
    group.add_argument("-c11", action="store_true", help="configuration C: 16 layers, some of them 1x1 convolutions")
    group.add_argument(
        "-i",
        metavar="INIT",
        help="name of an initialisation (--init), or a weight file (--init-from FILE --init-layers all)",
    )
    group.add_argument(
        "-t",
        metavar="DIR",
        help="training images: a folder with a folder for each class, or any form that --data takes",
    )
    group.add_argument("-v", metavar="DIR", help="validation images, in the same forms")


def run(parsed: argparse.Namespace) -> int:
    if parsed.diagnose_init is not None:
        return _diagnose(parsed)
    if parsed.diagnose_steps is not None:
        raise UsageError(f"--diagnose-steps is {parsed.diagnose_steps}, and there is no --diagnose-init")
    return _train(order(parsed), parsed.overwrite, parsed.stop_after)


def _train(asked: Order, overwrite: bool, stop_after: float | None) -> int:
    from vggfast.cli.training_bar import TrainingBar
    from vggfast.console import ProgressBars, print_table, say
    from vggfast.distributed import DistributedContext
    from vggfast.tasks import final_eval, task_of
    from vggfast.training.trainer import Trainer

    with DistributedContext.start(asked.config.device) as context:
        # With --resume auto, a slower rank on another machine may see the folder otherwise.
        asked = context.of_main(asked)
        goes_on = asked.resume or (overwrite and _overwritten(asked))
        task = task_of(asked.config)
        trainer = Trainer(
            asked.config, task, asked.out, context, resume=goes_on, overwrite=overwrite and not goes_on,
            observer=TrainingBar(task.error_names, quiet=not context.main), stop_after=stop_after,
        )  # fmt: skip
        if context.main:
            _announce(asked, trainer, context.size)
        if not trainer.run():
            if context.main:
                when = f" after {stop_after:g} s" if trainer.out_of_time else ""
                _tell_stopped(f"stopped{when} at step {trainer.progress.step}; go on with", asked)
            if trainer.out_of_time:
                return OUT_OF_TIME
            return 128 + (trainer.stop_signal or signal.SIGTERM)
        try:
            if context.main:
                say("trained; the best weights are evaluated, and the report is written")
            with ProgressBars(quiet=not context.main) as bars:
                final = final_eval(trainer, bars)
        except KeyboardInterrupt:
            if context.main:
                _tell_stopped("trained, and stopped in the final evaluation; evaluate with", asked)
            raise
        if final is not None:
            print_table(final.title, final.columns, final.rows)
            for path, what in final.files.items():
                say(f"  {path}  {what}")
            for text in final.problems:
                tell(f"warning: {text}")
    return 0


def _tell_stopped(text: str, asked: Order) -> None:
    print(f"{text}: vggfast train --resume {shlex.quote(str(asked.out))}", flush=True)


def _overwritten(asked: Order) -> bool:
    """Whether torchrun has restarted this command, and the run in the folder is its own."""
    stored = asked.out / "config.yaml"
    restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0
    return restarted and stored.is_file() and TrainConfig.read(stored) == asked.config


_FEW_STEPS = 100  # of a whole run: too few for most networks to learn anything


def _announce(asked: Order, trainer: Trainer, processes: int) -> None:
    config = asked.config
    parameters = sum(p.numel() for p in trainer.model.parameters())
    if asked.note:
        print(asked.note)
    print(
        f"{config.config} ({parameters:,} parameters) on {config.data}: {len(trainer.train_set)} training and "
        f"{len(trainer.val_set)} validation images, {len(trainer.train_set.classes)} classes; "
        f"{f'{processes} processes, ' if processes > 1 else ''}{_native.threads()} threads, {_native.cpu_isa()}",
        flush=True,
    )
    images, small = len(trainer.train_set), min(32, config.batch_size)
    if not config.steps and trainer.total_steps < _FEW_STEPS and small < config.batch_size:
        tell(
            f"warning: {images} training images in batches of {config.batch_size} make {trainer.total_steps} steps in "
            f"{config.epochs} epochs, in which a network may learn nothing: --batch-size {small} makes "
            f"{config.epochs * -(-images // small)}"
        )


def _diagnose(parsed: argparse.Namespace) -> int:
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise UsageError("--diagnose-init is for one process: call it without torchrun")
    config, inits, out = diagnosis(parsed)
    from vggfast.console import ProgressBars, print_table, say
    from vggfast.report.initialisation import layer_figure, step_figure
    from vggfast.training.diagnosis import diagnose, verdicts

    steps = 200 if parsed.diagnose_steps is None else parsed.diagnose_steps
    with ProgressBars() as bars:
        result = diagnose(config, inits, out, steps, progress=bars, tell=say)
    step_figure(result, out / "init-steps.png")
    layer_figure(result, out / "init-layers.png")
    print_table(f"{config.config} on {config.data}, lr {config.lr:g}", *verdicts(result))
    return 0
