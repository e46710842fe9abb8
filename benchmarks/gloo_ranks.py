"""Ranks on this machine, a thread each, that average gradients by Gloo: what an all-reduce takes, what a backward pass
hides of it, and the buckets that DistributedDataParallel makes. For benchmarks/scaling.py --measure."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timing
import torch
import torch.distributed as dist
import torch.multiprocessing
from data_parallel import parameters
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from vggfast.models import VGG

CONFIG, SIZE, BATCH = "A", 64, 16  # of the step: small images, so that its length is that of the all-reduce


def _wrapped(config: str) -> DistributedDataParallel:
    torch.manual_seed(0)
    return DistributedDataParallel(VGG(config), gradient_as_bucket_view=True)


def _step(model: DistributedDataParallel, x: torch.Tensor, together: bool) -> Callable[[], None]:
    labels = torch.zeros(len(x), dtype=torch.long)

    def run() -> None:
        model.zero_grad(set_to_none=True)
        if together:
            cross_entropy(model(x), labels).backward()
        else:
            with model.no_sync():
                cross_entropy(model(x), labels).backward()
        dist.barrier()

    return run


def _all_reduce(config: str, dtype: torch.dtype) -> Callable[[], None]:
    values = torch.zeros(parameters(config), dtype=dtype)

    def run() -> None:
        dist.all_reduce(values)
        dist.barrier()

    return run


def _buckets(config: str) -> dict[str, Any]:
    """What DistributedDataParallel says of its buckets before and after it has rebuilt them; bytes."""
    model, x = _wrapped(config), torch.zeros(1, 3, 32, 32)
    for _ in range(3):  # rebuilt as the second begins, said after the third
        _step(model, x, True)()
    said = model._get_ddp_logging_data()
    return {name: [int(size) for size in said[name].split(",")] for name in ("bucket_sizes", "rebuilt_bucket_sizes")}


def _rank(rank: int, ranks: int, rounds: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=ranks)
    rows = [{"what": "buckets", "config": "D", **_buckets("D")}]
    candidates = {f"all-reduce {config} {name}": _all_reduce(config, dtype)
                  for config, name, dtype in (("D", "fp32", torch.float32), ("D", "bf16", torch.bfloat16),
                                              (CONFIG, "fp32", torch.float32))}  # fmt: skip
    model = _wrapped(CONFIG)
    x = torch.randn(BATCH, 3, SIZE, SIZE)
    candidates["step alone"], candidates["step together"] = (_step(model, x, together) for together in (False, True))
    samples = timing.interleaved(candidates, rounds, seconds=0.0)  # as many calls on all ranks
    rows += [{"what": name, "seconds": seconds} for name, seconds in samples.items()]
    if rank == 0:
        Path(folder, "rows.json").write_text(json.dumps(rows))
    dist.destroy_process_group()


def measured(ranks: int = 2, rounds: int = 9) -> list[dict[str, Any]]:
    """Rows of rank 0, each with what its figure is worth nothing without."""
    before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_rank, (ranks, rounds, folder), ranks)
        rows = json.loads(Path(folder, "rows.json").read_text())
    about = {
        "measured": True,
        "ranks": ranks,
        "step": f"{CONFIG} at {SIZE}x{SIZE}, {BATCH} images a rank, fp32, a thread a rank",
        "load before": before,
        "environment": timing.environment(),
    }
    return [{**row, **about} for row in rows]
