"""What a data-parallel step costs beside one GPU's: bytes, buckets, overlap, and the efficiency on 4 to 512 GPUs.

By the model of data_parallel.py, from the step times of step_times.py and links' nominal rates. Estimates, all of them,
but what --measure measures: all-reduces and steps of two Gloo ranks on this machine.

Prints its tables; --page puts them between the marks of docs/scaling.md. Without --measure the measured rows are those
of the result file.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gloo_ranks
import timing
from data_parallel import (
    NDR,
    NOTHING,
    NVLINK4,
    PCIE,
    Cluster,
    Step,
    Timeline,
    buckets,
    efficiency,
    ethernet,
    layers_of,
    parameters,
    timeline,
)
from peers.report import draw
from step_times import cpu, gradients, h200, paper

from vggfast.io import write_atomically
from vggfast.models import CONFIGURATIONS

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "scaling.json"
PAGE, PLOT = ROOT / "docs" / "scaling.md", ROOT / "docs" / "scaling.png"
GPUS = (4, 8, 64, 512)
GLOBAL_BATCH = 256
BEST = Cluster(NVLINK4, NDR)
CLUSTERS = (BEST, Cluster(NVLINK4, ethernet(100, 8)), Cluster(PCIE[5], NDR), Cluster(PCIE[4], ethernet(100, 8)),
            Cluster(PCIE[3], ethernet(25, 8)))  # fmt: skip
MACHINES = tuple(Cluster(NOTHING, ethernet(rate), per_node=1) for rate in (10, 25, 100))


class Table(NamedTuple):
    """`figures`: the same as numbers, for the result file."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    figures: list[dict[str, Any]]

    def markdown(self) -> str:
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def megabytes(size: float) -> str:
    return f"{size / 1e6:.1f}"


def bytes_of_a_step() -> Table:
    rows, figures = [], []
    for config in CONFIGURATIONS:
        layers = layers_of(config)
        count = parameters(config)
        fc = sum(sum(layer.tensors) for layer in layers if layer.size == 1)
        sizes = [4 * value for tensors in gradients(config) for value in tensors]
        made = [sum(sizes[i] for i in bucket) for bucket in buckets(sizes)]
        rows.append([config, f"{count:,}", f"{fc / count:.1%}", megabytes(4 * count), megabytes(2 * count),
                     ", ".join(map(megabytes, made))])  # fmt: skip
        figures.append({"config": config, "parameters": count, "fc": fc, "bytes": 4 * count, "buckets": made})
    columns = ["network", "parameters", "of them FC", "fp32 MB", "bf16 MB", "buckets, MB in order"]
    return Table("Gradients of a step, to and from each GPU", columns, rows, figures)


def when() -> Table:
    found, rows, figures = timeline(h200(64), BEST, 64), [], []
    for size, *times in found.buckets:
        rows.append([megabytes(size), *(f"est. {time * 1e3:.2f}" for time in times)])
        figures.append(dict(zip(("bytes", "ready", "begin", "end"), (size, *times), strict=True)))
    title = f"D's buckets on 64 H200, 64 images each, {BEST.name}: ms of the backward pass"
    return Table(title, ["bucket, MB", "ready", "begins", "ends"], rows, figures)


def _row(name: str, step: Step, cluster: Cluster, gpus: Sequence[int], **how: Any) -> tuple[list[str], dict[str, Any]]:
    """A line of efficiencies; more GPUs than one node holds go by whole nodes."""
    found = [efficiency(step, cluster, n, **how) for n in gpus]
    figures = {"name": name, "alone": step.alone, "gpus": list(gpus), "efficiency": found}
    return [name, *(f"est. {value:.1%}" for value in found)], figures


def _table(title: str, first: str, gpus: Sequence[int], made: Sequence[tuple[list[str], dict[str, Any]]]) -> Table:
    return Table(title, [first, *map(str, gpus)], [row for row, _ in made], [figures for _, figures in made])


def weak() -> Table:
    made = [
        _row(f"{batch} a GPU; {cluster.name}", h200(batch), cluster, GPUS) for batch in (32, 64) for cluster in CLUSTERS
    ]
    return _table("H200, D, efficiency, so many images a GPU", "images; links in a node, between nodes", GPUS, made)


def strong() -> Table:
    one, rows, figures = h200(GLOBAL_BATCH).alone, [], []
    gpus = (4, 8, 64, 256)
    for cluster in CLUSTERS:
        found = [one / timeline(h200(GLOBAL_BATCH // n), cluster, n).seconds for n in gpus]
        rows.append([cluster.name, *(f"est. {value:.1f}x" for value in found)])
        figures.append({"name": cluster.name, "gpus": list(gpus), "speedup": found})
    ceiling = [one / h200(GLOBAL_BATCH // n).alone for n in gpus]
    rows.append(["nothing to send", *(f"est. {value:.1f}x" for value in ceiling)])
    figures.append({"name": "nothing to send", "gpus": list(gpus), "speedup": ceiling})
    return Table("H200, D, 256 images in all, times one GPU", ["links", *map(str, gpus)], rows, figures)


def machines() -> Table:
    made = [_row(cluster.name, cpu(32), cluster, GPUS) for cluster in MACHINES]
    return _table("2-core machines, D, fp32, 32 images each, efficiency", "link", GPUS, made)


def helps() -> Table:
    gpus = (8, 64, 512)
    tree = Cluster(NVLINK4, NDR, way="tree")
    slow, full = (Cluster(NVLINK4, NDR, achieved=share) for share in (0.5, 1.0))
    made = [
        _row("as above", h200(64), BEST, gpus),
        _row("no overlap (DDP's first step)", h200(64), BEST, gpus, overlap=False),
        _row("FC gradients sent last", h200(64).fc_last(), BEST, gpus),
        _row("gradients sent as bf16", h200(64), BEST, gpus, width=2),
        _row("32 images a GPU", h200(32), BEST, gpus),
        _row("128 images a GPU", h200(128), BEST, gpus),
        _row("a tree's messages between nodes", h200(64), tree, gpus),
        _row("a tree's messages, bf16", h200(64), tree, gpus, width=2),
        _row("half of the links' rates achieved", h200(64), slow, gpus),
        _row("all of the links' rates achieved", h200(64), full, gpus),
    ]
    return _table("H200, D, 64 images a GPU, NVLink 4 and NDR: efficiency with one thing changed", "change", gpus, made)


def papers() -> Table:
    """The paper's speed-up of 3.75 beside the model's, for its 2 and 3 weeks."""
    rows, figures = [], []
    for way, what in (("ring", "ring"), ("root", "one GPU collects and hands out")):
        for overlap in (True, False):
            for achieved in (1.0, 0.8, 0.5):
                cluster = Cluster(PCIE[3], achieved=achieved, way=way)
                found = [4 * efficiency(paper(weeks), cluster, 4, overlap=overlap) for weeks in (2, 3)]
                name = f"{what}, {'overlap' if overlap else 'no overlap'}"
                rate = f"{cluster.inside.rate * achieved / 1e9:.2f}"
                rows.append([name, rate, *(f"est. {value:.2f}x" for value in found)])
                figures.append({"way": way, "overlap": overlap, "rate": float(rate), "speedup": found})
    return Table("The paper's 4 GPUs, PCIe 3.0 x16, D", ["how", "GB/s achieved", "2 weeks", "3 weeks"], rows, figures)


def measured(rows: Sequence[dict[str, Any]]) -> Table:
    """Of the result file's rows; and the share of an all-reduce by which it makes a step longer."""
    seconds = {row["what"]: row["seconds"] for row in rows if "seconds" in row}
    shown = []
    for name, samples in seconds.items():
        middle, spread = timing.median_and_spread(samples)
        shown.append([name, f"{min(samples) * 1e3:.0f}", f"{middle * 1e3:.0f}", f"{spread:.0%}"])
    if seconds:
        together, alone, reducing = (seconds[name] for name in ("step together", "step alone", "all-reduce A fp32"))
        shares = [(of(together) - of(alone)) / of(reducing) for of in (min, statistics.median)]
        shown.append(["(step together - step alone) / all-reduce A fp32", *(f"{share:.2f}" for share in shares), ""])
    return Table("Measured: two Gloo ranks on this machine", ["what", "ms, least", "ms, median", "spread"], shown, [])


def tables(rows: Sequence[dict[str, Any]]) -> dict[str, Table]:
    """By the marks of the page. `rows`: what was measured."""
    return {"bytes": bytes_of_a_step(), "when": when(), "weak": weak(), "strong": strong(), "machines": machines(),
            "helps": helps(), "paper": papers(), "measured": measured(rows)}  # fmt: skip


def on_page(text: str, made: dict[str, Table]) -> str:
    """The page's text with each table between `<!-- NAME -->` and `<!-- end -->`."""
    for name, table in made.items():
        before, mark, rest = text.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition("<!-- end -->")
        if not end:
            raise ValueError(f"the page has no <!-- {name} --> ... <!-- end -->")
        text = f"{before}{mark}\n{table.markdown()}\n\n{end}{after}"
    return text


# ---- the plot -------------------------------------------------------------------------------------------------------


def plot(path: Path) -> None:
    """Left: efficiency by GPUs. Right: when D's buckets are ready and sent, on 64 GPUs."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.4))
    gpus = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]
    for cluster in CLUSTERS:
        left.plot(gpus, [efficiency(h200(64), cluster, n) for n in gpus], marker="o", markersize=3, label=cluster.name)
    left.plot(gpus, [efficiency(h200(64), BEST, n, width=2) for n in gpus], "k--", label=f"{BEST.name}, bf16")
    left.set_xscale("log", base=2)
    left.set_xticks(gpus, map(str, gpus))
    left.set_ylim(0, 1.02)
    left.set_xlabel("GPUs, 64 images each")
    left.set_title("est. efficiency of D on H200", loc="left", fontsize=10)
    left.legend(fontsize=7, loc="upper right", bbox_to_anchor=(1.0, 0.68))
    _bars(right, timeline(h200(64), BEST, 64), sum(h200(64).backward))
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=110))
    plt.close(figure)


def _bars(axis: Any, found: Timeline, backward: float) -> None:
    places = range(len(found.buckets))
    for i, (_, ready, begin, end) in enumerate(found.buckets):
        axis.plot([ready * 1e3, begin * 1e3], [i, i], color="#bbbbbb")
        axis.barh(i, (end - begin) * 1e3, left=begin * 1e3, color="#c0392b")
    axis.axvline(backward * 1e3, color="black", linewidth=1)
    axis.text(backward * 1e3 - 0.05, 0, "backward ends", fontsize=8, ha="right", va="center")
    axis.invert_yaxis()
    axis.set_xlim(left=0)
    axis.set_yticks(places, [f"{megabytes(size)} MB" for size, *_ in found.buckets])
    axis.set_xlabel("ms from the beginning of the backward pass")
    axis.set_title("est. buckets on 64 H200, NVLink 4 and NDR: grey waits, red is sent", loc="left", fontsize=10)


# ---- the command ----------------------------------------------------------------------------------------------------


def kept(path: Path) -> list[dict[str, Any]]:
    """The measured rows of a result file, none where there is no file."""
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    return [row for row in rows if row.get("measured")]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    # fmt: off
    add("--measure", action="store_true", help="measure two Gloo ranks on this machine (a minute or two, 8 GB)")
    add("--json", type=Path, default=RESULTS, metavar="FILE", help="result file (default %(default)s)")
    add("--png", type=Path, metavar="FILE", help=f"plot (the documentation's is {PLOT})")
    add("--page", type=Path, metavar="FILE", help=f"write the tables into this page (the documentation's is {PAGE})")
    # fmt: on
    options = parser.parse_args(arguments)
    rows = gloo_ranks.measured() if options.measure else kept(options.json)
    made = tables(rows)
    for table in made.values():
        draw(table.title, table.columns, table.rows)
    estimates = [{"table": name, "estimate": True, **row} for name, table in made.items() for row in table.figures]
    timing.write_results(options.json, estimates + rows)
    if options.png:
        plot(options.png)
    if options.page:
        text = on_page(options.page.read_text(), made)
        write_atomically(options.page, lambda temporary: temporary.write_text(text))


if __name__ == "__main__":
    main()
