"""How `vggfast train` runs: what it calls, what it prints, on which rank, and its exit codes."""

import os
import re
import signal
import subprocess
import sys
import types

import pytest
import torch
import torch.distributed as dist

from vggfast.cli import errors, main
from vggfast.initialisation import INITS
from vggfast.runs.config import TrainConfig


class _Context:
    """A context in which this process is some rank; it communicates with nobody."""

    def __init__(self, rank):
        self.rank, self.size, self.main, self.device = rank, 4, rank == 0, torch.device("cpu")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def of_main(self, value):
        return value


@pytest.fixture
def fakes(monkeypatch):
    """What `train` calls, in place of which these note how they were called; `rank` and `stop_signal` may be set."""
    calls = types.SimpleNamespace(
        rank=0, stop_signal=None, out_of_time=False, total_steps=1000, made=[], finished=[], diagnosed=[], drawn=[]
    )

    class FakeTrainer:
        def __init__(self, config, task, out, context, *, resume, overwrite, observer, stop_after):
            calls.made.append((config, out, resume, overwrite))
            self.config, self.out = config, out
            self.model = torch.nn.Linear(2, 3)
            self.train_set = self.val_set = type("Images", (list,), {"classes": ["a", "b"]})(range(5))
            self.progress, self.total_steps = types.SimpleNamespace(step=12), calls.total_steps
            self.stop_signal, self.out_of_time = calls.stop_signal, calls.out_of_time

        def run(self):
            return self.stop_signal is None

    contents = {
        "vggfast.distributed": {"DistributedContext": types.SimpleNamespace(start=lambda device: _Context(calls.rank))},
        "vggfast.training.trainer": {"Trainer": FakeTrainer},
        "vggfast.tasks": {
            "task_of": lambda config: types.SimpleNamespace(error_names=("top-1", "top-5")),
            "final_eval": lambda trainer, progress: calls.finished.append(trainer),
        },
        "vggfast.training.diagnosis": {
            "diagnose": lambda *arguments, **_: calls.diagnosed.append(arguments),
            "verdicts": lambda result: (("init",), [("paper",)]),
        },
        "vggfast.report.initialisation": {
            name: lambda result, path: calls.drawn.append(path.name) for name in ("layer_figure", "step_figure")
        },
    }
    for name, content in contents.items():
        module = types.ModuleType(name)
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return calls


def test_a_run_ends_with_its_report(fakes, tmp_path, capsys):
    assert main(["train", "--out", str(tmp_path / "run"), "--preset", "paper-D", "--overwrite"]) == 0
    (made,) = fakes.made
    assert made == (TrainConfig(config="D"), tmp_path / "run", False, True)
    assert len(fakes.finished) == 1
    out = capsys.readouterr().out
    assert out.startswith("note: the paper started D's first four convolutions")
    assert "D (9 parameters) on digits: 5 training and 5 validation images, 2 classes; 4 processes, " in out


def test_a_run_of_few_steps_is_warned(fakes, tmp_path, capsys):
    fakes.total_steps = 74
    assert main(["train", "--out", str(tmp_path / "a"), "--data", "imagefolder:photos"]) == 0
    said = capsys.readouterr().err
    assert "5 training images in batches of 256 make 74 steps in 74 epochs, in which a network may learn" in said
    assert "--batch-size 32 makes 74" in said
    assert main(["train", "--out", str(tmp_path / "b"), "--data", "imagefolder:photos", "--batch-size", "8"]) == 0
    assert main(["train", "--out", str(tmp_path / "c"), "--data", "imagefolder:photos", "--steps", "74"]) == 0
    assert capsys.readouterr().err == ""


def test_a_resumed_run_is_told_to_resume(fakes, tmp_path):
    TrainConfig().write(tmp_path / "config.yaml")
    assert main(["train", "--resume", str(tmp_path), "--steps", "5"]) == 0
    assert fakes.made == [(TrainConfig(steps=5), tmp_path, True, False)]


def test_only_rank_0_prints_but_all_finish(fakes, tmp_path, capsys):
    fakes.rank = 1
    assert main(["train", "--out", str(tmp_path)]) == 0
    fakes.stop_signal = signal.SIGTERM
    assert main(["train", "--out", str(tmp_path)]) == 143
    assert len(fakes.finished) == 1  # the first of them: finishing evaluates, on all ranks
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_run_says_how_to_go_on(fakes, tmp_path, capsys, number, code):
    fakes.stop_signal = number
    assert main(["train", "--out", str(tmp_path / "my run")]) == code
    expected = f"stopped at step 12; go on with: vggfast train --resume '{tmp_path / 'my run'}'"
    assert capsys.readouterr().out.splitlines()[-1] == expected
    assert fakes.finished == []


def test_a_run_out_of_time_says_how_to_go_on(fakes, tmp_path, capsys):
    fakes.stop_signal, fakes.out_of_time = signal.SIGTERM, True
    assert main(["train", "--out", str(tmp_path / "run"), "--stop-after", "1.5h"]) == 75
    expected = f"stopped after 5400 s at step 12; go on with: vggfast train --resume {tmp_path / 'run'}"
    assert capsys.readouterr().out.splitlines()[-1] == expected
    assert fakes.finished == []


@pytest.mark.parametrize(
    ("arguments", "inits", "out", "steps"),
    [
        ("--diagnose-init", list(INITS), "runs/init-A", 200),
        ("--diagnose-init paper glorot --diagnose-steps 9 -d 13", ["paper", "glorot"], "runs/init-B", 9),
        ("--init paper --diagnose-init --out there", ["paper"], "there", 200),
    ],
)
def test_initialisations_are_compared(fakes, arguments, inits, out, steps):
    assert main(["train", *arguments.split(), "--crop", "64"]) == 1  # larger than the digits' S
    assert main(["train", *arguments.split(), "--seed", "3"]) == 0
    (called,) = fakes.diagnosed
    assert called[0].seed == 3
    assert called[0].crop == 32
    assert (called[1], str(called[2]), called[3]) == (inits, out, steps)
    assert fakes.made == []
    assert fakes.drawn == ["init-steps.png", "init-layers.png"]


def test_initialisations_are_compared_on_one_process(fakes, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["train", "--diagnose-init"]) == 2
    assert "--diagnose-init is for one process" in capsys.readouterr().err


# ---- many processes ------------------------------------------------------------------------------------------------


def test_an_error_names_its_rank(monkeypatch, capsys):
    for rank, said in (("0", "vggfast: no room\n"), ("3", "vggfast: rank 3: no room\n")):
        monkeypatch.setenv("RANK", rank)
        errors.tell("no room")
        assert capsys.readouterr().err == said


def test_ranks_tell_an_error_once(monkeypatch, capsys):
    """By torchrun's store, of which this is one; after a restart it is told again, and without the store by all."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True)
    for name, value in {"WORLD_SIZE": "2", "TORCHELASTIC_USE_AGENT_STORE": "True", "MASTER_ADDR": "127.0.0.1",
                        "MASTER_PORT": str(store.port)}.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    for restart in ("0", "1"):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", restart)
        for rank in ("1", "0"):
            monkeypatch.setenv("RANK", rank)
            errors.tell("no room")
        errors.tell("something else")
        assert capsys.readouterr().err == "vggfast: rank 1: no room\nvggfast: something else\n"
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE")
    errors.tell("no room")
    assert capsys.readouterr().err == "vggfast: no room\n"


def test_usage_is_explained_by_rank_0(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit) as stop:
        main(["train", "--colour"])
    assert stop.value.code == 2
    assert capsys.readouterr() == ("", "")


def _torchrun(*arguments):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "vggfast"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([*command, *arguments], capture_output=True, text=True, env=environment, timeout=300)


@pytest.mark.slow
def test_torchrun_prints_an_error_once():
    done = _torchrun("train", "--lr", "-1")
    assert done.returncode != 0
    assert len(re.findall(r"^vggfast: .*lr must be at least 0, got -1\.0$", done.stderr, re.M)) == 1


@pytest.mark.slow
def test_torchrun_trains(tmp_path):
    """Two ranks: one announcement, one report; the same command again goes on, and has nothing left to do."""
    command = ["train", "--out", str(tmp_path / "run"), "--resume", "auto", "--width", "0.1", "--hidden", "16",
               "--steps", "5", "--device", "cpu"]  # fmt: skip
    for _ in range(2):
        done = _torchrun(*command)
        assert done.returncode == 0, done.stderr
        assert len(re.findall(r"^A \(.* 2 processes, 1 threads", done.stdout, re.M)) == 1
        assert done.stdout.count("dense, 3 scales, flips") == 1
