"""Each distinct 3x3 layer of VGG-16 on CUDA, forward and backward, and the layers around them, kernel by kernel.

Forward: vggfast's fused convolution, bias, ReLU (and max-pool where the net has it) beside cuDNN's convolution alone,
the same by torch's layers ("eager"), torch.compile, JAX, apex, and one graph of cuDNN's by cudnn-frontend. Backward:
dgrad and wgrad with the gradient of ReLU and max-pool before them, and of the convolution alone. "tuned" is
torch.backends.cudnn.benchmark. Then max-pool, LRN and sum-pool. All are compared with float64 (float32 without TF32
where that takes long) before anything is timed. A sample is one call by the GPU's events after the L2 was overwritten;
JAX's is by the host's clock, its launch included. Candidates take turns; figures come from medians. Ceilings, a large
matrix product and a copy, are of the same run.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timing
import torch
from layers import LAYERS
from peers.report import draw

from gpu import candidates as convs
from gpu import choice, measuring, other_ops
from gpu.races import versions
from vggfast.console import ProgressBar, console

# Layers that max-pool follows in VGG-16; those in both occur with it and without it.
POOLED = {(64, 64, 224), (128, 128, 112), (256, 256, 56), (512, 512, 28), (512, 512, 14)}
UNPOOLED = set(LAYERS) - {(64, 64, 224), (128, 128, 112)}
OTHERS = "others"
AUTOTUNE = "torch.compile autotune"


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = made.add_argument
    # fmt: off
    add("--device", choices=("cpu", "cuda"), default="cpu", help=choice.HELP)
    add("--dtype", choices=choice.DTYPES, default="bf16", help="of all tensors (default bf16)")
    add("--batch", type=int, default=64, metavar="N", help="images (default 64)")
    add("--rounds", type=int, default=10, metavar="N", help="turns of each candidate (default 10)")
    add("--passes", nargs="+", choices=(*convs.PASSES, OTHERS), default=[*convs.PASSES, OTHERS],
        help="what to measure (default: all)")
    add("--without", nargs="+", default=[], metavar="NAME",
        help=f"candidates to leave out by the start of their names, such as {AUTOTUNE!r} or jax")
    add("--no-kernel-names", action="store_true", help="do not profile: saves some seconds a layer")
    add("--out", type=Path, metavar="FILE", help=f"JSON (default {choice.out_file('conv', 'bf16')}, named by dtype)")
    # fmt: on
    return made


def conv_cases(options: argparse.Namespace) -> list[convs.Case]:
    """Forward with and without max-pool as the net has it; backward once a layer, with it where the net ever has it."""
    found = []
    for which in convs.PASSES:
        for layer in LAYERS if which in options.passes else ():
            pools = [False] * (layer in UNPOOLED) + [True] * (layer in POOLED)
            for pool in pools if which == "fprop" else pools[-1:]:
                found.append(convs.Case(*layer, options.batch, which, pool, options.dtype))
    return found


def _kept(candidates: dict[str, convs.Candidate], without: Sequence[str]) -> dict[str, convs.Candidate]:
    return {name: c for name, c in candidates.items() if not any(name.startswith(start) for start in without)}


def measure(layer: Any, parts: tuple[dict, Any, dict], options: argparse.Namespace, flush: Any) -> dict[str, Any]:
    """Errors, kernels, samples and clocks of a case; `parts` are its candidates, `exact`, and who is missing."""
    candidates, exact, reasons = parts
    candidates = _kept(candidates, options.without)
    errors, wrong = measuring.checked(candidates, exact, options.dtype)
    reasons = {**{name: why for name, why in reasons.items() if name not in options.without}, **wrong}
    before = timing.gpu_state()
    seconds = measuring.timed(candidates, reasons, options.rounds, flush)
    after = timing.gpu_state()
    right = {name: candidates[name] for name in seconds}
    return {**layer.case._asdict(), "errors": errors, "not timed": reasons, "seconds": seconds,
            "kernels": {} if options.no_kernel_names else _kernels(right),
            "clocks": {"before": before, "after": after}}  # fmt: skip


def _kernels(candidates: Mapping[str, convs.Candidate]) -> dict[str, list[str]]:
    try:
        return measuring.kernels(candidates)
    except Exception as error:  # the profiler is a help, not the measurement
        return {"all": [f"unknown: {convs.reason(error)}"]}


def measure_conv(case: convs.Case, options: argparse.Namespace, flush: Any) -> dict[str, Any]:
    layer = convs.Layer(case)
    found, starts, missing = convs.candidates(layer)
    row = measure(layer, (found, lambda name: convs.exact(layer, name, starts), missing), options, flush)
    return {**row, "title": case.title, "flops": case.flops}


def measure_other(case: other_ops.Case, options: argparse.Namespace, flush: Any) -> dict[str, Any]:
    layer = other_ops.Layer(case)
    found, missing = layer.candidates()
    row = measure(layer, (found, layer.exact, missing), options, flush)
    return {**row, "which": OTHERS, "title": case.title, "bytes": layer.bytes}


# ---- tables ---------------------------------------------------------------------------------------------------------


def medians(row: Mapping[str, Any]) -> dict[str, float]:
    return {name: timing.median_and_spread(samples)[0] for name, samples in row["seconds"].items()}


def ratio(seconds: Mapping[str, float], start: str, ours: str = "vggfast") -> str:
    """Time of the fastest candidate whose name starts so, over ours; above 1, ours is faster."""
    peers = [s for name, s in seconds.items() if name.startswith(start) and name != ours]
    return f"{min(peers) / seconds[ours]:.2f}" if peers and ours in seconds else "-"


def conv_table(rows: Sequence[Mapping[str, Any]], ceiling: Mapping[str, float]) -> tuple[list[str], list[list[str]]]:
    """A layer a row: microseconds of ours, TFLOP/s of everyone, our share of the ceiling, ratios, spread, error."""
    names = list(dict.fromkeys(name for row in rows for name in row["seconds"]))
    columns = [
        "layer",
        "us",
        *names,
        "of ceiling",
        "cuDNN / ours",
        "eager / ours",
        "compile / ours",
        "graph / ours",
        "spread",
        "error",
    ]
    lines = []
    for row in rows:
        seconds = medians(row)
        ours = seconds.get("vggfast")
        alone = "vggfast conv" if "vggfast conv" in seconds else "vggfast"  # backward: the convolution by itself
        lines.append([
            row["title"], f"{ours * 1e6:.1f}" if ours else "-",
            *(f"{row['flops'] / seconds[name] / 1e12:.0f}" if name in seconds else "-" for name in names),
            f"{row['flops'] / ours / 1e12 / ceiling['tflops']:.0%}" if ours else "-",
            ratio(seconds, "cuDNN", alone), *(ratio(seconds, name) for name in ("eager", "torch.compile", "graph")),
            f"{timing.median_and_spread(row['seconds']['vggfast'])[1]:.0%}" if ours else "-",
            f"{row['errors']['vggfast']:.1e}" if "vggfast" in row["errors"] else "-",
        ])  # fmt: skip
    return columns, lines


def other_table(rows: Sequence[Mapping[str, Any]], ceiling: Mapping[str, float]) -> tuple[list[str], list[list[str]]]:
    """An op a row: GB/s of the least traffic of everyone, our share of the copy, the ratio to torch's best."""
    names = list(dict.fromkeys(name for row in rows for name in row["seconds"]))
    lines = []
    for row in rows:
        seconds = medians(row)
        ours = seconds.get("vggfast")
        lines.append([
            row["title"],
            *(f"{row['bytes'] / seconds[name] / 1e9:.0f}" if name in seconds else "-" for name in names),
            f"{row['bytes'] / ours / 1e9 / ceiling['gbytes']:.0%}" if ours else "-", ratio(seconds, "eager"),
        ])  # fmt: skip
    return ["op", *names, "of the copy", "eager / ours"], lines


def show(rows: Sequence[Mapping[str, Any]], ceiling: Mapping[str, float], options: argparse.Namespace) -> None:
    """The tables, who is not in them, and the kernels."""
    dtype, batch = options.dtype, options.batch
    for which in convs.PASSES:
        if chosen := [row for row in rows if row["which"] == which]:
            draw(f"{which}, {dtype}, batch {batch}: TFLOP/s; the product's: {ceiling['tflops']:.0f}",
                 *conv_table(chosen, ceiling))  # fmt: skip
    if chosen := [row for row in rows if row["which"] == OTHERS]:
        draw(f"{dtype}, batch {batch}: GB/s of the least traffic; the copy's: {ceiling['gbytes']:.0f}",
             *other_table(chosen, ceiling))  # fmt: skip
    for row in rows:
        for name, kernels in row["kernels"].items():
            console.print(f"{row['which']}, {row['title']}, {name}: {'; '.join(kernels)}")
    for row in rows:
        for name, why in row["not timed"].items():
            console.print(f"{row['which']}, {row['title']}: {name} is not timed: {why}")


def main(arguments: Sequence[str] | None = None) -> None:
    made = parser()
    options = made.parse_args(arguments)
    if options.rounds < 2:
        made.error(f"--rounds must be at least 2 (quartiles are taken), got {options.rounds}")
    if options.batch < 1:
        made.error(f"--batch must be at least 1, got {options.batch}")
    options.out = options.out or Path(choice.out_file("conv", options.dtype))
    choice.require_gpu(made)
    run(options)


def run(options: argparse.Namespace) -> None:
    """Measures case by case; the file is written after each.

    Raises:
        SystemExit: with status 1, after all of them, where vggfast was wrong or anything ended the run.
    """
    torch.manual_seed(0)
    choice.set_precision(options.dtype)
    flush, metadata = timing.flusher(), timing.gpu()
    ceiling = measuring.ceilings(options.dtype, options.rounds, flush)
    cases = [(measure_conv, case) for case in conv_cases(options)]
    if OTHERS in options.passes:
        cases += [(measure_other, case) for case in other_ops.cases(options.batch, options.dtype)]
    rows: list[dict[str, Any]] = []
    failed = ""
    with ProgressBar("cases", len(cases)) as live:
        for measured, case in cases:
            live.to(len(rows), case.title)
            try:
                rows.append(measured(case, options, flush))
            except Exception as error:  # after an error of the GPU's nothing else will run: what there is counts
                failed = f"{case.title}: the run ends here: {convs.reason(error)}"
                break
            timing.write_results(options.out, rows, gpu=metadata, ceiling=ceiling, peers=versions())
    show(rows, ceiling, options)
    console.print(f"samples: {options.out}")
    if failed:
        console.print(failed)
    if failed or any(name.startswith("vggfast") for row in rows for name in row["not timed"]):
        raise SystemExit(1)
