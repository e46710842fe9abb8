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

from vggfast.report.figures import save

_COLOURS = ("#4477aa", "#cc3311", "#228833", "#ee9955", "#aa3377", "#66ccee", "#777777")
_WINDOW = 10  # iterations


def _colour(i: int) -> str:
    return _COLOURS[i % len(_COLOURS)]


def _finite(values: Sequence[float | str]) -> list[float]:
    """The values as numbers; NaN, which matplotlib leaves out, where a log scale has no place for one."""
    numbers = [float(value) for value in values]
    return [value if math.isfinite(value) and value > 0 else math.nan for value in numbers]


def step_figure(result: Mapping[str, Any], path: str | Path) -> None:
    """Over the iterations, a line per initialisation: loss, the same close to ln K, and scale of the logits.

    A cross stands where a run broke off, at its last finite figure.
    """
    figure = Figure(figsize=(14, 4.5), layout="constrained")
    loss, close, logits = figure.subplots(1, 3)
    guess, runs = result["guess"], result["runs"]
    for i, run in enumerate(runs.values()):
        for axes, values in ((loss, _finite(run["loss"])), (logits, _finite(run["logits"]))):
            axes.plot(range(len(values)), values, color=_colour(i), lw=1.2)
            last = max((step for step, value in enumerate(values) if not math.isnan(value)), default=None)
            if "broken" in run and last is not None:
                axes.plot(last, values[last], "x", color=_colour(i), ms=9, mew=2.5)
        means = _means(_finite(run["loss"]))
        close.plot(range(len(means)), means, color=_colour(i), lw=1.5)
    for axes in (loss, close):
        axes.axhline(guess, color="black", linestyle=":", lw=1)
    loss.set(title="Loss", ylabel="nats", yscale="log")
    close.set(title=f"Loss close to ln K, means of {_WINDOW}", ylabel="nats", ylim=(0.85 * guess, 1.15 * guess))
    logits.set(title="Scale of the logits", ylabel="standard deviation", yscale="log")
    for axes in (loss, close, logits):
        axes.set_xlabel("iteration")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    handles = [_handle(i, f"{name}: {run['status']}") for i, (name, run) in enumerate(runs.items())]
    handles.append(Line2D([], [], color="black", linestyle=":", label="ln K, guessing"))
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=9)
    save(figure, path)


def _means(values: Sequence[float]) -> list[float]:
    """Of each value and those just before it: one batch's loss says little."""
    windows = (values[max(0, i + 1 - _WINDOW) : i + 1] for i in range(len(values)))
    return [sum(window) / len(window) for window in windows]


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
    save(figure, path)


def _by_layer(axes: Axes, values: Mapping[str, float | str], i: int, style: str = ".-") -> None:
    places = range(len(values))
    axes.plot(places, _finite(list(values.values())), style, color=_colour(i), lw=1.2)
    axes.set_yscale("log")
    axes.set_xticks(places, list(values), rotation=60, fontsize=8)
    axes.grid(alpha=0.3)


def _handle(i: int, label: str) -> Line2D:
    return Line2D([], [], color=_colour(i), marker=".", label=label)
