"""Do N ranks train the network that one process trains? Gradients of a step, and weights after some, side by side.

Runs the trainer under torchrun with Gloo, on the handwritten digits and without dropout (each rank draws masks of its
own), with a batch that the ranks do not divide. Prints a table of differences from one process and of ranks from each
other, and writes it.

    python benchmarks/ranks.py --ranks 1 2 4 --steps 20 --json benchmarks/results/ranks-cpu.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from vggfast import __version__
from vggfast.distributed import DistributedContext
from vggfast.io import write_atomically
from vggfast.runs.config import TrainConfig
from vggfast.tasks import build_trainer
from vggfast.training.presets import PRESETS
from vggfast.training.step import StepMetrics, TrainStep

_BATCH = 30  # 2 ranks take 15 each, 4 ranks 7 or 8; an epoch's last batch has 28


class _Observed(TrainStep):
    """Keeps the gradients of its first step."""

    gradients: dict[str, torch.Tensor] | None = None

    def __call__(self, *arguments: Any, **options: Any) -> StepMetrics:
        sums = super().__call__(*arguments, **options)
        if self.gradients is None:
            self.gradients = {name: p.grad.clone() for name, p in self.bare.named_parameters()}
        return sums


def train(folder: Path, steps: int, accumulate: int) -> None:
    """One rank's part: its averaged gradients of the first step, and its weights after the last one, into `folder`."""
    with DistributedContext.start("cpu") as context:
        config = TrainConfig(**{
            **PRESETS["digits"], "batch_size": _BATCH, "dropout": 0.0, "steps": steps, "accumulate": accumulate,
        })  # fmt: skip
        trainer = build_trainer(config, folder / "run", context, overwrite=True)
        trainer.train_step = _Observed(config, trainer.task, context, trainer.model, trainer.optimiser)
        trainer.run()
        torch.save(
            {"gradients": trainer.train_step.gradients, "weights": trainer.model.state_dict()},
            folder / f"{context.rank}.pt",
        )


def launch(ranks: int, steps: int, accumulate: int = 1) -> list[dict[str, dict[str, torch.Tensor]]]:
    """What each of `ranks` ranks found; one process runs without torchrun."""
    program = [str(Path(__file__).resolve()), "--steps", str(steps), "--accumulate", str(accumulate), "--rank-into"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        launcher = [sys.executable]
        if ranks > 1:
            launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        subprocess.run([*launcher, *program, folder], env=environment, check=True, capture_output=True, text=True)
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(ranks)]


def difference(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> dict[str, float]:
    """Relative L2 over all tensors, the largest relative L2 of one tensor, and the largest absolute difference."""
    pairs = [(got[name].double(), expected[name].double()) for name in expected]
    whole = sum((a - b).square().sum() for a, b in pairs) / sum(b.square().sum() for _, b in pairs)
    each = [((a - b).norm() / b.norm().clamp_min(1e-30)).item() for a, b in pairs]
    return {
        "relative_l2": float(whole) ** 0.5,
        "worst_tensor": max(each),
        "largest": max((a - b).abs().max().item() for a, b in pairs),
    }


def compare(ranks: int, steps: int, single: dict[str, dict[str, torch.Tensor]], accumulate: int = 1) -> dict[str, Any]:
    """A row of the table."""
    found = launch(ranks, steps, accumulate)
    equal = all(torch.equal(rank[kind][name], found[0][kind][name])
                for rank in found for kind in found[0] for name in found[0][kind])  # fmt: skip
    return {
        "ranks": ranks, "accumulate": accumulate, "steps": steps, "ranks_bit_equal": equal,
        "gradients": difference(found[0]["gradients"], single["gradients"]),
        "weights": difference(found[0]["weights"], single["weights"]),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4], help="numbers of ranks to compare with one")
    parser.add_argument("--steps", type=int, default=20, help="steps before the weights are compared (default 20)")
    parser.add_argument("--json", type=Path, help="write the table there too")
    parser.add_argument("--accumulate", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--rank-into", type=Path, help=argparse.SUPPRESS)  # this process is a rank
    parsed = parser.parse_args()
    if parsed.rank_into:
        train(parsed.rank_into, parsed.steps, parsed.accumulate)
        return
    (single,) = launch(1, parsed.steps)
    plans = [(1, 3), *((ranks, 1) for ranks in parsed.ranks), (max(parsed.ranks), 3)]
    rows = [compare(ranks, parsed.steps, single, accumulate) for ranks, accumulate in plans]
    print(
        f"{'ranks':>5} {'parts':>5}  {'gradients, step 1':^32}  {f'weights, step {parsed.steps}':^32}  ranks bit-equal"
    )
    for row in rows:
        figures = "  ".join(
            " ".join(f"{row[kind][name]:10.2e}" for name in ("relative_l2", "worst_tensor", "largest"))
            for kind in ("gradients", "weights")
        )
        print(f"{row['ranks']:5} {row['accumulate']:5}  {figures}  {row['ranks_bit_equal']}")
    print("       relative L2 of all, of the worst tensor, largest difference; against one process in one part")
    if parsed.json:
        versions = {"vggfast": __version__, "torch": torch.__version__, "python": platform.python_version()}
        text = json.dumps({"versions": versions, "batch_size": _BATCH, "rows": rows}, indent=2) + "\n"
        write_atomically(parsed.json, lambda temporary: temporary.write_text(text))


if __name__ == "__main__":
    main()
