"""The tasks that a network can be trained for, and the final evaluation of their runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vggfast._progress import StageProgress, silent
from vggfast.distributed import DistributedContext
from vggfast.runs.config import TrainConfig
from vggfast.tasks import classification, localisation
from vggfast.tasks.base import FinalEval
from vggfast.tasks.classification import Classification
from vggfast.tasks.localisation import Localisation
from vggfast.training.task import Task
from vggfast.training.trainer import Trainer

__all__ = ["Classification", "FinalEval", "Localisation", "build_trainer", "final_eval", "task_of"]


def task_of(config: TrainConfig) -> Task:
    """The task that `config.predict` names."""
    return Classification() if config.predict == "classes" else Localisation(config.predict)


def build_trainer(
    config: TrainConfig, out: str | Path, context: DistributedContext | None = None, **options: Any
) -> Trainer:
    """The trainer of a run; `options` and errors are those of :class:`vggfast.training.trainer.Trainer`."""
    return Trainer(config, task_of(config), out, context, **options)


def final_eval(trainer: Trainer, progress: StageProgress = silent) -> FinalEval | None:
    """Evaluates the best network of a run that has ended; on all ranks. None on all but the first.

    Everything that it makes goes into the run's folder.

    Args:
        trainer: its run has ended, and its log is closed.
        progress: on rank 0, is told by protocol how many images are done.
    """
    task = classification if trainer.config.predict == "classes" else localisation
    return task.final_eval(trainer, progress if trainer.context.main else silent)
