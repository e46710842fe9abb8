"""The tables of docs/results.md, made from benchmarks/results/*.json: nothing there is typed."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[2] / "benchmarks/results"
Json = dict[str, Any]
# A file's processor, where it was written before results named its class (benchmarks/processor.py).
OLDER = {"cpu-zen": "zen4"}


def everything() -> str:
    """The whole page below its introduction: a section a kind of measurement, then a table of all files."""
    files = {path.stem: json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))}
    parts = []
    for title, prefix, about, make in SECTIONS:
        found = {name: data for name, data in files.items() if name.startswith(prefix)}
        if not found:
            raise ValueError(f"benchmarks/results has no {prefix}*.json, which docs/results.md shows")
        parts += [f"## {title}", "", about, ""]
        for name, data in found.items():
            state = "???+" if name == list(found)[-1] else "???"  # the last one is open
            parts += [f'{state} abstract "{name}.json"', ""]
            parts += [f"    {line}".rstrip() for line in [conditions(name, data), "", *make(data)]] + [""]
    return "\n".join([*parts, "## All files", "", *_files(files)])


def conditions(name: str, data: Json) -> str:
    """One line: processor, instruction set, threads, versions, commit."""
    said = data.get("environment") or data.get("versions") or {}
    parts = [
        " ".join(filter(None, [said.get("machine"), processor(name, said)])),
        f"instruction set {said['isa']}" if "isa" in said else "",
        f"{said['threads']} threads" if "threads" in said else "",
        f"vggfast {said['vggfast']} at commit {said['commit']}" if "commit" in said else "",
        f"torch {said['torch']}" if "torch" in said else "",
    ]
    peers = [f"{peer} {version}" for peer, version in said.get("peers", {}).items() if peer != "torch"]
    line = "; ".join(filter(None, parts)) + "."
    return line + (f" Peers: {', '.join(peers)}." if peers else "")


def processor(name: str, said: Json) -> str:
    """The class of the processor that a file was measured on."""
    return said.get("processor") or next((kind for part, kind in OLDER.items() if part in f"{name}-"), "")


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table whose columns, but for the first, are set right."""
    lines = [f"| {' | '.join(columns)} |", f"|---|{'--:|' * (len(columns) - 1)}"]
    return lines + [f"| {' | '.join(str(cell).replace('|', '/') for cell in row)} |" for row in rows] + [""]


def spread_of(samples: Sequence[float]) -> str:
    """Half the distance between the quartiles, over the median; nothing of fewer than two samples."""
    if len(samples) < 2:
        return ""
    low, middle, high = statistics.quantiles(samples, n=4, method="inclusive")
    return f"{(high - low) / 2 / middle:.0%}"


def races(data: Json) -> list[str]:
    """Tables of engines side by side, one a case."""
    cases: dict[str, list[Json]] = {}
    for row in data["rows"]:
        case = row["case"]
        title = (
            f"Network {case['network']}, {case['part']}, {case['size']} x {case['size']}, "
            f"batch {case['batch']}, {case['threads']} thread{'s' if case['threads'] > 1 else ''}"
        )
        cases.setdefault(title, []).append(row)
    lines = []
    for title, rows in cases.items():
        timed = sorted((row for row in rows if row["status"] == "timed"), key=lambda row: _median(row["seconds"]))
        shown = []
        for row in timed + [row for row in rows if row["status"] != "timed"]:
            error = row.get("relative_error")
            ratio = row.get("time / vggfast's")
            shown.append([
                row["engine"],
                f"{_median(row['seconds']) * 1e3 / row['case']['batch']:.2f}" if row in timed else row["status"],
                spread_of(row["seconds"]) if row in timed else "",
                "" if error is None else f"{error:.1e}",
                "" if ratio is None else f"{ratio:.2f}",
            ])  # fmt: skip
        lines += [f"**{title}**", ""]
        lines += table(["engine", "ms an image", "spread", "relative error", "time / vggfast's"], shown)
    return lines


def accelerated(data: Json) -> list[str]:
    """Other networks, as they are and accelerated."""
    rows = [
        [row["work"], " x ".join(map(str, row["shape"])), row["by"], f"{row['median'] * 1e3:.1f}",
         spread_of(row["seconds"])]
        for row in data["rows"]
    ]  # fmt: skip
    return table(["network", "input", "by", "ms a call", "spread"], rows)


def pairs(data: Json) -> list[str]:
    """Times of vggfast beside plain torch's."""
    rows = []
    for row in data["rows"]:
        name = " ".join(filter(None, [row.get("case"), row.get("what"), row.get("optimiser")]))
        rows.append(
            [name, *(f"{_median(row['seconds'][by]) * 1e3:.0f}" for by in ("vggfast", "torch")), f"{row['ratio']:.2f}"]
        )
    return table(["what", "vggfast, ms", "torch, ms", "torch / vggfast"], rows)


def memory(data: Json) -> list[str]:
    """Memory of a process by engine, in MiB."""
    rows = []
    for row in data["rows"]:
        case = row["case"]
        name = f"{row['use']}: {row['engine']}, {case['network']}, batch {case['batch']}"
        sizes = (row.get(key) for key in ("imported", "built", "resident", "peak_running"))
        rows.append([name, *("" if size is None else f"{size / 2**20:.0f}" for size in sizes)])
    return table(["what", "imported", "built", "after the runs", "peak of the runs"], rows)


def rates(data: Json) -> list[str]:
    """Images a second of reading and preparing."""
    rows = [
        [row["what"], row["by"], f"{row['per_second']:.0f}", row["second_of"], f"{row['spread']:.0%}"]
        for row in data["rows"]
    ]
    return table(["what", "by", "images a second", "of", "spread"], rows)


def parity(data: Json) -> list[str]:
    """Errors of accelerated networks against float64, beside torch's own."""

    def worst(row: Json, key: str) -> str:
        return f"{max(row[key]):.1e}" if row.get(key) else ""

    rows = [
        [f"{row['network']}, {row['mode']}", row["by"],
         *(worst(row, key) for key in ("float64", "float32", "torch_float32"))]
        for row in data["rows"]
    ]  # fmt: skip
    return table(["network", "by", "float64", "float32", "torch's float32"], rows)


def recalls(data: Json) -> list[str]:
    """Mean class recall of SVMs on features, in per cent."""
    rows = [
        [name, f"{row['dims']}", f"{row['mean']:.1f} ± {row['deviation']:.1f}"] for name, row in data["svm"].items()
    ]
    return table(["blocks", "values", "mean class recall, %"], rows)


def _median(samples: Sequence[float]) -> float:
    return statistics.median(samples)


def _files(files: dict[str, Json]) -> list[str]:
    rows = []
    for name, data in files.items():
        said = data.get("environment") or data.get("versions") or {}
        kind = "estimate from counts" if said.get("estimate") else "measured or counted"
        rows.append([f"`{name}.json`", kind, processor(name, said), said.get("isa", ""),
                     said.get("commit") or data.get("commit", ""), said.get("torch", "")])  # fmt: skip
    return table(["file", "kind", "processor", "instruction set", "commit", "torch"], rows)


# Title, what the names of its files begin with, what the figures are, what makes the tables.
SECTIONS: tuple[tuple[str, str, str, Callable[[Json], list[str]]], ...] = (
    ("Inference", "model-", "A whole network, or its convolutions alone, by vggfast and by the engines it competes "
     "with. Every answer was compared with float64 before it was timed. Command: `python benchmarks/bench_model.py`.",
     races),
    ("Training", "train-", "One step: forward, backward, update. Command: `python benchmarks/bench_train.py`.", races),
    ("Accelerated networks", "accelerate-", "Networks of others, by torch and by `vggfast.accelerate`. Command: "
     "`python benchmarks/bench_accelerate.py`.", accelerated),
    ("Losses", "losses-", "Perceptual losses and LPIPS. Command: `python benchmarks/bench_losses.py`.", pairs),
    ("Style transfer", "stylise-", "Steps of an optimiser on a picture's pixels. Command: "
     "`python benchmarks/bench_stylise.py`.", pairs),
    ("Memory", "memory-", "MiB of the whole process. Command: `python benchmarks/bench_memory.py`.", memory),
    ("Reading images", "data-", "Decoding, resampling, cropping. Command: `python benchmarks/bench_data.py`.", rates),
    ("Accuracy of accelerated networks", "parity-", "The largest relative L2 error of an output or a gradient against "
     "eager float64. Command: `python -m tests.acceleration --out parity.json`.", parity),
    ("Features on Caltech-101", "caltech101-", "The paper's protocol of appendix B on the published convolutions. "
     "Command: `python benchmarks/bench_features.py`.", recalls),
)  # fmt: skip
