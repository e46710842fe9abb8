"""Whom a run tells how it goes: training itself prints nothing."""

from __future__ import annotations

from collections.abc import Mapping


class Observer:
    """Listens to a :class:`vggfast.training.trainer.Trainer`, on each rank. A subclass overrides some methods.

    The rows are those of the log: their names are :data:`vggfast.runs.log.STEP_COLUMNS` and ``EPOCH_COLUMNS``.
    """

    def on_begin(self, step: int, total_steps: int) -> None:
        """A session begins after `step` of the run's `total_steps` steps."""

    def on_step(self, row: Mapping[str, float]) -> None:
        """A step is done; the errors are those since the last row of the log."""

    def on_validation_batch(self, number: int, batches: int) -> None:
        """A validation has come to its `number`-th batch of `batches`."""

    def on_epoch(self, row: Mapping[str, float]) -> None:
        """An epoch was validated."""

    def on_warning(self, text: str) -> None:
        """Something is wrong, and the run goes on."""

    def on_end(self) -> None:
        """The session ends, whether the run is complete, was stopped or failed."""
