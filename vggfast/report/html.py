"""The report of a run: one HTML file that needs no other, made of the run's files."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vggfast._progress import duration
from vggfast.report.figures import curves
from vggfast.report.page import embedded, error_and_accuracy, write_page
from vggfast.runs.config import TrainConfig
from vggfast.runs.error_names import read_results
from vggfast.runs.log import read_csv
from vggfast.runs.summary import read_events, summary

_MOST_EVENTS = 50
_IMAGES = ("curves", "confusion", "predictions")
# Heading and format of each column of the table of epochs.
_EPOCH_CELLS = {
    "epoch": ("epoch", "d"), "step": ("step", ",d"), "lr": ("rate", ".3g"),
    "train_loss": ("train loss", ".3f"), "train_top1_error": ("train top-1 error", ".2f"),
    "train_top5_error": ("train top-5 error", ".2f"), "val_loss": ("val. loss", ".3f"),
    "val_top1_error": ("val. top-1 error", ".2f"), "val_top5_error": ("val. top-5 error", ".2f"),
    "seconds": ("seconds", ",.1f"), "core_seconds": ("core seconds", ",.1f"),
    "images_per_s": ("images/s", ",.0f"), "data_wait": ("data wait", ".1%"),
    "bad_images": ("bad images", ",d"),
}  # fmt: skip


def write_report(out: str | Path) -> Path:
    """Writes report.html and curves.png into the folder of a run, finished or not, from the files there.

    Reads config.yaml, steps.csv, metrics.csv, log.jsonl, metrics.json, confusion.png and predictions.png; all but the
    first may be missing.

    Returns:
        The report's path.

    Raises:
        FileNotFoundError: the folder holds no run.
        ValueError, TypeError: a file is not what training writes; the text names it.
        OSError: a file could not be written; the text names it.
    """
    out = Path(out)
    if not (out / "config.yaml").is_file():
        raise FileNotFoundError(f"{out} holds no run: config.yaml is not there")
    config = TrainConfig.read(out / "config.yaml")
    if config.predict != "classes":
        raise ValueError(
            f"{out} holds a run that predicts {config.predict!r}: reports are of those that predict classes"
        )
    steps, epochs = read_csv(out / "steps.csv"), read_csv(out / "metrics.csv")
    metrics, events = read_results(out / "metrics.json"), read_events(out / "log.jsonl")
    problem = None
    try:
        if steps or epochs:
            curves(steps, epochs, out / "curves.png")
    except OSError as error:  # the page is for the rest
        problem = error
    found = summary(epochs)
    changed, unchanged = _options(config)
    page = write_page(
        out / "report.html",
        "run.html",
        title=f"VGG {config.config} on {config.data}",
        state=_state(steps, epochs, metrics),
        headline=_headline(steps, found),
        evaluation=_evaluation(config, metrics),
        images={name: embedded(out / f"{name}.png") for name in _IMAGES},
        curves_alt=_curves_alt(steps, epochs),
        confused=metrics.get("confused", []),
        epoch_names=[heading for heading, _ in _EPOCH_CELLS.values()],
        epochs=[_epoch_cells(row, row is found["best"]) for row in epochs],
        changed=changed,
        unchanged=unchanged,
        environment=_environment(metrics, events),
        events=[_event(row) for row in events if "environment" not in row][-_MOST_EVENTS:],
        earlier_events=max(0, sum("environment" not in row for row in events) - _MOST_EVENTS),
    )
    if problem is not None:
        raise problem
    return page


def _evaluation(config: TrainConfig, metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    if not metrics:
        return []
    rows = {"centre crop": {"scales": [config.test_scales()[1]], **metrics["centre_crop"]}, **metrics["evaluation"]}
    return [{**row, "name": name, "scales": " ".join(map(str, row["scales"]))} for name, row in rows.items()]


def _state(steps: Sequence[Mapping[str, float]], epochs: Sequence[Mapping[str, float]], metrics: Any) -> str:
    last = max([row["step"] for row in (*steps[-1:], *epochs[-1:])], default=0)
    if not metrics:
        return f"Not finished: the last row of its log is of step {last:,}."
    if metrics["steps"] < last:
        return f"Not finished: at step {last:,}. The evaluation, confusion and predictions are of step " \
               f"{metrics['steps']:,}, where it ended before."  # fmt: skip
    return f"Finished after {metrics['steps']:,} steps."


def _headline(steps: Sequence[Mapping[str, float]], found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Names and values of the first figures that a reader looks for."""
    if not found:
        return [
            ("step", f"{steps[-1]['step']:,}"), ("training loss", f"{steps[-1]['loss']:.3f}"),
            *error_and_accuracy("training top-1", steps[-1]["top1_error"]),
            ("images/s", f"{steps[-1]['images_per_s']:,.0f}"), ("data wait", f"{100 * steps[-1]['data_wait']:.1f} %"),
        ] if steps else []  # fmt: skip
    best = found["best"]
    return [
        *error_and_accuracy("best top-1", best["val_top1_error"]),
        *error_and_accuracy("its top-5", best["val_top5_error"]),
        ("its epoch (from 0)", f"{best['epoch']}"), ("epochs", f"{found['epochs']}"),
        ("steps", f"{found['steps']:,}"),
        ("training time", duration(found["train_seconds"])), ("images/s", f"{found['images_per_s']:,.0f}"),
        ("data wait", f"{100 * found['data_wait']:.1f} %"),
    ]  # fmt: skip


def _curves_alt(steps: Sequence[Mapping[str, float]], epochs: Sequence[Mapping[str, float]]) -> str:
    text = "Curves over steps: loss, top-1 and top-5 error of training and validation, learning rate, speed, data wait."
    if steps:
        text += f" The training loss goes from {steps[0]['loss']:.3f} to {steps[-1]['loss']:.3f}."
    if epochs:
        first, last = (epochs[i]["val_top1_error"] for i in (0, -1))
        text += f" The validation top-1 error goes from {first:.1f} to {last:.1f} %."
    return text


def _epoch_cells(row: Mapping[str, float], best: bool) -> dict[str, Any]:
    values = {name: row.get(name, math.nan) for name in _EPOCH_CELLS}
    cells = [
        "–" if math.isnan(values[name]) else format(int(values[name]) if form.endswith("d") else values[name], form)
        for name, (_, form) in _EPOCH_CELLS.items()
    ]
    return {"cells": cells, "best": best}


def _options(config: TrainConfig) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """(options that differ from the defaults, the others)."""
    changed: list[dict[str, str]] = []
    unchanged: list[dict[str, str]] = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        row = {
            "name": field.name, "value": _plain(value), "default": _plain(field.default),
            "help": field.metadata["help"],
        }  # fmt: skip
        (unchanged if value == field.default else changed).append(row)
    return changed, unchanged


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value) or "–"


def _environment(metrics: Mapping[str, Any], events: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """That of the last session that tells."""
    told = [row["environment"] for row in events if "environment" in row]
    return told[-1] if told else metrics.get("environment", {})


def _event(row: Mapping[str, Any]) -> dict[str, Any]:
    details = [f"{name} {value}" for name, value in row.items() if name not in ("kind", "time", "text", "step")]
    text = row["text"] + (f" ({', '.join(details)})" if details else "")
    return {"time": str(row["time"])[:19].replace("T", " "), "step": row.get("step", ""), "text": text}
