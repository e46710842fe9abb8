"""A signal to a trainer that validates: it stops there, and the run that goes on equals one that was never stopped."""

import os
import signal

import pytest

from tests.training.test_trainer import _assert_same_weights, _config, _rows
from vggfast.tasks import build_trainer
from vggfast.training.observer import Observer

pytestmark = pytest.mark.usefixtures("one_thread")


class _Killed(Observer):
    """Sends a signal to the trainer at the first batch of the second epoch's validation."""

    def __init__(self):
        self.epochs = 0

    def on_epoch(self, row):
        self.epochs += 1

    def on_validation_batch(self, number, of):
        if self.epochs == 1 and number == 1:
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_stops_a_validation_too(photos, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    build_trainer(_config(photos, batch_size=1), whole).run()
    trainer = build_trainer(_config(photos, batch_size=1), parts, observer=_Killed())
    assert len(trainer.val_batches) > 1
    assert not trainer.run()
    assert trainer.stop_signal == signal.SIGTERM
    assert len(_rows(parts / "metrics.csv")) == 1
    assert build_trainer(_config(photos, batch_size=1), parts, resume=True).run()
    _assert_same_weights(whole, parts)
    for name in ("steps.csv", "metrics.csv"):
        assert _rows(whole / name) == _rows(parts / name)
