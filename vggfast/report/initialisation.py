"""Plots of what :func:`vggfast.training.diagnosis.diagnose` found."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from vggfast.weights.files import write_atomically

_COLOURS = ("#4477aa", "#cc3311", "#228833", "#ee9955", "#aa3377", "#66ccee", "#777777")


def _colour(i: int) -> str:
    return _COLOURS[i % len(_COLOURS)]


def _finite(values: Sequence[float | str]) -> list[float]:
    """The values as numbers; NaN, which matplotlib leaves out, where a log scale has no place for one."""
    numbers = [float(value) for value in values]
    return [value if math.isfinite(value) and value > 0 else math.nan for value in numbers]


def _save(figure: Figure, path: str | Path) -> None:
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=120))


def step_figure(result: Mapping[str, Any], path: str | Path) -> None:
    """Loss and scale of the logits over the iterations, a line per initialisation, on log scales.

    A cross stands where a run broke off, at its last finite figure.
    """
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    loss, logits = figure.subplots(1, 2)
    loss.set_title("Loss")
    logits.set_title("Scale of the logits")
    for axes, key, unit in ((loss, "loss", "nats"), (logits, "logits", "standard deviation")):
        for i, run in enumerate(result["runs"].values()):
            values = _finite(run[key])
            axes.plot(range(len(values)), values, color=_colour(i), lw=1.2)
            last = max((step for step, value in enumerate(values) if not math.isnan(value)), default=None)
            if "broken" in run and last is not None:
                axes.plot(last, values[last], "x", color=_colour(i), ms=9, mew=2.5)
        axes.set(xlabel="iteration", ylabel=unit, yscale="log")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    loss.axhline(result["guess"], color="black", linestyle=":", lw=1)
    handles = [_handle(i, f"{name}: {run['status']}") for i, (name, run) in enumerate(result["runs"].items())]
    handles.append(Line2D([], [], color="black", linestyle=":", label="ln K, guessing"))
    figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=9)
    _save(figure, path)


def layer_figure(result: Mapping[str, Any], path: str | Path) -> None:
    """Per layer, on log scales: outputs at the start (dots) and their prediction (dashes), gradients first and last."""
    figure = Figure(figsize=(13, 4.8), layout="constrained")
    outputs, first, last = figure.subplots(1, 3)
    for i, run in enumerate(result["runs"].values()):
        _by_layer(outputs, run["outputs"], i)
        _by_layer(outputs, run["predicted"], i, "--")
        gradients = run["gradients"]
        _by_layer(first, {name: values[0] for name, values in gradients.items()}, i)
        _by_layer(last, {name: values[-1] for name, values in gradients.items()}, i)
    outputs.set(title="Outputs at the start (dashed: predicted)", ylabel="root mean square before the ReLU")
    first.set(title="Gradients, first iteration", ylabel="norm of the weights' gradient")
    last.set(title="Gradients, last iteration", ylabel="norm of the weights' gradient")
    handles = [_handle(i, name) for i, name in enumerate(result["runs"])]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=9)
    _save(figure, path)


def _by_layer(axes: Axes, values: Mapping[str, float | str], i: int, style: str = ".-") -> None:
    places = range(len(values))
    axes.plot(places, _finite(list(values.values())), style, color=_colour(i), lw=1.2)
    axes.set_yscale("log")
    axes.set_xticks(places, list(values), rotation=60, fontsize=8)
    axes.grid(alpha=0.3)


def _handle(i: int, label: str) -> Line2D:
    return Line2D([], [], color=_colour(i), marker=".", label=label)
