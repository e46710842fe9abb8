"""The trainer: it learns, it resumes to the bit, it refuses what does not fit."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from vggfast.training.config import PRESETS, TrainConfig
from vggfast.training.trainer import Trainer, read_csv
from vggfast.weights import read_state_dict


def _config(photos, **changes):
    small = {"crop": 32, "scale_min": 36, "scale_max": 40, "width": 0.1, "hidden": 16, "batch_size": 4,
             "epochs": 3, "log_every": 2}  # fmt: skip
    return TrainConfig(data=f"imagefolder:{photos}", **{**small, **changes})


def _weights(folder):
    return read_state_dict(folder / "checkpoint.pt")


def test_a_resumed_run_equals_one_that_was_never_stopped(photos, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    Trainer(_config(photos), whole).run()
    Trainer(_config(photos, steps=5), parts).run()
    for steps in (6, 0):
        Trainer(_config(photos, steps=steps), parts, resume=True).run()
    mine, theirs = _weights(whole), _weights(parts)
    assert mine.keys() == theirs.keys()
    for name in mine:
        assert torch.equal(mine[name], theirs[name]), name
    assert (whole / "steps.csv").read_text() == (parts / "steps.csv").read_text()


def test_it_learns_two_colours(photos, tmp_path):
    trainer = Trainer(_config(photos, epochs=25, lr=0.03, dropout=0.0, colour_shift=0.0), tmp_path / "run")
    assert trainer.run()
    assert trainer.progress.epochs[-1]["train_loss"] < 0.1
    assert trainer.progress.best_top1 == 0


def test_a_folder_with_a_run_is_not_overwritten(photos, tmp_path):
    Trainer(_config(photos, steps=1), tmp_path).run()
    with pytest.raises(FileExistsError, match="holds a run: resume it, overwrite it, or choose another folder"):
        Trainer(_config(photos), tmp_path)


def test_checkpoint_of_another_network(photos, tmp_path):
    Trainer(_config(photos, steps=1), tmp_path).run()
    with pytest.raises(ValueError, match="of another network: config is 'A' there and 'B' here"):
        Trainer(_config(photos, config="B"), tmp_path, resume=True)


def test_corrupt_checkpoint_is_named(photos, tmp_path):
    Trainer(_config(photos, steps=1), tmp_path).run()
    (tmp_path / "checkpoint.pt").write_bytes(b"x" * 1000)
    with pytest.raises(ValueError, match=r"checkpoint\.pt is not a checkpoint of this run that can be read"):
        Trainer(_config(photos), tmp_path, resume=True)


def test_loss_that_is_not_finite_stops_the_run(photos, tmp_path):
    trainer = Trainer(_config(photos, init="paper-literal", pixel_std=False, lr=1e6), tmp_path)
    with pytest.raises(FloatingPointError, match=r"the loss is (nan|inf) at step \d+: a lower lr"):
        trainer.run()


def test_learning_rate_drops_three_times_at_most(photos, tmp_path):
    trainer = Trainer(_config(photos, lr=0.01, patience=0), tmp_path)
    rates = []
    for _ in range(10):
        trainer.schedule.step(50.0)
        rates.append(trainer.lr)
    assert sorted(set(rates), reverse=True) == pytest.approx([0.01, 0.001, 1e-4, 1e-5])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config": "F"}, "config is 'F': one of A, A-LRN, B, C, D, E is wanted"),
        ({"batch_size": 0}, "batch_size is 0: 1 or more is wanted"),
        ({"lr": -1.0}, r"lr is -1\.0: 0 or more is wanted"),
        ({"lr": float("nan")}, "lr is nan: 0 or more is wanted"),
        ({"crop": 100}, "crop is 100: a multiple of 32 is wanted"),
        ({"scale_min": 200}, "crop <= scale_min <= scale_max is wanted"),
    ],
)
def test_configurations_that_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**changes)


@pytest.mark.parametrize("kind", PRESETS)
def test_presets_are_valid(kind):
    TrainConfig(**PRESETS[kind])


def test_defaults_are_the_papers():
    config = TrainConfig()
    assert (config.batch_size, config.momentum, config.weight_decay, config.dropout) == (256, 0.9, 5e-4, 0.5)
    assert (config.lr, config.drops, config.epochs, config.crop) == (1e-2, 3, 74, 224)
    assert config.test_scales() == (224, 256, 288)
    assert dataclasses.replace(config, scale_max=512).test_scales() == (256, 384, 512)


@pytest.mark.slow
def test_termination_writes_a_checkpoint_and_the_run_resumes(tmp_path):
    out = tmp_path / "run"
    command = [sys.executable, "-m", "vggfast", "train", "--data", "digits", "--out", str(out), "--width", "0.1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (out / "checkpoint.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 130
    assert f"go on with: vggfast train --resume {out}" in output
    stopped = torch.load(out / "checkpoint.pt", weights_only=True)["progress"]["step"]
    command = [sys.executable, "-m", "vggfast", "train", "--resume", str(out), "--steps", str(stopped + 3)]
    finished = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "COLUMNS": "120"})
    assert "dense, 3 scales, flips" in finished.stdout
    assert json.loads((out / "metrics.json").read_text())["steps"] == stopped + 3


@pytest.mark.slow
def test_tiny_imagenet_trains_a_few_steps(tiny_imagenet, tmp_path):
    config = TrainConfig(**{**PRESETS["tiny-imagenet"], "data": f"tiny-imagenet:{tiny_imagenet}", "width": 0.1,
                            "hidden": 32, "steps": 4, "log_every": 1})  # fmt: skip
    trainer = Trainer(config, tmp_path)
    assert trainer.run()
    assert len((tmp_path / "steps.csv").read_text().splitlines()) == 5
    assert trainer.progress.epochs[-1]["val_top1"] <= 100


def test_a_stop_anywhere_changes_no_figure(photos, tmp_path):
    """Stopped by a signal after 3 and after 4 steps (the last of an epoch), the metrics are those of a whole run."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    Trainer(_config(photos), whole).run()
    for resume, stop in ((False, 3), (True, 4), (True, 12)):
        trainer = Trainer(_config(photos), parts, resume=resume)
        step = trainer._step

        def stepped(images, labels, trainer=trainer, step=step, stop=stop):
            if trainer.progress.step + 1 == stop:
                trainer._on_signal(signal.SIGTERM, None)
            return step(images, labels)

        trainer._step = stepped
        assert trainer.run() is (stop == 12)
    timings = {"seconds", "images_per_s"}
    rows = [[{k: v for k, v in row.items() if k not in timings} for row in read_csv(folder / "metrics.csv")]
            for folder in (whole, parts)]  # fmt: skip
    assert rows[0] == rows[1]


def test_overwrite_takes_nothing_before_everything_is_checked(photos, tmp_path):
    Trainer(_config(photos, steps=1), tmp_path / "run").run()
    (tmp_path / "run" / "mine.txt").write_text("precious")
    before = sorted(path.name for path in (tmp_path / "run").iterdir())
    with pytest.raises(FileNotFoundError, match="no such folder"):
        Trainer(_config(tmp_path / "nowhere"), tmp_path / "run", overwrite=True)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == before
    Trainer(_config(photos, steps=2), tmp_path / "run", overwrite=True).run()
    assert (tmp_path / "run" / "mine.txt").exists()
