"""One step of the optimiser over a batch that all ranks share.

The gradient is that of the mean loss over the whole batch, whatever the shares of ranks and parts are: each rank scales
its sum by ranks / images, because averaging over the ranks divides by their number.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from vggfast.data import Batch
from vggfast.distributed import DistributedContext
from vggfast.graph import runs_no_others
from vggfast.ops import _packed
from vggfast.runs.config import TrainConfig
from vggfast.training.build import set_training
from vggfast.training.task import Task

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
_LEAST_SCALE = 2.0**-10  # of fp16's losses; below it, no step of any size is left to try


@dataclass
class StepMetrics:
    """What a step saw, over all ranks: sums over the images, and the norm of the gradient before any clipping."""

    loss: float
    errors: tuple[float, float]  # images that count in each of the task's two errors (see Task.error_names)
    images: float
    stop: bool  # whether a rank was asked to stop
    bad: bool  # whether a rank had an image that does not decode
    grad_norm: float


def dropout_seed(seed: int, step: int, rank: int) -> int:
    """The seed of a step's dropout: no state of a generator needs to be carried from step to step."""
    return int(np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0] >> np.uint64(1))


class TrainStep:
    """Forward, backward, averaging, checks and update.

    Args:
        task: measures the losses and errors.
        model: on the context's device; its parameters are what changes.
        optimiser: of these parameters.
    """

    def __init__(
        self, config: TrainConfig, task: Task, context: DistributedContext, model: nn.Module,
        optimiser: torch.optim.Optimizer,
    ) -> None:  # fmt: skip
        self.config, self.task, self.context, self.optimiser = config, task, context, optimiser
        self.bare = model
        set_training(model)
        self.model = context.wrap(
            model, torch.zeros(1, 3, config.crop, config.crop, device=context.device), config.compress
        )
        self.scaler = torch.amp.GradScaler(context.device.type, enabled=config.precision == "fp16")
        self.average = (
            AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.ema), use_buffers=True)
            if config.ema
            else None
        )

    @property
    def result(self) -> nn.Module:
        """The network to validate and to keep."""
        return self.bare if self.average is None else self.average.module

    def share_statistics(self) -> None:
        """Makes batch norm's running statistics those of rank 0, as each forward in training does."""
        self.context.share(self.bare.buffers())
        if self.average is not None:
            self.context.share(self.average.buffers())

    def forward(self, model: nn.Module, images: Tensor) -> Tensor:
        """Scores in float32, computed in the run's precision."""
        dtype = _AUTOCAST.get(self.config.precision)
        with torch.autocast(self.context.device.type, dtype) if dtype else contextlib.nullcontext():
            return model(images).float()

    def __call__(
        self, batch: Batch, step: int, rate: float, stop: bool = False, momentum: float | None = None
    ) -> StepMetrics:
        """Does step number `step` at this learning rate; `stop` tells the other ranks of a request to stop.

        `momentum`: of SGD; None keeps the optimiser's.

        Raises:
            FloatingPointError: loss or gradient is not finite; the text names step, layer and norms. Nothing changed.
        """
        for group in self.optimiser.param_groups:
            group["lr"] = rate
            if momentum is not None and "momentum" in group:
                group["momentum"] = momentum
        self.optimiser.zero_grad(set_to_none=True)
        torch.manual_seed(dropout_seed(self.config.seed, step, self.context.rank))
        tensors = [t.to(self.context.device, non_blocking=True) for t in batch.tensors]
        parts = list(zip(*(t.chunk(self.config.accumulate) for t in tensors), strict=True))
        sums = torch.zeros(4, dtype=torch.float64, device=self.context.device)
        with self._packing_once(len(parts)):
            for i, part in enumerate(parts):
                with self._averaging(i + 1 == len(parts)):
                    sums += self._backward(batch.total, *part)
        self.scaler.unscale_(self.optimiser)
        gradients = [p.grad for p in self.bare.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        *own, grad_norm = torch.cat([sums, norm.double()[None]]).tolist()
        loss, first, second, seen, stops, bad = self.context.totals([*own, float(stop), float(len(batch.bad))])
        self._check(step, loss / max(seen, 1), grad_norm)
        if self.config.clip_norm:
            torch.nn.utils.clip_grads_with_norm_(self.bare.parameters(), self.config.clip_norm, norm)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        if self.average is not None:
            self.average.update_parameters(self.bare)
        return StepMetrics(loss, (first, second), seen, stops > 0, bad > 0, grad_norm)

    def _packing_once(self, parts: int) -> contextlib.AbstractContextManager:
        """Parts share the weights that kernels pack, where no code of others runs that might write to the weights. One
        part would use each pack once."""
        if parts == 1 or not runs_no_others(self.bare):
            return contextlib.nullcontext()
        return _packed.unchanged(p for p in self.bare.parameters() if p.dim() == 4)

    def _averaging(self, now: bool) -> contextlib.AbstractContextManager:
        """Ranks average their gradients in the backward, or leave it to a later one."""
        model = self.model
        return model.no_sync() if isinstance(model, DistributedDataParallel) and not now else contextlib.nullcontext()

    def _backward(self, total: int, images: Tensor, labels: Tensor, counts: Tensor, *boxes: Tensor) -> Tensor:
        """Adds a part's gradients; its sums of loss, first and second error, and images."""
        outputs = self.forward(self.model, images)
        losses, *misses = self.task.measure(outputs, self.config.label_smoothing, labels, *boxes)
        loss = (losses * counts).sum()
        self.scaler.scale(loss * (self.context.size / total)).backward()
        return torch.stack([loss.detach(), *((miss & counts).sum() for miss in misses), counts.sum()]).double()

    def _check(self, step: int, loss: float, norm: float) -> None:
        if self.scaler.is_enabled():  # an infinite gradient only makes the scale smaller
            if self.scaler.get_scale() >= _LEAST_SCALE and math.isfinite(loss):
                return
        elif math.isfinite(loss) and math.isfinite(norm):
            return
        norms = {
            name.rpartition(".")[0]: p.grad.norm().item()
            for name, p in self.bare.named_parameters()
            if p.grad is not None and name.endswith("weight")
        }
        bad = [name for name, value in norms.items() if not math.isfinite(value)]
        where = f"first not finite, from the output on, in {bad[-1]}" if bad else "finite in every layer"
        listed = ", ".join(f"{name} {value:.3g}" for name, value in norms.items())
        raise FloatingPointError(
            f"the loss is {loss} and the gradient's norm {norm:.3g} at step {step}; the gradient is {where}; norms by "
            f"layer: {listed}. The last checkpoint is from before it: a lower lr, another init or clip_norm may help"
        )
