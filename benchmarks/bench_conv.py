"""Each distinct 3x3 layer of VGG-16, forward and backward: every algorithm of ours and of torch, float32, on the CPU;
the one that is chosen in bfloat16, and forward in int8 (of rectified images, float32 in and out), beside torch's.

All are compared with float64 before anything is timed; candidates take turns; figures come from medians. GFLOP/s count
the work of a direct convolution, so Winograd may exceed the machine's ceiling, which is measured in the same run. The
process runs with an allocator that keeps its memory and advises huge pages: torch's best case, since fresh pages cost
it more than some of these layers.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import timing
import torch
from gpu.choice import HELP, gpu_asked_for
from layers import (
    ALGORITHMS,
    BF16,
    INT8,
    LAYERS,
    PASSES,
    TORCHS,
    bf16_candidates,
    candidates,
    exact,
    int8_candidates,
    relative_error,
)
from peers.report import draw
from processor import file_name
from rich.progress import track

from vggfast import _native

# Relative L2, against float64 of the values before they are rounded: measured at 3e-3 in bf16 and 9e-3 in int8.
LIMITS = {**dict.fromkeys(ALGORITHMS, 1e-5), BF16[0]: 1e-2, INT8[0]: 3e-2}
ALLOCATOR = "glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=68719476736"
CANDIDATES = (*ALGORITHMS, *TORCHS, *BF16, *INT8)
RESULTS = Path(__file__).parent / "results" / file_name("conv-cpu")


def ceilings(rounds: int) -> dict[str, float]:
    """What the machine reaches now: GFLOP/s of a matrix product, GB/s of a copy that exceeds the caches."""
    a, b, c = (torch.randn(2048, 2048) for _ in range(3))
    narrow_a, narrow_b, narrow_c = (each.bfloat16() for each in (a, b, c))
    source, target = torch.zeros(64 << 20), torch.zeros(64 << 20)
    samples = timing.interleaved(
        {
            "product": lambda: torch.mm(a, b, out=c),
            "bf16 product": lambda: torch.mm(narrow_a, narrow_b, out=narrow_c),
            "copy": lambda: target.copy_(source),
        },
        rounds,
    )
    seconds = {name: timing.median_and_spread(each)[0] for name, each in samples.items()}
    return {
        "gflops": 2 * 2048**3 / seconds["product"] / 1e9,
        "bf16_gflops": 2 * 2048**3 / seconds["bf16 product"] / 1e9,
        "gbytes": 2 * 4 * (64 << 20) / seconds["copy"] / 1e9,
    }


def floor(which: str, batch: int, layer: tuple[int, int, int], ceiling: dict[str, float]) -> dict[str, float | str]:
    """The scheme that "auto" takes: its operations and bytes, and the milliseconds that the ceilings allow them."""
    cin, cout, size = layer
    if which == "dgrad":
        cin, cout = cout, cin
    _native.set_conv_algorithm("auto")
    algorithm, multiply_adds = _native.load().conv_cost(which, batch, cin, size, size, cout, 3)
    bytes_ = 4 * (batch * size * size * (cin + cout) + 9 * cin * cout)  # once each; the caches may keep the rest
    milliseconds = max(2 * multiply_adds / ceiling["gflops"], bytes_ / ceiling["gbytes"]) / 1e6
    return {"algorithm": algorithm, "gflop": 2 * multiply_adds / 1e9, "mbytes": bytes_ / 1e6, "floor_ms": milliseconds}


def measure(layer: tuple[int, int, int], which: str, batch: int, rounds: int, ceiling: dict[str, float]) -> dict:
    """Errors and samples of every candidate for one layer and pass."""
    cin, cout, size = layer
    x = torch.randn(batch, cin, size, size).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(cout, cin, 3, 3) / (3 * cin**0.5)
    gy = torch.randn(batch, cout, size, size).contiguous(memory_format=torch.channels_last)
    calls = {**candidates(x, weight, gy, which), **bf16_candidates(x, weight, gy, which)}
    reference = exact(x, weight, gy, which)
    errors = {name: relative_error(call(), reference) for name, call in calls.items()}
    if which == "fprop":
        rectified, small = x.relu(), int8_candidates(x.relu(), weight)
        reference = exact(rectified, weight, gy, which)
        errors.update({name: relative_error(call(), reference) for name, call in small.items()})
        calls.update(small)
    for name, limit in LIMITS.items():
        if not errors.get(name, 0) < limit:
            raise AssertionError(f"{layer} {which}, {name}: error must be less than {limit}, got {errors[name]:.1e}")
    del reference
    samples = timing.interleaved(calls, rounds)
    return {"layer": layer, "pass": which, "batch": batch, "errors": errors, "seconds": samples,
            "scheme": floor(which, batch, layer, ceiling)}  # fmt: skip


def _ratio(seconds: dict[str, float], ours: str, theirs: str) -> str:
    return f"{seconds[theirs] / seconds[ours]:.2f}" if ours in seconds else "-"


def tables(rows: list[dict], ceiling: dict[str, float], title: str) -> None:
    """Speeds beside torch's; then what the scheme that "auto" takes could reach."""
    speeds, schemes = [], []
    for row in rows:
        cin, cout, size = row["layer"]
        name = f"{cin} -> {cout}, {size}²"
        flops = 2 * 9 * cin * cout * size * size * row["batch"]
        seconds = {each: timing.median_and_spread(samples)[0] for each, samples in row["seconds"].items()}
        ours, scheme = seconds["auto"], row["scheme"]
        ratio = min(seconds[each] for each in TORCHS) / ours
        figures = [f"{flops / seconds[each] / 1e9:.0f}" if each in seconds else "-" for each in CANDIDATES]
        speeds.append([name, row["pass"], *figures, f"{ratio:.2f}", *(_ratio(seconds, *each) for each in (BF16, INT8)),
                       f"{timing.median_and_spread(row['seconds']['auto'])[1]:.0%}"])  # fmt: skip
        schemes.append([name, row["pass"], scheme["algorithm"], f"{scheme['gflop']:.2f}", f"{scheme['mbytes']:.0f}",
                        f"{scheme['floor_ms']:.1f}", f"{ours * 1e3:.1f}", f"{scheme['floor_ms'] / ours / 1e3:.0%}",
                        f"{flops / ours / ceiling['gflops'] / 1e9:.2f}",
                        f"{flops / ceiling['bf16_gflops'] / 1e6:.1f}", f"{row['errors']['auto']:.1e}"])  # fmt: skip
    draw(f"GFLOP/s of direct work, {title}; ratio: auto to torch's best, in float32, bfloat16 and int8",
         ("layer", "pass", *CANDIDATES, "ratio", "bf16", "int8", "spread"), speeds)  # fmt: skip
    draw(f"auto's scheme; ceilings {ceiling['gflops']:.0f} GFLOP/s, in bf16 {ceiling['bf16_gflops']:.0f}, "
         f"{ceiling['gbytes']:.0f} GB/s; last but one: what direct work in bf16 takes at its ceiling",
         ("layer", "pass", "scheme", "GFLOP", "MB", "floor ms", "ms", "floor/ms", "direct work/ceiling", "bf16 ms",
          "error"),
         schemes)  # fmt: skip


def plot(rows: list[dict], path: Path, ceiling: float) -> None:
    """GFLOP/s of ours and of torch's best, layer by layer."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(13, 4), sharey=True)
    for axis, which in zip(axes, PASSES, strict=True):
        chosen = [row for row in rows if row["pass"] == which]
        flops = [2 * 9 * r["layer"][0] * r["layer"][1] * r["layer"][2] ** 2 * r["batch"] / 1e9 for r in chosen]
        for i, (label, names) in enumerate((("vggfast", ("auto",)), ("torch, its best", TORCHS))):
            speeds = [f / min(timing.median_and_spread(r["seconds"][n])[0] for n in names)
                      for f, r in zip(flops, chosen, strict=True)]  # fmt: skip
            axis.bar([x + 0.4 * i for x in range(len(chosen))], speeds, 0.4, label=label)
        axis.axhline(ceiling, color="gray", linewidth=1, linestyle="--", label="matrix product")
        axis.set_xticks(range(len(chosen)), ["{}→{}\n{}²".format(*r["layer"]) for r in chosen], fontsize=7)
        axis.set_title(which)
    axes[0].set_ylabel("GFLOP/s of direct work")
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    if gpu_asked_for(None):
        from gpu import conv

        return conv.main()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help=HELP)
    parser.add_argument("--batch", type=int, default=8, help="images (default 8)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads (default: all)")
    parser.add_argument("--rounds", type=int, default=7, help="samples of each candidate (default 7)")
    parser.add_argument("--passes", nargs="+", choices=PASSES, default=PASSES, help="default: all three")
    parser.add_argument("--out", type=Path, default=RESULTS, help="JSON file for every sample, and its .png")
    arguments = parser.parse_args()
    if "GLIBC_TUNABLES" not in os.environ:
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "GLIBC_TUNABLES": ALLOCATOR})
    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    ceiling = ceilings(arguments.rounds)
    cases = [(layer, which) for layer in LAYERS for which in arguments.passes]
    rows = [
        measure(layer, which, arguments.batch, arguments.rounds, ceiling) for layer, which in track(cases, "layers")
    ]
    tables(rows, ceiling, f"batch {arguments.batch}, {arguments.threads} threads")
    timing.write_results(arguments.out, rows, ceiling=ceiling)
    plot(rows, arguments.out.with_suffix(".png"), ceiling["gflops"])


if __name__ == "__main__":
    main()
