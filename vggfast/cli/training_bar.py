"""What ``vggfast train`` shows while it trains."""

from __future__ import annotations

from collections.abc import Mapping

from vggfast.console import ProgressBar, say
from vggfast.training.observer import Observer


class TrainingBar(Observer):
    """Draws a run's steps as a bar; epochs and warnings are lines that stay.

    Args:
        error_names: what the task's two errors are called.
        quiet: print nothing, as all ranks but the first.
    """

    def __init__(self, error_names: tuple[str, str], quiet: bool = False) -> None:
        self._error_names, self._quiet = error_names, quiet

    def on_begin(self, step: int, total_steps: int) -> None:
        self._bar = ProgressBar("training", total_steps, step, self._quiet)
        self._bar.__enter__()

    def on_step(self, row: Mapping[str, float]) -> None:
        self._bar.to(int(row["step"]), step_text(row, self._error_names))

    def on_validation_batch(self, number: int, batches: int) -> None:
        self._bar.to(self._bar.done, f"validating, batch {number} of {batches}")

    def on_epoch(self, row: Mapping[str, float]) -> None:
        errors = _errors_text(self._error_names, (row["val_top1_error"], row["val_top5_error"]), 2)
        self._line(
            f"epoch {row['epoch']:3d}  step {row['step']:6d}  lr {row['lr']:.3g}  loss {row['train_loss']:.4f}  "
            f"validation loss {row['val_loss']:.4f}  {errors}  {row['images_per_s']:.0f} images/s  "
            f"data wait {row['data_wait']:.1%}"
        )

    def on_warning(self, text: str) -> None:
        self._line(f"warning: {text}")

    def _line(self, text: str) -> None:
        if not self._quiet:
            say(text)

    def on_end(self) -> None:
        self._bar.__exit__()


def step_text(row: Mapping[str, float], error_names: tuple[str, str]) -> str:
    """The lines under the bar: a row of :data:`vggfast.runs.log.STEP_COLUMNS`."""
    errors = _errors_text(error_names, (row["top1_error"], row["top5_error"]), 1)
    return (
        f"epoch {row['epoch']}  loss {row['loss']:.3f}  {row['images_per_s']:.0f} images/s  "
        f"data wait {100 * row['data_wait']:.0f} %\n{errors}"
    )


def _errors_text(names: tuple[str, str], errors: tuple[float, float], digits: int) -> str:
    """Both errors in per cent; a class's also as an accuracy, which boxes have none of."""
    return "  ".join(
        f"{name} error {error:.{digits}f} %"
        + (f", accuracy {100 - error:.{digits}f} %" if name.startswith("top-") else "")
        for name, error in zip(names, errors, strict=True)
    )
