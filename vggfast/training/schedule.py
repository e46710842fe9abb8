"""The learning rate and the momentum of each step, and when to give up.

Source: Simonyan & Zisserman, section 3.1: the rate is divided by 10 when the validation accuracy stops improving.
One cycle: Smith & Topin, Super-Convergence, 2018, but for their slower last part: here one line falls to 0.
"""

from __future__ import annotations

import math
from typing import Any

from vggfast.runs.config import TrainConfig


class Schedule:
    """The rate as a function of the step and of the validation errors so far.

    Args:
        config: schedule, lr, warmup, rise, momentum, low_momentum, drops, patience, early_stop.
        total_steps: of the run; a cosine or a cycle ends there.
    """

    def __init__(self, config: TrainConfig, total_steps: int) -> None:
        self.config, self.total_steps = config, total_steps
        self.best, self.stale, self.since_drop, self.drops = math.inf, 0, 0, 0

    def rate(self, step: int) -> float:
        """The learning rate of step `step`, from 0."""
        config = self.config
        rate = config.lr * 0.1**self.drops
        if config.schedule == "one-cycle":
            return rate * self._cycle(step)
        if step < config.warmup:
            return rate * (step + 1) / config.warmup
        if config.schedule == "cosine":
            done = (step - config.warmup) / max(1, self.total_steps - config.warmup)
            rate *= (1 + math.cos(math.pi * min(1.0, done))) / 2
        return rate

    def momentum(self, step: int) -> float:
        """The momentum of SGD in step `step`."""
        config = self.config
        if config.schedule != "one-cycle" or not config.low_momentum:
            return config.momentum
        return config.momentum - (config.momentum - config.low_momentum) * self._cycle(step)

    def _cycle(self, step: int) -> float:
        """From 0 up to 1 after `rise` of the steps, and down to 0 behind the last one."""
        top = max(1, round(self.config.rise * self.total_steps))
        if step < top:
            return (step + 1) / top
        return max(0.0, (self.total_steps - step) / (self.total_steps - top + 1))

    def epoch_done(self, error: float) -> None:
        """Takes note of an epoch's validation error."""
        if error < self.best:
            self.best, self.stale, self.since_drop = error, 0, 0
            return
        self.stale += 1
        self.since_drop += 1
        plateau = self.config.schedule == "plateau"
        if plateau and self.since_drop > self.config.patience and self.drops < self.config.drops:
            self.drops, self.since_drop = self.drops + 1, 0

    @property
    def given_up(self) -> bool:
        """Whether `early_stop` epochs have passed without a better validation error."""
        return bool(self.config.early_stop) and self.stale >= self.config.early_stop

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("best", "stale", "since_drop", "drops")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
