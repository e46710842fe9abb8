"""Draws the picture of README.md: VGG-16 by vggfast and by its fastest peers, for each class of processor measured.

Reads benchmarks/results/model-cpu-CLASS.json. Of a peer that was timed in several forms, such as PyTorch with and
without torch.compile, the fastest form counts. The five fastest peers are drawn, and PyTorch wherever it stands.
Writes speed-light.svg and speed-dark.svg, whose description lists the figures that are drawn.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CASE = {"network": "D", "part": "whole", "size": 224, "batch": 8, "threads": 2, "dtype": "fp32", "isa": "best",
        "batch_norm": False}  # fmt: skip
MOST_PEERS = 5
# Names of classes (benchmarks/processor.py). "zen" is a Zen 4 whose results were written before they named the class.
PROCESSORS = {"zen3": "Zen 3 (AVX2)", "zen4": "Zen 4 (AVX-512)", "zen": "Zen 4 (AVX-512)", "zen5": "Zen 5 (AVX-512)"}
PEERS = {"ncnn": "ncnn", "mnn": "MNN", "openvino": "OpenVINO", "onnxruntime": "ONNX Runtime", "litert": "LiteRT",
         "torch": "PyTorch"}  # fmt: skip
# Text, peers, ours, lines: an orange and a grey that differ in lightness too, so that no colour need be told apart.
THEMES = {
    "light": {"text": "#24292f", "peer": "#a9b4c0", "ours": "#c2410c", "line": "#57606a"},
    "dark": {"text": "#e6edf3", "peer": "#566270", "ours": "#fb923c", "line": "#9aa5b1"},
}


@dataclass(frozen=True)
class Bar:
    """Milliseconds an image: the median, and half the distance between the quartiles."""

    name: str
    time: float
    spread: float


def bars(path: Path) -> list[Bar]:
    """vggfast, its five fastest peers, and PyTorch, fastest first; nothing where vggfast was not timed so."""
    best: dict[str, Bar] = {}
    for row in json.loads(path.read_text())["rows"]:
        case = {"batch_norm": False, **row["case"]}  # older files have no networks with batch norm
        if row["status"] != "timed" or any(case[name] != value for name, value in CASE.items()):
            continue
        engine = row["engine"]
        name = "vggfast" if engine == "vggfast" else PEERS.get(engine.partition("-")[0])
        if name is None:  # another form of ours
            continue
        low, middle, high = (value * 1e3 / CASE["batch"] for value in statistics.quantiles(row["seconds"], n=4))
        if name not in best or middle < best[name].time:
            best[name] = Bar(name, middle, (high - low) / 2)
    if "vggfast" not in best:
        return []
    peers = sorted((bar for bar in best.values() if bar.name != "vggfast"), key=lambda bar: bar.time)
    drawn = [bar for place, bar in enumerate(peers) if place < MOST_PEERS or bar.name == "PyTorch"]
    return sorted([best["vggfast"], *drawn], key=lambda bar: bar.time)


def measured(folder: Path) -> dict[str, list[Bar]]:
    """{processor: its bars}, that with the fastest vggfast first. Of two files of a processor the later name counts."""
    found = {}
    for path in sorted(folder.glob("model-cpu-*.json")):
        named = path.stem.removeprefix("model-cpu-")
        said = json.loads(path.read_text())["environment"].get("processor")
        if said != named and (said or not re.fullmatch(r"[a-z0-9]+", named)):
            continue  # a race apart, such as model-cpu-zen-b32.json
        if drawn := bars(path):
            found[PROCESSORS.get(named, named)] = drawn
    ours = {name: next(bar.time for bar in drawn if bar.name == "vggfast") for name, drawn in found.items()}
    return dict(sorted(found.items(), key=lambda item: ours[item[0]]))


def described(found: dict[str, list[Bar]]) -> str:
    """What the picture shows, in words."""
    return "; ".join(f"{name}: " + ", ".join(f"{bar.name} {bar.time:.1f}" for bar in drawn)
                     for name, drawn in found.items())  # fmt: skip


def draw(found: dict[str, list[Bar]], theme: str, path: Path) -> None:
    """One panel: a group of bars for each processor. PNG or SVG by the name of the file."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    colours = THEMES[theme]
    lines = sum(len(drawn) + 1.6 for drawn in found.values())
    plain = {"svg.hashsalt": "vggfast", "text.color": colours["text"], "font.size": 10}
    with plt.rc_context(plain):
        figure, axis = plt.subplots(figsize=(8, 0.6 + 0.23 * lines))
        axis.patch.set_visible(False)
        furthest = max(bar.time + bar.spread for drawn in found.values() for bar in drawn)
        place = 0.0
        for name, drawn in found.items():
            axis.text(0, place, f"AMD EPYC, {name}", weight="bold", va="center")
            for bar in drawn:
                place += 1
                _bar(axis, bar, place, furthest, colours)
            place += 1.6
        axis.set(xlim=(0, furthest * 1.1), ylim=(place - 1, -0.8), yticks=[], xticks=[])
        axis.spines[:].set_visible(False)
        axis.set_title("VGG-16 at 224x224: milliseconds an image, less is better", loc="left", fontsize=12, pad=8)
        conditions = "float32, batches of 8, two cores; thin lines: half the distance between the quartiles"
        axis.set_xlabel(conditions, loc="left", color=colours["line"], fontsize=9)
        figure.subplots_adjust(left=0.16, right=0.98, top=1 - 0.35 / figure.get_figheight(),
                               bottom=0.3 / figure.get_figheight())  # fmt: skip
        about: dict[str, Any] = {"Description": described(found), "Date": None} if path.suffix == ".svg" else {}
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, transparent=path.suffix == ".svg", dpi=110, metadata=about,
                       facecolor={"light": "white", "dark": "#0d1117"}[theme])  # fmt: skip
        plt.close(figure)


def _bar(axis: Any, bar: Bar, place: float, furthest: float, colours: dict[str, str]) -> None:
    ours = bar.name == "vggfast"
    weight = "bold" if ours else "normal"
    axis.barh(place, bar.time, height=0.74, color=colours["ours" if ours else "peer"], xerr=bar.spread,
              error_kw={"lw": 1, "ecolor": colours["line"]})  # fmt: skip
    axis.text(-furthest * 0.01, place, bar.name, ha="right", va="center", weight=weight)
    axis.text(bar.time + bar.spread + furthest * 0.01, place, f"{bar.time:.1f}", va="center", weight=weight)


def main(arguments: Sequence[str] | None = None) -> None:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--out", type=Path, default=ROOT / "docs/images", metavar="DIR")
    made.add_argument("--results", type=Path, default=ROOT / "benchmarks/results", metavar="DIR")
    made.add_argument("--format", choices=("svg", "png"), default="svg")
    options = made.parse_args(arguments)
    found = measured(options.results)
    if not found:
        made.error(f"--results must be a folder with timed model-cpu-*.json, got {options.results}")
    for theme in THEMES:
        path = options.out / f"speed-{theme}.{options.format}"
        draw(found, theme, path)
        print(path)
    print(described(found))


if __name__ == "__main__":
    main()
