"""What an evaluation of localisation is told in: a table, a dictionary for JSON, and what a training ends with."""

from __future__ import annotations

import functools
from typing import Any

from vggfast.console import ProgressBars, print_table, say
from vggfast.environment import environment
from vggfast.io import write_json
from vggfast.localisation.evaluation import Error, Evaluation, evaluate
from vggfast.runs.summary import summary
from vggfast.weights import load_model

_ROWS = {
    "true_class": "true class, centre crop", "true_class_mean_box": "true class, the mean box",
    "full": "five classes and boxes, dense", "full_mean_box": "five classes, the mean box",
    "classes": "five classes, any box",
}  # fmt: skip


def _errors(evaluation: Evaluation) -> dict[str, Error]:
    found = {name: getattr(evaluation, name) for name in _ROWS}
    return {name: error for name, error in found.items() if error is not None}


def as_dict(evaluation: Evaluation) -> dict[str, Any]:
    """For JSON: images, threshold, and by protocol the error in per cent with its 95 % interval."""
    return {
        "images": evaluation.n, "threshold": evaluation.threshold,
        "errors": {
            name: {"percent": error.percent, "interval": list(error.interval())}
            for name, error in _errors(evaluation).items()
        },
    }  # fmt: skip


def error_table(title: str, evaluation: Evaluation) -> tuple[str, tuple[str, ...], list[tuple[str, ...]]]:
    """(title, columns, rows) of an evaluation, in words."""
    rows: list[tuple[str, ...]] = []
    for name, error in _errors(evaluation).items():
        low, high = error.interval()
        rows.append((_ROWS[name], f"{error.percent:.2f}", f"{low:.2f} to {high:.2f}"))
    columns = (f"right: IoU > {evaluation.threshold:g}", "error %", "95 % interval")
    return f"{title}, {evaluation.n} images", columns, rows


def finish(trainer: Any) -> None:
    """Evaluates a run's best network by the protocol of the true class; writes metrics.json, prints a table; all of it
    on the first rank.

    Args:
        trainer: as of :func:`vggfast.training.finish.finish`.
    """
    if not trainer.context.main:
        return
    out, config, images = trainer.out, trainer.config, trainer.val_set
    model, metadata = load_model(out / "model.safetensors")
    with ProgressBars() as bars:
        found = evaluate(
            model.to(trainer.context.device), images, scale=config.test_scales()[1], mean_box=metadata["mean_box"],
            progress=functools.partial(bars, "true class"),
        )  # fmt: skip
    figures = summary(trainer.progress.epochs)
    figures["best_epoch"] = figures.pop("best")["epoch"]
    computed_with = environment(trainer.context.size, trainer.context.device)
    write_json(out / "metrics.json", {**figures, "localisation": as_dict(found), "environment": computed_with})
    print_table(*error_table(f"{config.config} on {config.data}, {figures['train_seconds']:.0f} s of training", found))
    say(f"  {out / 'metrics.json'}  these figures")
    say(f"  {out / 'model.safetensors'}  the best weights, for vggfast localise")
