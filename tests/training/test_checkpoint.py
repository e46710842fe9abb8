"""Checkpoints: whole or known not to be, the newest ones kept, full disks survived."""

import contextlib
import json

import pytest
import torch

from vggfast.runs.config import TrainConfig
from vggfast.runs.log import read_csv
from vggfast.tasks import build_trainer
from vggfast.training.checkpoint import Checkpoints
from vggfast.training.observer import Observer

pytestmark = pytest.mark.usefixtures("one_thread")


def _saved(folder, steps, keep=3):
    checkpoints = Checkpoints(folder, keep)
    for step in steps:
        checkpoints.save(step, {"step": step, "x": torch.full((100,), float(step))})
    return checkpoints


def test_the_newest_are_kept(tmp_path):
    checkpoints = _saved(tmp_path, (5, 20, 20, 100, 1000))
    assert [path.name[:14] for path in checkpoints.paths()] == ["step-00001000-", "step-00000100-", "step-00000020-"]
    assert checkpoints.newest(pytest.fail)["step"] == 1000


def _cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def _flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [_cut, _flip, lambda path: path.write_bytes(b"")])
def test_a_damaged_one_is_passed_over_with_a_warning(tmp_path, damage):
    checkpoints = _saved(tmp_path, (1, 2))
    newest = checkpoints.paths()[0]
    damage(newest)
    warnings = []
    assert checkpoints.newest(warnings.append)["step"] == 1
    assert warnings == [f"{newest} is damaged: its checksum is not the one in its name"]


def test_none_whole_and_none_at_all(tmp_path):
    assert Checkpoints(tmp_path / "nothing").newest(pytest.fail) is None
    checkpoints = _saved(tmp_path, (1, 2))
    for path in checkpoints.paths():
        _cut(path)
    with pytest.raises(ValueError, match="has 2 checkpoints and none is whole: nothing to resume from"):
        checkpoints.newest(lambda text: None)


def test_going_back_behind_a_damaged_one_takes_it_away(tmp_path):
    """Else it would take the place of a whole one among those that are kept."""
    checkpoints = _saved(tmp_path, (100,), keep=1)
    _cut(checkpoints.paths()[0])
    checkpoints.save(50, {"step": 50})
    assert checkpoints.newest(pytest.fail)["step"] == 50
    assert len(checkpoints.paths()) == 1


def test_one_of_another_format_is_named(tmp_path):
    checkpoints = _saved(tmp_path, ())
    checkpoints.save(1, {"format": 1})
    warnings = []
    with pytest.raises(ValueError, match="none is whole"):
        checkpoints.newest(warnings.append)
    assert "must be a checkpoint of format 2, got 1" in warnings[0]


def test_a_full_disk_leaves_the_others(small_disk):
    checkpoints = _saved(small_disk / "c", (1,))
    with pytest.raises(OSError, match=r"step-00000002\.pt could not be written"):
        checkpoints.save(2, {"x": torch.zeros(1_000_000)})
    assert checkpoints.newest(pytest.fail)["step"] == 1
    assert len(list((small_disk / "c").iterdir())) == 1


class _Heard(Observer):
    def __init__(self):
        self.warnings = []

    def on_warning(self, text):
        self.warnings.append(text)


def _config(photos, **changes):
    return TrainConfig(
        data=f"imagefolder:{photos}", crop=32, scale_min=36, scale_max=40, width=0.03, hidden=8, batch_size=4,
        workers=0, log_every=1, checkpoint_every=1, **{"epochs": 2, **changes},
    )  # fmt: skip


def test_a_run_goes_on_while_the_disk_is_full_and_resumes_to_the_bit(photos, small_disk, tmp_path):
    """The disk fills up after two steps; what was written last is where the run resumes once there is room."""
    whole, out = tmp_path / "whole", small_disk / "run"
    build_trainer(_config(photos), whole).run()
    trainer = build_trainer(_config(photos), out, observer=_Heard())
    log_step = trainer._log_step

    def logged(sums, batch):
        log_step(sums, batch)
        if trainer.progress.step == 3:
            with contextlib.suppress(OSError), (small_disk / "ballast").open("wb", buffering=0) as file:
                while file.write(bytes(4096)):
                    pass

    trainer._log_step = logged
    with pytest.raises(OSError, match="could not be written"):
        trainer.run()
    assert any(text.startswith("a checkpoint was not written") for text in trainer.observer.warnings)
    (small_disk / "ballast").unlink()
    resumed = build_trainer(_config(photos), out, resume=True)
    assert resumed.progress.step in (2, 3)
    assert resumed.run()
    mine, theirs = (Checkpoints(folder / "checkpoints").newest(pytest.fail)["model"] for folder in (whole, out))
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert [row["step"] for row in read_csv(out / "steps.csv")] == list(range(1, 11))


def test_a_damaged_newest_checkpoint_costs_its_steps_and_no_more(photos, tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "run"
    build_trainer(_config(photos), whole).run()
    build_trainer(_config(photos, steps=7), out).run()
    damaged = Checkpoints(out / "checkpoints").paths()[0]
    _flip(damaged)
    trainer = build_trainer(_config(photos), out, resume=True, observer=_Heard())
    assert trainer.run()
    assert trainer.observer.warnings[0].startswith(f"{damaged} is damaged")
    mine, theirs = (Checkpoints(folder / "checkpoints").newest(pytest.fail)["model"] for folder in (whole, out))
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_what_a_kill_left_half_written_is_removed(photos, tmp_path):
    build_trainer(_config(photos, steps=1), tmp_path).run()
    torn = [tmp_path / "checkpoints" / ".step-00000009.pt.abc", tmp_path / ".model.safetensors.xyz"]
    for path in torn:
        path.write_text("half")
    build_trainer(_config(photos, steps=2), tmp_path, resume=True).run()
    assert not any(path.exists() for path in torn)


def test_data_that_changed_are_not_trained_on(photos, tmp_path):
    build_trainer(_config(photos, steps=3), tmp_path).run()
    for number in range(5):
        (photos / "red" / f"{number}.png").unlink()
    with pytest.raises(ValueError, match=r"is of other data: .*images.* \(18 training images there and 13 here\)"):
        build_trainer(_config(photos), tmp_path, resume=True)


def test_checkpoints_without_their_configuration_are_a_run_too(photos, tmp_path):
    """What a killed --overwrite, or a hand, may leave is not taken for an empty folder."""
    build_trainer(_config(photos, steps=3), tmp_path).run()
    (tmp_path / "config.yaml").unlink()
    with pytest.raises(FileExistsError, match="holds a run"):
        build_trainer(_config(photos), tmp_path)
    build_trainer(_config(photos, steps=1, seed=1), tmp_path, overwrite=True).run()
    assert Checkpoints(tmp_path / "checkpoints").newest(pytest.fail)["progress"]["step"] == 1


def test_a_run_of_an_older_version_goes_on(photos, tmp_path):
    """Which called top1_error top1, and so on."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    build_trainer(_config(photos, epochs=2), whole).run()
    build_trainer(_config(photos, epochs=1), parts).run()
    for name in ("steps.csv", "metrics.csv", "log.jsonl"):
        (parts / name).write_text((parts / name).read_text().replace("_error", ""))
    checkpoints = Checkpoints(parts / "checkpoints")
    content = checkpoints.newest(pytest.fail)
    progress = json.loads(json.dumps(content["progress"]).replace("_error", ""))
    assert {"best_top1", "epochs"} < progress.keys()
    checkpoints.save(progress["step"], {**content, "progress": progress})
    resumed = build_trainer(_config(photos, epochs=2), parts, resume=True)
    assert resumed.progress.best_top1_error == progress["best_top1"]
    assert resumed.run()
    for name in ("steps.csv", "metrics.csv"):
        mine, theirs = ((folder / name).read_text().splitlines() for folder in (parts, whole))
        assert (mine[0], len(mine)) == (theirs[0], len(theirs))
    assert '"top1"' not in (parts / "log.jsonl").read_text()
    assert [row["val_top1_error"] for row in resumed.progress.epochs] == [
        row["val_top1_error"] for row in read_csv(whole / "metrics.csv")
    ]
