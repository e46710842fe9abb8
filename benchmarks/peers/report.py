"""Tables and plots of outcomes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import timing
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from peers.load import TRUSTED
from peers.network import Spec
from peers.race import Outcome
from vggfast.console import console

OURS, NARROW, PEER = (
    "#c44e52",
    "#8172b3",
    "#9aa5b1",
)  # bars of vggfast, of others in bf16 or int8, of the rest


def per_image(outcome: Outcome, spec: Spec) -> tuple[float, float]:
    """(median milliseconds per image, spread as timing.median_and_spread has it)."""
    median, spread = timing.median_and_spread(outcome.samples)
    return median / spec.batch * 1e3, spread


def ratios(outcomes: Iterable[Outcome], ours: str) -> dict[str, float]:
    """{engine: its median time over that of `ours`}: above 1, ours is faster. Empty where `ours` was not timed."""
    medians = {o.engine.name: timing.median_and_spread(o.samples)[0] for o in outcomes if o.status == "timed"}
    if ours not in medians:
        return {}
    return {name: median / medians[ours] for name, median in medians.items()}


def table(outcomes: Sequence[Outcome], spec: Spec) -> tuple[list[str], list[list[str]]]:
    """(columns, rows): an engine a row, and a column of ratios to each timed engine of ours ("/ bf16": -bf16)."""
    ours = [o.engine.name for o in outcomes if o.engine.ours and o.status == "timed"]
    ours = [name for name in ours if not name.endswith("-module")] or ours
    against = {name: ratios(outcomes, name) for name in ours}
    columns = ["engine", "dtype", "ms/image", "least", "spread", "error"]
    columns += [f"/ {name.removeprefix('vggfast-')}" for name in ours]
    rows = []
    for outcome in outcomes:
        name = outcome.engine.name
        error = "" if outcome.error is None else f"{outcome.error:.1e}"
        if outcome.status == "timed":
            time, spread = per_image(outcome, spec)
            least = min(outcome.samples) / spec.batch * 1e3
            figures = [
                f"{time:.2f}",
                f"{least:.2f}",
                f"{spread:.0%}",
                error,
                *(f"{against[o][name]:.2f}" for o in ours),
            ]
        else:
            figures = ["-", "-", "-", error, *["-"] * len(ours)]
            name = f"{name}: {outcome.status}"
        rows.append([name, outcome.engine.dtype, *figures])
    return columns, rows


def draw(name: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Prints a table whose cells are never cut: a log has no width."""
    drawn = Table(title=name, title_justify="left")
    for i, column in enumerate(columns):
        drawn.add_column(column, justify="right" if i else "left", no_wrap=True)
    for row in rows:
        drawn.add_row(*row)
    needed = Measurement.get(endless := Console(width=10_000), endless.options, drawn).maximum
    Console(width=max(console.width, needed), markup=False, highlight=False).print(drawn)


def show(name: str, outcomes: Sequence[Outcome], spec: Spec) -> None:
    """Prints the table, what is missing from it and why, and the line that sums it up."""
    draw(name, *table(outcomes, spec))
    for outcome in outcomes:
        if outcome.reason:
            console.print(f"{outcome.engine.name}: {outcome.status}: {outcome.reason}")
    for ours in ("vggfast", "vggfast-bf16", "vggfast-int8"):
        if line := summary(outcomes, ours):
            console.print(line)
    taken = max((o.neighbours.share or 0.0 for o in outcomes), default=0.0)
    if taken > TRUSTED:
        console.print(
            f"other processes took up to {taken:.0%} of the machine meanwhile: run this again when it is idle"
        )
    console.print("")


def title(spec: Spec, isa: str, what: str = "") -> str:
    threads = f"{spec.threads} thread" + "s" * (spec.threads > 1)
    network = spec.network + " with batch norm" * spec.batch_norm
    text = f"{what or spec.part}, {network}, {spec.size}x{spec.size}, batch {spec.batch}, {threads}"
    return text if isa == "best" else f"{text}, {isa}"


def summary(outcomes: Sequence[Outcome], ours: str = "vggfast") -> str:
    """The best peer of the same dtype as `ours`, in a line."""
    against = ratios(outcomes, ours)
    dtype = next((o.engine.dtype for o in outcomes if o.engine.name == ours), "")
    peers = {o.engine.name: against[o.engine.name] for o in outcomes
             if o.engine.name in against and not o.engine.ours and o.engine.dtype == dtype}  # fmt: skip
    if not peers:
        return ""
    best = min(peers, key=peers.__getitem__)
    return f"{ours} is {peers[best]:.2f} times as fast as the best {dtype} peer, {best}"


def plot(path: Path, cases: Sequence[tuple[str, Spec, Sequence[Outcome]]], heading: str) -> None:
    """Milliseconds per image of every timed engine, a panel per case; PNG or SVG by the name of the file."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    cases = [case for case in cases if any(o.status == "timed" for o in case[2])]
    if not cases:
        return
    columns = min(3, len(cases))
    lines = -(-len(cases) // columns)
    most = max(len(outcomes) for _, _, outcomes in cases)
    figure, axes = plt.subplots(lines, columns, figsize=(5.6 * columns, (0.9 + 0.26 * most) * lines), squeeze=False)
    for axis in axes.flat[len(cases) :]:
        axis.remove()
    for axis, (name, spec, outcomes) in zip(axes.flat, cases, strict=False):
        _panel(axis, name, spec, outcomes)
    heading = f"{heading} (red: vggfast; violet: others in bf16 or int8; bars: half the distance between the quartiles)"
    figure.suptitle(heading, x=0.01, ha="left", fontsize=11)
    figure.tight_layout(rect=(0, 0, 1, 0.985))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _panel(axis: Any, name: str, spec: Spec, outcomes: Sequence[Outcome]) -> None:
    timed = sorted((o for o in outcomes if o.status == "timed"), key=lambda o: per_image(o, spec)[0], reverse=True)
    times = [per_image(o, spec) for o in timed]
    colours = [OURS if o.engine.ours else NARROW if o.engine.dtype != "fp32" else PEER for o in timed]
    widths = [time for time, _ in times]
    axis.barh([o.engine.name for o in timed], widths, color=colours, height=0.7,
              xerr=[time * spread for time, spread in times], error_kw={"lw": 0.8, "ecolor": "#444444"})  # fmt: skip
    for place, (time, spread) in enumerate(times):
        axis.text(time * (1 + spread) + max(widths) * 0.015, place, f"{time:.3g}", va="center", fontsize=7)
    axis.set_xlim(0, max(time * (1 + spread) for time, spread in times) * 1.15)
    axis.set_title(name, fontsize=9, loc="left")
    axis.set_xlabel("ms an image", fontsize=8)
    axis.tick_params(labelsize=7)
    axis.spines[["top", "right"]].set_visible(False)
