"""The log of a run: nothing twice, nothing torn, nothing lost on a full disk."""

import csv
import json
import math

import numpy as np
import pytest
import torch

from vggfast.runs import log as log_module
from vggfast.runs.log import EPOCH_COLUMNS, STEP_COLUMNS, RunLog, read_csv


def _step(step, **changes):
    values = {"step": step, "epoch": step // 10, "loss": 2.0 + step / 7, "top1_error": 50.0, "top5_error": 10.0,
              "lr": 0.01, "grad_norm": 1.5, "images_per_s": 100.0, "data_wait": 0.25}  # fmt: skip
    return {**values, **changes}


def _epoch(epoch, step):
    return {**dict.fromkeys(EPOCH_COLUMNS, 1.5), "epoch": epoch, "step": step, "bad_images": 2}


def _session(out, first, last, log=None):
    log = log or RunLog(out, first)
    for step in range(first + 1, last + 1):
        log.step(_step(step))
        if step % 10 == 0:
            log.epoch(_epoch(step // 10, step))
    log.close()


def _lines(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


@pytest.fixture
def no_tensorboard(monkeypatch):
    monkeypatch.setattr(log_module, "_has_tensorboard", lambda: False)


def test_rows_come_back_as_they_were(tmp_path):
    _session(tmp_path, 0, 12)
    assert read_csv(tmp_path / "steps.csv") == [_step(i) for i in range(1, 13)]
    assert read_csv(tmp_path / "metrics.csv") == [_epoch(1, 10)]
    assert (tmp_path / "steps.csv").read_text().splitlines()[0] == ",".join(STEP_COLUMNS)
    lines = _lines(tmp_path)
    assert [line["kind"] for line in lines] == ["step"] * 10 + ["epoch"] + ["step"] * 2
    assert {name: lines[3][name] for name in STEP_COLUMNS} == _step(4)


def test_a_row_can_be_seen_at_once(tmp_path, no_tensorboard):
    log = RunLog(tmp_path, 0)
    for step in (1, 2):
        log.step(_step(step))
        assert len(read_csv(tmp_path / "steps.csv")) == len(_lines(tmp_path)) == step


@pytest.mark.parametrize("ending", ["_error", ""], ids=["today's names", "an older version's names"])
@pytest.mark.parametrize("torn", ["", "18,1,2.3", "18,1,2.3,50.0,10.0,0.01,1.5,100.0,0.2"])
def test_a_killed_run_goes_on_from_its_checkpoint(torn, ending, tmp_path, no_tensorboard):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    _session(whole, 0, 30)
    _session(parts, 0, 17)
    for name in ("steps.csv", "metrics.csv", "log.jsonl"):
        (parts / name).write_text((parts / name).read_text().replace("_error", ending) + torn)
    _session(parts, 8, 30)  # the last checkpoint is of step 8
    for name in ("steps.csv", "metrics.csv"):
        assert (parts / name).read_text() == (whole / name).read_text()
    for line in (lines := _lines(parts)) + (expected := _lines(whole)):
        line.pop("time")
    assert lines == expected


def test_a_validation_that_is_computed_again_is_not_written_twice(tmp_path, no_tensorboard):
    _session(tmp_path, 0, 10)
    log = RunLog(tmp_path, 10)  # killed after step 10's validation; the checkpoint was written before it
    log.epoch(_epoch(1, 10))
    log.epoch(_epoch(2, 20))
    assert read_csv(tmp_path / "metrics.csv") == [_epoch(1, 10), _epoch(2, 20)]
    assert [line["step"] for line in _lines(tmp_path) if line["kind"] == "epoch"] == [10, 20]


def test_a_new_run_leaves_nothing_of_an_old_one(tmp_path):
    _session(tmp_path, 0, 10)
    RunLog(tmp_path, 0).close()
    assert read_csv(tmp_path / "steps.csv") == read_csv(tmp_path / "metrics.csv") == _lines(tmp_path) == []
    assert not list((tmp_path / "tensorboard").iterdir())


def test_columns_of_an_older_version(tmp_path, no_tensorboard):
    (tmp_path / "steps.csv").write_text("step,epoch,loss,lr\n10,0,2.5,0.01\n20,0,2.25,0.01\n")
    log = RunLog(tmp_path, 10)
    log.step(_step(11))
    first, second = read_csv(tmp_path / "steps.csv")
    assert (first["step"], first["loss"], math.isnan(first["top1_error"])) == (10, 2.5, True)
    assert second == _step(11)


def test_events(tmp_path, no_tensorboard):
    log = RunLog(tmp_path, 0)
    log.event("bad image", path=tmp_path / "<b>.png", step=3)
    log.event("resumed", step=5)
    log.event("no step")
    RunLog(tmp_path, 4)
    assert [(line["kind"], line["text"], line.get("step")) for line in _lines(tmp_path)] == [
        ("event", "bad image", 3), ("event", "no step", None),
    ]  # fmt: skip


def test_figures_that_are_not_finite(tmp_path, no_tensorboard):
    RunLog(tmp_path, 0).step(_step(1, grad_norm=math.inf, loss=math.nan))
    (row,) = read_csv(tmp_path / "steps.csv")
    assert row["grad_norm"] == math.inf
    assert math.isnan(row["loss"])
    text = (tmp_path / "log.jsonl").read_text()
    line = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert line["grad_norm"] is line["loss"] is None


def test_a_row_with_other_columns_is_refused(tmp_path, no_tensorboard):
    with pytest.raises(ValueError, match=r"row must have step, epoch, .* for steps\.csv, got step, loss"):
        RunLog(tmp_path, 0).step({"step": 1, "loss": 1.0})


def _fill(ballast):
    with pytest.raises(OSError, match="No space left"):
        ballast.write_bytes(bytes(2 << 20))


def test_a_full_disk_loses_nothing(small_disk):
    pytest.importorskip("tensorboard")
    warnings: list[str] = []
    log = RunLog(small_disk, 0, warnings.append)
    log.step(_step(1))
    ballast = small_disk / "ballast"
    _fill(ballast)
    for step in range(2, 102):
        log.step(_step(step))
        assert all(row == _step(row["step"]) for row in read_csv(small_disk / "steps.csv"))
        assert (small_disk / "steps.csv").read_bytes().endswith(b"\n")
        assert (small_disk / "log.jsonl").read_bytes().endswith(b"\n")
    assert len(read_csv(small_disk / "steps.csv")) < 101
    assert len(warnings) == 1
    assert "the log cannot be written" in warnings[0]
    assert "No space left on device" in warnings[0]
    ballast.unlink()
    log.step(_step(102))
    log.close()
    assert [row["step"] for row in read_csv(small_disk / "steps.csv")] == list(range(1, 103))
    assert [line["step"] for line in _lines(small_disk)] == list(range(1, 103))
    assert [step for step, _ in _scalars(small_disk)["step/loss"]] == list(range(1, 103))
    assert len(warnings) == 1


def test_rows_that_were_never_written_are_counted(small_disk, no_tensorboard):
    warnings: list[str] = []
    log = RunLog(small_disk, 0, warnings.append)
    _fill(small_disk / "ballast")
    for step in range(1, 4):
        log.step(_step(step))
    log.close()
    assert "the last 3 rows of the log could not be written" in warnings[-1]


def _scalars(out):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(out / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_shows_every_row_once(tmp_path):
    pytest.importorskip("tensorboard")
    _session(tmp_path, 0, 17)
    _session(tmp_path, 8, 20)
    found = _scalars(tmp_path)
    assert found.keys() == {f"step/{name}" for name in STEP_COLUMNS[2:]} | {
        f"epoch/{name}" for name in EPOCH_COLUMNS[2:]
    }
    assert found["step/loss"] == [(i, pytest.approx(2.0 + i / 7)) for i in range(1, 21)]
    assert found["epoch/val_top1_error"] == [(10, 1.5), (20, 1.5)]


def test_without_tensorboard_there_is_no_folder_of_it(tmp_path, capfd, no_tensorboard):
    _session(tmp_path, 0, 10)
    assert not (tmp_path / "tensorboard").exists()
    assert capfd.readouterr() == ("", "")


def test_read_csv_of_a_missing_and_of_a_torn_file(tmp_path):
    assert read_csv(tmp_path / "steps.csv") == []
    (tmp_path / "steps.csv").write_text("step,ep")
    assert read_csv(tmp_path / "steps.csv") == []
    (tmp_path / "steps.csv").write_text("step,loss\n1,2.5\n2,2.")
    assert read_csv(tmp_path / "steps.csv") == [{"step": 1, "loss": 2.5}]
    assert list(csv.reader((tmp_path / "steps.csv").open()))[2] == ["2", "2."]  # reading changes nothing


@pytest.mark.parametrize("text", ["step,loss\n1,x\n", "step,loss\n1\n", "step\n1,2\n"])
def test_a_file_that_is_no_table_is_named(text, tmp_path):
    (tmp_path / "steps.csv").write_text(text)
    with pytest.raises(ValueError, match=r"steps\.csv is no table of numbers"):
        RunLog(tmp_path, 1)


def test_figures_of_numpy_and_torch(tmp_path, no_tensorboard):
    RunLog(tmp_path, 0).step(_step(1, loss=np.float32(2.5), lr=torch.tensor(0.5)))
    assert read_csv(tmp_path / "steps.csv") == [_step(1, loss=2.5, lr=0.5)]
    assert _lines(tmp_path)[0]["loss"] == 2.5
