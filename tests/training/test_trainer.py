"""The trainer on one process: it learns, it resumes to the bit, it refuses what does not fit."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from vggfast.runs.config import TrainConfig, read_values
from vggfast.runs.log import read_csv
from vggfast.tasks import build_trainer, final_eval
from vggfast.training.checkpoint import Checkpoints
from vggfast.training.observer import Observer
from vggfast.training.presets import PRESETS, preset, preset_for
from vggfast.weights import load_model

pytestmark = pytest.mark.usefixtures("one_thread")


def _config(photos, **changes):
    small = {"crop": 32, "scale_min": 36, "scale_max": 40, "width": 0.1, "hidden": 16, "batch_size": 4,
             "epochs": 3, "log_every": 2, "workers": 0}  # fmt: skip
    return TrainConfig(data=f"imagefolder:{photos}", **{**small, **changes})


def _newest(folder):
    content = Checkpoints(folder / "checkpoints").newest(pytest.fail)
    assert content is not None
    return content


def _assert_same_weights(one, other):
    mine, theirs = _newest(one)["model"], _newest(other)["model"]
    assert mine.keys() == theirs.keys()
    for name in mine:
        assert torch.equal(mine[name], theirs[name]), name


def _rows(path):
    """A log without what the clock says."""
    timings = {"seconds", "core_seconds", "images_per_s", "data_wait"}
    return [{k: v for k, v in row.items() if k not in timings} for row in read_csv(path)]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"optimiser": "adamw", "schedule": "cosine", "warmup": 2, "ema": 0.9, "lr": 1e-3, "decay_all": False},
        {"precision": "fp16", "accumulate": 2, "clip_norm": 1.0, "label_smoothing": 0.1, "channels_last": True},
        {"precision": "bf16", "optimiser": "adam", "lr": 1e-3, "batch_norm": True, "workers": 2},
        {
            "schedule": "one-cycle",
            "low_momentum": 0.8,
            "batch_norm": True,
            "min_area": 0.4,
            "crop": 64,
            "scale_min": 70,
            "scale_max": 70,
            "grow_from": 32,
            "grow_until": 0.6,
        },
    ],
)
def test_a_resumed_run_equals_one_that_was_never_stopped(photos, tmp_path, options):
    """Stopped by a signal within an epoch and after its last step."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    build_trainer(_config(photos, **options), whole).run()
    for resume, stop in ((False, 3), (True, 4), (True, 15)):
        trainer = build_trainer(_config(photos, **options), parts, resume=resume)
        log_step = trainer._log_step

        def logged(sums, batch, trainer=trainer, log_step=log_step, stop=stop):
            if trainer.progress.step == stop:
                sums.stop = True
            log_step(sums, batch)

        trainer._log_step = logged
        assert trainer.run() is (stop == 15)
    _assert_same_weights(whole, parts)
    assert _rows(whole / "steps.csv") == _rows(parts / "steps.csv")
    assert _rows(whole / "metrics.csv") == _rows(parts / "metrics.csv")
    best = [load_model(folder / "model.safetensors")[0].state_dict() for folder in (whole, parts)]
    assert all(torch.equal(best[0][name], best[1][name]) for name in best[0])


def test_it_learns_two_colours(photos, tmp_path):
    trainer = build_trainer(
        _config(photos, epochs=25, lr=0.01, patience=25, dropout=0.0, colour_shift=0.0), tmp_path / "run"
    )
    assert trainer.run()
    assert trainer.progress.epochs[-1]["train_loss"] < 0.1
    assert trainer.progress.best_top1_error == 0


class _Recorder(Observer):
    def __init__(self):
        self.events = []

    def on_begin(self, step, total_steps):
        self.events.append(("begin", step, total_steps))

    def on_step(self, row):
        self.events.append(("step", row["step"]))

    def on_validation_batch(self, number, batches):
        self.events.append(("validation", number, batches))

    def on_epoch(self, row):
        self.events.append(("epoch", row["epoch"], row["step"]))

    def on_end(self):
        self.events.append(("end",))


def test_a_run_tells_how_it_goes_and_prints_nothing(photos, tmp_path, capfd):
    recorder = _Recorder()
    assert build_trainer(_config(photos, steps=6, batch_size=6), tmp_path, observer=recorder).run()
    validation = [("validation", 1, 1)]
    assert recorder.events == [
        ("begin", 0, 6), ("step", 1), ("step", 2), ("step", 3), *validation, ("epoch", 0, 3),
        ("step", 4), ("step", 5), ("step", 6), *validation, ("epoch", 1, 6), ("end",),
    ]  # fmt: skip
    assert capfd.readouterr() == ("", "")


def test_an_observer_hears_the_end_of_a_run_that_fails(photos, tmp_path):
    recorder = _Recorder()
    with pytest.raises(FloatingPointError):
        build_trainer(_config(photos, lr=1e30), tmp_path, observer=recorder).run()
    assert recorder.events[-1] == ("end",)


def test_a_folder_with_a_run_is_not_overwritten(photos, tmp_path):
    build_trainer(_config(photos, steps=1), tmp_path).run()
    with pytest.raises(FileExistsError, match="holds a run: resume it, overwrite it, or choose another folder"):
        build_trainer(_config(photos), tmp_path)


def test_checkpoint_of_another_network(photos, tmp_path):
    build_trainer(_config(photos, steps=1), tmp_path).run()
    with pytest.raises(ValueError, match="of another network: config is 'A' there and 'B' here"):
        build_trainer(_config(photos, config="B"), tmp_path, resume=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config": "F"}, "config must be one of A, A-LRN, B, C, D, E, got 'F'"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"lr": -1.0}, r"lr must be at least 0, got -1\.0"),
        ({"lr": float("nan")}, "lr must be at least 0, got nan"),
        ({"crop": 100}, "crop must be a multiple of 32, .*, got 100"),
        ({"scale_min": 200}, "must be crop <= scale_min <= scale_max, got "),
        ({"min_area": 1.0}, r"min_area must be at least 0 and less than 1, got 1\.0"),
        ({"grow_from": 40}, "grow_from must be 0, or a multiple of 16 from 32 to the crop, 224, got 40"),
        ({"grow_from": 240}, "grow_from must be 0, or a multiple of 16 from 32 to the crop, 224, got 240"),
        ({"grow_until": 0.0}, r"grow_until must be more than 0 and at most 1, got 0\.0"),
        ({"rise": 1.0}, r"rise must be more than 0 and less than 1, got 1\.0"),
        ({"schedule": "one-cycle", "warmup": 5}, "warmup must be 0 where schedule is 'one-cycle', .*, got 5"),
        ({"schedule": "one-cycle", "low_momentum": 0.95}, r"low_momentum must be at most momentum, 0\.9, got 0\.95"),
    ],
)
def test_configurations_that_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**changes)


def test_defaults_are_the_papers():
    config = TrainConfig()
    assert (config.batch_size, config.momentum, config.weight_decay, config.dropout) == (256, 0.9, 5e-4, 0.5)
    assert (config.lr, config.drops, config.epochs, config.crop) == (1e-2, 3, 74, 224)
    assert config.test_scales() == (224, 256, 288)
    assert dataclasses.replace(config, scale_max=512).test_scales() == (256, 384, 512)


@pytest.mark.slow
def test_tiny_imagenet_trains_a_few_steps(tiny_imagenet, tmp_path):
    config = TrainConfig(**{**PRESETS["tiny-imagenet"], "data": f"tiny-imagenet:{tiny_imagenet}", "width": 0.1,
                            "hidden": 32, "steps": 4, "log_every": 1, "workers": 0})  # fmt: skip
    trainer = build_trainer(config, tmp_path)
    assert trainer.run()
    assert len((tmp_path / "steps.csv").read_text().splitlines()) == 5
    assert trainer.progress.epochs[-1]["val_top1_error"] <= 100


@pytest.mark.slow
def test_digits_train_in_bfloat16_on_tiles_as_in_float32(tiles, tmp_path):
    losses = {}
    for precision in ("fp32", "bf16"):
        config = TrainConfig(**{**PRESETS["digits"], "data": "digits", "precision": precision, "width": 0.125,
                                "hidden": 32, "batch_size": 16, "steps": 12, "log_every": 1, "workers": 0})  # fmt: skip
        build_trainer(config, tmp_path / precision).run()
        losses[precision] = [row["loss"] for row in read_csv(tmp_path / precision / "steps.csv")]
    assert len(losses["bf16"]) == 12
    assert losses["bf16"] != losses["fp32"]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=2e-2)


def test_overwrite_takes_nothing_before_everything_is_checked(photos, tmp_path):
    build_trainer(_config(photos, steps=1), tmp_path / "run").run()
    (tmp_path / "run" / "mine.txt").write_text("precious")
    before = sorted(path.name for path in (tmp_path / "run").iterdir())
    with pytest.raises(FileNotFoundError, match="no such folder"):
        build_trainer(_config(tmp_path / "nowhere"), tmp_path / "run", overwrite=True)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == before
    build_trainer(_config(photos, steps=2), tmp_path / "run", overwrite=True).run()
    assert (tmp_path / "run" / "mine.txt").exists()


def test_a_loss_that_is_not_finite_stops_the_run_and_changes_nothing(photos, tmp_path):
    config = _config(photos, init="paper-literal", pixel_std=False, lr=1e6, checkpoint_every=1)
    with pytest.raises(FloatingPointError) as error:
        build_trainer(config, tmp_path).run()
    text = str(error.value)
    assert text.startswith("the loss is ")
    assert "first not finite, from the output on, in " in text
    assert "norms by layer: features.0 " in text
    content = _newest(tmp_path)
    assert f"at step {content['progress']['step']};" in text
    assert all(value.isfinite().all() for value in content["model"].values())


# ---- epochs and sessions --------------------------------------------------------------------------------------------


def test_the_batches_of_a_run_grow(photos, tmp_path):
    config = _config(photos, crop=64, scale_min=70, scale_max=70, grow_from=32, epochs=4, batch_size=10, width=0.05)
    trainer, sizes = build_trainer(config, tmp_path), []
    forward = trainer.train_step.forward

    def measured(model, images):
        sizes.append(tuple(images.shape[2:]))
        return forward(model, images)

    trainer.train_step.forward = measured
    assert trainer.run()
    validated, steps = [(64, 64)], len(trainer.batches)
    assert sizes == [size for side in (32, 48, 64, 64) for size in [(side, side)] * steps + validated]
    assert load_model(tmp_path / "model.safetensors")[0].arguments["pool_size"] == 2


def test_time_stops_a_run_after_a_checkpoint(photos, tmp_path):
    trainer = build_trainer(_config(photos, epochs=1), tmp_path, stop_after=0.0)
    assert not trainer.run()
    assert trainer.out_of_time
    assert trainer.progress.step == 1
    assert _newest(tmp_path)["progress"]["step"] == 1
    assert _newest(tmp_path)["progress"]["core_seconds"] > 0
    other = build_trainer(_config(photos, epochs=1), tmp_path, resume=True, stop_after=3600.0)
    assert other.run()
    assert not other.out_of_time
    assert read_csv(tmp_path / "metrics.csv")[0]["core_seconds"] > 0


def test_a_run_gives_up(photos, tmp_path):
    trainer = build_trainer(_config(photos, lr=0.0, early_stop=1, epochs=10), tmp_path)
    assert trainer.run()
    assert len(trainer.progress.epochs) == 2


# ---- configurations ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_valid(name):
    TrainConfig(**preset(name))


def test_presets_of_the_paper():
    assert preset("paper-A") == {"config": "A"}
    later = TrainConfig(**preset("paper-D-jitter"))
    assert (later.scale_min, later.scale_max, later.lr, later.init_layers) == (256, 512, 1e-3, "all")
    assert preset_for("tiny-imagenet:x") == "tiny-imagenet"
    assert preset_for("tiny-imagenet:x", "box") == "tiny-imagenet-box"
    assert preset_for("digits", "box") == "digits"
    assert preset_for("imagefolder:x") == ""
    with pytest.raises(ValueError, match=r"preset must be one of paper-A, .*, got 'paper-F'"):
        preset("paper-F")


def test_a_configuration_survives_its_file(tmp_path):
    config = TrainConfig(lr=1e-3, data="imagefolder:x", flip=False)
    config.write(tmp_path / "c.yaml")
    assert TrainConfig.read(tmp_path / "c.yaml") == config


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("lr: 1e-3", None, ""),
        ("rate: 1", ValueError, r"c\.yaml must have names among accumulate, batch_norm, .*, got rate"),
        ("lr: [", ValueError, r"c\.yaml is not a YAML file"),
        ("just text", ValueError, r"must hold lines such as 'lr: 0\.01', and holds no values"),
        ("epochs: many", TypeError, "epochs must be a whole number, got 'many'"),
        ("flip: 1", TypeError, "flip must be true or false, got 1"),
    ],
)
def test_yaml_files(tmp_path, text, error, message):
    (tmp_path / "c.yaml").write_text(text)
    if error is None:
        assert TrainConfig(**read_values(tmp_path / "c.yaml")).lr == 1e-3
        return
    with pytest.raises(error, match=message):
        TrainConfig(**read_values(tmp_path / "c.yaml"))


def test_images_that_do_not_decode_are_counted_and_named(photos, tmp_path):
    """One of the training images, one of those held out; with "fail", either stops the run."""
    config = _config(photos, epochs=1, on_bad_image="skip", batch_size=6)
    plain = build_trainer(config, tmp_path / "plain")
    bad = [plain.train_set.source(3), plain.val_set.source(0)]
    for path in bad:
        Path(path).write_bytes(b"no image")
    heard = Observer()
    heard.on_warning = (warnings := []).append
    trainer = build_trainer(config, tmp_path / "run", observer=heard)
    assert trainer.run()
    final_eval(trainer)
    assert len(warnings) == 2
    assert warnings[0].startswith(f"{bad[0]}: not an image that decodes")
    row = trainer.progress.epochs[0]
    assert row["bad_images"] == 2
    assert warnings[1].startswith(f"{bad[1]}: not an image that decodes")
    assert row["val_top1_error"] in (0, 100)  # one is left of two
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["evaluation"]["dense, one scale"]["top1_error"] in (0, 100)
    with pytest.raises(ValueError, match="not an image that decodes"):
        build_trainer(_config(photos, epochs=1), tmp_path / "fails").run()
