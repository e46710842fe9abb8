"""Several ranks: they train the network that one process trains, agree to the bit, and survive being killed."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ranks
import torch

from vggfast.distributed import DistributedContext
from vggfast.runs.log import read_csv
from vggfast.training.checkpoint import Checkpoints

_RUN = ["--data", "digits", "--width", "0.1", "--hidden", "16", "--batch-size", "30", "--steps", "60",
        "--checkpoint-every", "2", "--log-every", "1", "--workers", "1"]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("number", "accumulate"), [(2, 1), (4, 3)])
def test_ranks_train_what_one_process_trains(number, accumulate):
    """Three steps with 30 images, which 4 ranks share as 7, 8, 7, 8; gradients to rounding, ranks to the bit."""
    (single,) = ranks.launch(1, steps=3)
    row = ranks.compare(number, 3, single, accumulate)
    assert row["ranks_bit_equal"]
    assert row["gradients"]["relative_l2"] < 1e-5
    assert row["weights"]["relative_l2"] < 1e-5


def _torchrun(number, *arguments, launcher=()):
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(number),
        *launcher,
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, "-m", "vggfast", "train", *map(str, arguments)], env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip


def _finish(process):
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output
    return output


def _weights(out):
    return Checkpoints(out / "checkpoints").newest(pytest.fail)["model"]


def _kill_once_it_has_written(process, out, generator):
    """SIGKILL to torchrun and its ranks, at a random moment after the first new checkpoint."""
    before, deadline = set(Checkpoints(out / "checkpoints").paths()), time.monotonic() + 120
    while process.poll() is None and set(Checkpoints(out / "checkpoints").paths()) == before:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(generator.random())
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.mark.slow
def test_a_run_killed_again_and_again_ends_as_one_that_was_not(tmp_path, request):
    """The whole process group, torchrun and two ranks, each time from `--resume auto`."""
    whole, out = tmp_path / "whole", tmp_path / "killed"
    _finish(_torchrun(2, "--out", whole, *_RUN))
    generator = random.Random(1409)
    for _ in range(request.config.getoption("--kills")):
        _kill_once_it_has_written(_torchrun(2, "--out", out, "--resume", "auto", *_RUN), out, generator)
    _finish(_torchrun(2, "--out", out, "--resume", "auto", *_RUN))
    mine, theirs = _weights(whole), _weights(out)
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    steps = [(folder / "log.jsonl").read_text().splitlines() for folder in (whole, out)]
    losses = [{row["step"]: row["loss"] for row in map(json.loads, lines) if row["kind"] == "step"} for lines in steps]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 60


@pytest.mark.slow
def test_batch_norm_and_bad_images_over_ranks(photos, tmp_path):
    """Each rank has statistics of its own rows until it takes rank 0's; images are counted wherever they are read."""
    for number in (0, 3, 4, 7):
        (photos / "red" / f"{number}.png").write_bytes(b"no image")
    options = ["--data", f"imagefolder:{photos}", "--width", "0.05", "--hidden", "8", "--batch-size", "6",
               "--epochs", "3", "--crop", "32", "--scale-min", "36", "--scale-max", "40", "--batch-norm",
               "--workers", "0", "--on-bad-image", "skip", "--checkpoint-every", "2"]  # fmt: skip
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    output = _finish(_torchrun(2, "--out", whole, *options))
    assert sum(f"{number}.png: not an image that decodes" in output.replace("\n", "") for number in (0, 3, 4, 7)) == 4
    assert [row["bad_images"] for row in read_csv(whole / "metrics.csv")] == [4, 4, 4]
    _finish(_torchrun(2, "--out", parts, *options, "--steps", "5"))
    _finish(_torchrun(2, "--resume", parts, "--steps", "0"))
    mine, theirs = _weights(whole), _weights(parts)
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.slow
def test_growing_random_parts_in_one_cycle_over_ranks(tmp_path):
    """Ranks stay equal, which each checkpoint asserts, and go on to the bit after their time is over."""
    options = ["--data", "digits", "--width", "0.05", "--hidden", "8", "--epochs", "2", "--batch-size", "300", "--crop",
               "64", "--scale-min", "64", "--scale-max", "64", "--grow-from", "32", "--grow-until", "0.6", "--min-area",
               "0.5", "--schedule", "one-cycle", "--low-momentum", "0.8", "--workers", "0"]  # fmt: skip
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    _finish(_torchrun(2, "--out", whole, *options))
    process = _torchrun(2, "--out", parts, *options, "--stop-after", "0.01s")
    output = process.communicate(timeout=300)[0]
    assert process.returncode != 0
    assert f"stopped after 0.01 s at step 1; go on with: vggfast train --resume {parts}" in output
    _finish(_torchrun(2, "--resume", parts))
    mine, theirs = _weights(whole), _weights(parts)
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.slow
def test_torchrun_restarts_ranks_of_which_one_died(tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "killed"
    _finish(_torchrun(2, "--out", whole, *_RUN))
    launcher = ["--max-restarts", "2", "--monitor-interval", "0.1"]
    process = _torchrun(2, "--out", out, "--resume", "auto", *_RUN, launcher=launcher)
    deadline = time.monotonic() + 120
    while not Checkpoints(out / "checkpoints").paths():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    _finish(process)
    mine, theirs = _weights(whole), _weights(out)
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.slow
def test_termination_of_one_rank_stops_all_and_another_number_goes_on(tmp_path):
    out = tmp_path / "run"
    process = _torchrun(2, "--out", out, *_RUN)
    deadline = time.monotonic() + 120
    while not Checkpoints(out / "checkpoints").paths() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)  # torchrun passes it on
    output = process.communicate(timeout=120)[0]
    assert f"go on with: vggfast train --resume {out}" in output
    output = _finish(_torchrun(3, "--resume", out))
    flat = " ".join(output.split())
    assert "this run was by 2 ranks and goes on with 3: images and order are the same, but sums" in flat
    assert Checkpoints(out / "checkpoints").newest(pytest.fail)["progress"]["step"] == 60


def test_a_world_of_one():
    context = DistributedContext.start("cpu")
    model = torch.nn.Linear(2, 2)
    assert (context.rank, context.size, context.main) == (0, 1, True)
    assert context.totals([1.5, 2.0]) == [1.5, 2.0]
    assert context.wrap(model, torch.zeros(1, 2)) is model


def test_a_gpu_that_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(
        ValueError, match="device 'auto' needs a GPU for each local rank: this machine has 1, got local rank 1"
    ):
        DistributedContext.start("auto")
