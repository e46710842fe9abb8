"""Times every tile that a 3x3 layer of VGG-16 could have on Hopper, finds the fastest, and writes the table of them
that the kernels' choice reads (csrc/cuda/conv/sm90/fprop/tuned.h). tune.py is the command.
"""

from __future__ import annotations

import argparse
import statistics
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import timing
import torch
from tiles import Fprop, choices, fprop_of

from gpu import candidates as convs
from gpu import choice, conv, measuring
from vggfast.io import write_atomically
from vggfast.ops import _backends
from vggfast.ops.conv import conv_dgrad

PASSES = ("fprop", "dgrad")
TIE = 0.01  # tiles this close to the fastest are as fast: the estimate decides among them
# What a rounding of a result, and of tf32's factors, is at most; twice that tells a tile's results from another's.
ROUNDING = {"bf16": 2.0**-8, "fp16": 2.0**-11, "tf32": 2.0**-11}


def kernels() -> ModuleType:
    """The module whose kernels the ops run here."""
    return _backends.backend_of(torch.empty(0, device=choice.DEVICE)).ops


def cases(dtypes: Sequence[str], batches: Sequence[int], passes: Sequence[str]) -> list[convs.Case]:
    """Each distinct layer that the Hopper kernels take, forward as the net has it, and backward to its input."""
    found = []
    for dtype in dtypes:
        for batch in batches:
            options = argparse.Namespace(passes=passes, batch=batch, dtype=dtype)
            every = [case._replace(pool=case.pool and case.which == "fprop") for case in conv.conv_cases(options)]
            found += [case for case in every if problem(case).on_hopper]
    return found


def problem(case: convs.Case) -> Fprop:
    return fprop_of(case.cin, case.cout, case.size, case.batch, case.which, case.pool, case.dtype)


def candidates(layer: convs.Layer, tiles: Sequence[str]) -> dict[str, convs.Candidate]:
    """The layer by each tile: forward with bias, ReLU and pool, or the gradient of the convolution alone."""
    ops, t, size = kernels(), layer.within("NHWC"), layer.case.size
    forward = layer.case.which == "fprop"
    call = convs.our_forward(layer).run if forward else lambda: conv_dgrad(t["gz"], None, t["weight"], size, size)

    def by(tile: str) -> Callable[[], Any]:
        def run() -> Any:
            ops.set_conv_tile(tile)
            return call()

        return run

    return {tile: convs.Candidate(by(tile), "fused" if forward else "conv") for tile in tiles}


def strays(found: Mapping[str, convs.Candidate], default: str, wrong: Mapping[str, str], dtype: str) -> dict[str, str]:
    """{tile: why} of those of which any value is further from the default tile's than roundings take it.

    One wrong pixel of many is too little for the error of a whole result.
    """
    if default in wrong:
        return {}
    expected = found[default].once().double()
    allowed = 2 * ROUNDING[dtype] * (expected.abs() + expected.square().mean().sqrt())
    reasons = {}
    for tile in found.keys() - wrong.keys():
        off = ((found[tile].once().double() - expected).abs() / allowed).max().item()
        if not off <= 1:
            reasons[tile] = f"wrong: a value is {off:.1e} times as far from {default}'s as roundings may take it"
    return reasons


def measure(case: convs.Case, options: argparse.Namespace, flush: Callable[[], Any]) -> dict[str, Any]:
    """Errors and samples of every tile of a case. No tile is timed that is not right."""
    tiles = choices(kernels(), problem(case), options.num_sms, options.clusters)
    default = next(c.tile for c in tiles if c.chosen)
    layer = convs.Layer(case)
    found = candidates(layer, [c.tile for c in tiles])
    try:
        errors, wrong = measuring.checked(found, lambda name: convs.exact(layer, name, {"conv": layer.gz}), case.dtype)
        wrong |= strays(found, default, wrong, case.dtype)
        seconds = measuring.timed(found, wrong, options.rounds, flush)
    finally:
        kernels().set_conv_tile("auto")
    return {**case._asdict(), "title": f"{case.which}, {case.dtype}, batch {case.batch}, {case.title}",
            "problem": problem(case)._asdict(), "default": default, "errors": errors, "not timed": wrong,
            "estimates": {c.tile: c.clocks for c in tiles}, "seconds": seconds,
            "state": timing.gpu_state()}  # fmt: skip


# ---- the table ------------------------------------------------------------------------------------------------------


def medians(row: Mapping[str, Any]) -> dict[str, float]:
    return {tile: timing.median_and_spread(samples)[0] for tile, samples in row["seconds"].items()}


def fastest(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """The tile of rows that are one problem to the kernels, such as bf16 and fp16: by the mean of its times, each as a
    multiple of the row's least. Only tiles count that were right in all rows."""
    times = [medians(row) for row in rows]
    common = set.intersection(*(set(row) for row in times))
    if not common:
        return None
    mean = {tile: statistics.mean(row[tile] / min(row.values()) for row in times) for tile in common}
    close = {tile for tile in common if mean[tile] <= (1 + TIE) * min(mean.values())}
    return min(close, key=lambda tile: (rows[0]["estimates"][tile], mean[tile]))


def entries(rows: Sequence[Mapping[str, Any]]) -> dict[Fprop, str]:
    """The fastest tile of each problem."""
    problems: dict[Fprop, list[Mapping[str, Any]]] = {}
    for row in rows:
        problems.setdefault(Fprop(**row["problem"]), []).append(row)
    found = {key: fastest(same) for key, same in problems.items()}
    return {key: tile for key, tile in found.items() if tile}


def tile_id(tile: str) -> str:
    """The enumerator (fprop/tile_id.h) of a tile's name."""
    return "TileId::" + tile.replace("-", "_")


def table_text(found: Mapping[Fprop, str], num_sms: int, by: str) -> str:
    """tuned.h. `by` says which run wrote it."""
    about = ("The fastest tiles of fprop and dgrad, as benchmarks/tune.py measured them; it writes this file (choice.h"
             f" says how it is read). By: {by}.")  # fmt: skip
    about = textwrap.fill(about, 120, initial_indent="// ", subsequent_indent="// ", break_on_hyphens=False)
    order = sorted(found, key=lambda f: (f.bytes, f.cin, f.cout, f.h, f.w, f.pool, f.n))
    lines = [f"    {{{f.bytes}, {f.cin}, {f.cout}, {f.h}, {f.w}, {f.n}, {str(f.pool).lower()}, {tile_id(found[f])}}},\n"
             for f in order]  # fmt: skip
    return f"""{about}
#pragma once

#include <array>

#include "cuda/conv/sm90/fprop/choice.h"

namespace vggfast::cuda::sm90 {{

constexpr int tuned_num_sms = {num_sms};

// clang-format off
constexpr std::array<TunedTile, {len(lines)}> tuned_tiles{{{{
    // bytes, cin, cout, h, w, n, pool, tile
{"".join(lines)}}}}};
// clang-format on

}}  // namespace vggfast::cuda::sm90
"""


def write_table(path: Path, rows: Sequence[Mapping[str, Any]], num_sms: int, by: str) -> None:
    """Writes tuned.h anew, or leaves the old one whole."""
    text = table_text(entries(rows), num_sms, by)
    write_atomically(path, lambda temporary: temporary.write_text(text))
