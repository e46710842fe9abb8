"""benchmarks/tiny_imagenet.py: what its rows train, and that it goes on from a kill, a stop, a spent budget."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny_imagenet

from vggfast.cli import main
from vggfast.runs.config import TrainConfig
from vggfast.training.presets import PRESETS

SMALL = ["--data", "digits", "--epochs", "2"]
EXTRA = ["--width", "0.05", "--hidden", "8", "--crop", "32", "--scale-min", "36", "--scale-max", "36",
         "--grow-from", "0", "--device", "cpu", "--checkpoint-every", "1"]  # fmt: skip


def _asked(*texts):
    return tiny_imagenet._parse([*map(str, texts)])


def _config(arguments):
    """The configuration that `vggfast train` makes of a row's arguments."""
    import argparse

    from vggfast.cli import recipe, train

    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    return recipe.order(parser.parse_args(arguments)).config


@pytest.mark.parametrize("table", tiny_imagenet.TABLES)
def test_each_row_is_a_configuration(table, tmp_path):
    start = ["--start", tmp_path / "a.safetensors"] if table == "boxes" else []
    asked, rows, _ = _asked(table, "--data", "tiny-imagenet:x", "--out", tmp_path, *start)
    configs = {row.name: _config(tiny_imagenet.arguments(row, asked, [])) for row in rows}
    assert len({str(config) for config in configs.values()}) == len(rows)
    if table == "ablation":
        paper = configs["paper"]
        own = TrainConfig(crop=64, scale_min=73, scale_max=73, hidden=1024, workers=0, epochs=6, data="tiny-imagenet:x")
        assert paper == own
        assert configs["preset"] == TrainConfig(**PRESETS["tiny-imagenet"] | {"data": "tiny-imagenet:x", "epochs": 6})
    if table == "networks":
        assert [*configs] == ["A", "B", "C", "D", "E"]
        assert (configs["A"].init_from, configs["E"].init_from) == ("", str(tmp_path / "A" / "model.safetensors"))
    if table == "boxes":
        kinds = [(config.predict, config.train_layers) for config in configs.values()]
        assert kinds == [("box", "all"), ("box", "fc"), ("boxes", "all"), ("boxes", "fc")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["networks", "--core-hours", "F=2"], "--core-hours must be numbers above 0, or ROW=NUMBER .*, got F=2"),
        (["networks", "--epochs", "1.5"], "--epochs must be whole numbers above 0, or ROW=NUMBER .*, got 1.5"),
    ],
)
def test_what_is_refused(arguments, message, tmp_path):
    with pytest.raises(SystemExit, match=message):
        _asked(*arguments, "--data", "digits", "--out", tmp_path)
    with pytest.raises(SystemExit, match="2"):
        _asked("boxes", "--data", "digits", "--out", tmp_path)


@pytest.mark.slow
def test_budgets_and_failures(tmp_path, monkeypatch, capsys):
    """Runs in this process: B waits for A, starts from it, is out of its core-hours; a second session has no work."""
    commands = []

    def call(command, lock):
        commands.append(command)
        return main([*command[3:], *EXTRA, "--batch-size", "512"])

    monkeypatch.setattr(tiny_imagenet, "_call", call)
    command = ["networks", *SMALL, "--rows", "A", "B", "--out", str(tmp_path), "--core-hours", "1", "B=0.00001"]
    assert tiny_imagenet.main([*command, "--rows", "B"]) == 75
    assert "B: waits for A" in capsys.readouterr().out
    assert tiny_imagenet.main(command) == 0
    first, second = json.loads((tmp_path / "table.json").read_text())["rows"]
    assert (first["state"], second["state"]) == ("finished", "core-hours spent")
    assert (first["epochs"], second["epochs"], second["last"]) == ("2 of 2", "0 of 2", None)
    assert first["last_low"] < first["last"] < first["last_high"]
    assert first["best_dense_low"] < first["best_dense"] < first["best_dense_high"]
    assert first["core_seconds"] > 0
    with (tmp_path / "table.csv").open() as file:
        assert [row["row"] for row in csv.DictReader(file)] == ["A", "B"]
    assert "| A | 2 of 2 | " in (tmp_path / "table.md").read_text()
    trained = len(commands)
    assert tiny_imagenet.main(command) == 0
    assert len(commands) == trained
    assert tiny_imagenet.main([*command, "--rows", "A", "C", "--lr", "-1"]) == 1
    states = [row["state"] for row in json.loads((tmp_path / "table.json").read_text())["rows"]]
    assert states == ["finished", "failed, exit code 1"]


@pytest.mark.slow
def test_a_kill_loses_nothing(tmp_path):
    """SIGKILL to the driver alone: its run keeps the lock; then to both; the third session ends the table."""
    script = Path(__file__).parents[2] / "benchmarks" / "tiny_imagenet.py"
    command = [sys.executable, script, "ablation", *SMALL, "--rows", "preset", "--out", tmp_path, *EXTRA]
    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 240
    while not list((tmp_path / "preset").glob("checkpoints/step-*")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    driver.kill()
    driver.wait()
    second = subprocess.run(command, capture_output=True, text=True)
    assert (second.returncode, "in which another process still trains" in second.stderr) == (1, True)
    os.killpg(driver.pid, signal.SIGKILL)
    time.sleep(0.5)
    assert subprocess.run(command, stdout=subprocess.DEVNULL).returncode == 0
    assert json.loads((tmp_path / "table.json").read_text())["rows"][0]["state"] == "finished"
