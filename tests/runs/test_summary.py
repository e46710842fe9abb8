"""What the rows of a run's validations add up to."""

import pytest

from vggfast.runs.summary import summary


def _epoch(epoch, **changes):
    row = {"epoch": epoch, "step": 10 * (epoch + 1), "lr": 0.01, "train_loss": 2.5, "train_top1_error": 60.0,
           "train_top5_error": 20.0, "val_loss": 2.4, "val_top1_error": 55.0 - epoch, "val_top5_error": 18.0,
           "seconds": 2.0, "images_per_s": 100.0, "data_wait": 0.25, "bad_images": 3}  # fmt: skip
    return {**row, **changes}


def test_summary_counts_an_epoch_once():
    """One whose steps ran out half-way has a row of its first half, and one of the whole."""
    rows = [_epoch(0), _epoch(1, step=15, seconds=1.0, val_top1_error=70.0),
            _epoch(1, seconds=6.0, images_per_s=200.0, data_wait=0.05)]  # fmt: skip
    found = summary(rows)
    assert (found["steps"], found["epochs"], found["train_seconds"]) == (20, 2, 8.0)
    assert found["images_per_s"] == pytest.approx((2 * 100 + 6 * 200) / 8)
    assert found["data_wait"] == pytest.approx((2 * 0.25 + 6 * 0.05) / 8)
    assert found["best"] is rows[2]
    assert summary([]) == {}
