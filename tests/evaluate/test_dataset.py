"""Whole data sets: each image once over any number of ranks, and an evaluation that goes on where it was stopped."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from vggfast import VGG, Preprocessing
from vggfast.data import ImageSet
from vggfast.distributed import DistributedContext
from vggfast.evaluate import Order, Settings, dataset, evaluate_networks, evaluate_set, open_networks
from vggfast.evaluate.folder import Folder
from vggfast.weights import save_model

CLASSES = ["a", "b", "c", "d", "e", "f"]
SCALES = (33, 40)
pytestmark = pytest.mark.usefixtures("one_thread")


def _network(config="A"):
    model = VGG(config, num_classes=len(CLASSES), width=0.1, hidden=16, pool_size=1, init="he").eval()
    model.preprocessing = Preprocessing((120.0, 110.0, 100.0), (60.0, 61.0, 62.0))
    return model


@pytest.fixture
def images():
    """17 pictures of several sizes; `opened` is what was asked for, in order."""
    generator = np.random.default_rng(0)
    sizes = [(40, 50), (36, 36), (50, 40)]
    pictures = [generator.integers(0, 255, (*sizes[i % 3], 3), np.uint8) for i in range(17)]
    opened = []

    def read(index):
        opened.append(int(index))
        return Image.fromarray(pictures[int(index)])

    made = ImageSet("noise", CLASSES, generator.integers(0, 6, 17), np.arange(17), read)
    made.opened = opened
    return made


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    monkeypatch.setattr(dataset, "CHUNK", 4)


class _Ranks:
    """Contexts whose ranks are threads of this process."""

    def __init__(self, size):
        self.size, self._barrier, self._box = size, threading.Barrier(size), [None] * size

    def _exchange(self, rank, value):
        self._box[rank] = value
        self._barrier.wait(60)
        values = list(self._box)
        self._barrier.wait(60)
        return values

    def context(self, rank):
        return SimpleNamespace(
            rank=rank, size=self.size, main=rank == 0, device=torch.device("cpu"),
            of_main=lambda value: self._exchange(rank, value)[0],
            to_main=lambda value: self._exchange(rank, value) if rank == 0 else self._exchange(rank, value)[:0],
        )  # fmt: skip

    def run(self, function):
        """What `function(context)` gives on each rank."""
        found = [None] * self.size

        def of_rank(rank):
            found[rank] = function(self.context(rank))

        threads = [threading.Thread(target=of_rank, args=(rank,)) for rank in range(self.size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return found


class _Memory:
    """Chunks that are kept in memory; after `most` of them, it is as if the process were killed."""

    def __init__(self, most=99):
        self.kept, self.most = {}, most

    def load(self):
        return dict(self.kept)

    def save(self, number, posteriors, seconds):
        if len(self.kept) == self.most:
            raise KeyboardInterrupt
        self.kept[number] = (posteriors, seconds)


@pytest.mark.parametrize("ranks", [2, 3, 7])
def test_ranks_share_the_images(images, ranks):
    model = _network()
    whole, _ = evaluate_set(model, images, SCALES, Settings(), DistributedContext())
    assert images.opened == list(range(17))
    assert whole.shape == (17, 6)
    torch.testing.assert_close(whole.sum(1), torch.ones(17))
    images.opened.clear()
    told = []

    def of_rank(context):
        progress = lambda *each: told.append(each) if context.main else None  # noqa: E731
        return evaluate_set(model, images, SCALES, Settings(), context, progress=progress)

    found = _Ranks(ranks).run(of_rank)
    assert sorted(images.opened) == list(range(17))
    assert torch.equal(found[0][0], whole)
    assert told[0] == (0, 17)
    assert told[-1] == (17, 17)
    assert told == sorted(told)


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_stopped_evaluation_goes_on(images, ranks):
    """What was done is not done again, whatever the number of ranks was."""
    model = _network()
    whole, _ = evaluate_set(model, images, SCALES, Settings(), DistributedContext())
    memory = _Memory(most=3)
    with pytest.raises(KeyboardInterrupt):
        evaluate_set(model, images, SCALES, Settings(), DistributedContext(), chunks=memory)
    assert sorted(memory.kept) == [0, 1, 2]
    images.opened.clear()
    memory.most = 99
    found = _Ranks(ranks).run(lambda context: evaluate_set(model, images, SCALES, Settings(), context, chunks=memory))
    assert sorted(images.opened) == [12, 13, 14, 15, 16]
    assert torch.equal(found[0][0], whole)
    assert found[0][1] == pytest.approx(sum(seconds for _, seconds in memory.kept.values()))


def test_pictures_are_decoded_some_at_a_time(images, monkeypatch):
    model = _network()
    whole, _ = evaluate_set(model, images, SCALES, Settings(), DistributedContext())
    monkeypatch.setattr(dataset, "_PIXEL_BYTES", 40 * 50 * 3 + 36 * 36 * 3)
    groups = list(dataset._groups((i, images.image(i)) for i in range(6)))
    assert [list(group) for group in groups] == [[0, 1], [2], [3, 4], [5]]
    few, _ = evaluate_set(model, images, SCALES, Settings(), DistributedContext())
    torch.testing.assert_close(few, whole, rtol=1e-5, atol=1e-6)


def test_images_that_do_not_decode(images):
    inner = images.read

    def read(index):
        if index in (3, 16):
            raise ValueError(f"image {index}: not an image that decodes")
        return inner(index)

    images.read = read
    with pytest.raises(ValueError, match="image 3: not an image"):
        evaluate_set(_network(), images, SCALES, Settings(), DistributedContext())
    told = []
    found, _ = evaluate_set(
        _network(), images, SCALES, Settings(on_bad_image="skip"), DistributedContext(), warn=told.append
    )
    assert told == ["image 3: not an image that decodes", "image 16: not an image that decodes"]
    assert found.isnan().any(1).nonzero()[:, 0].tolist() == [3, 16]


@pytest.mark.parametrize("protocol", ["single", "multi-crop", "both"])
def test_protocols_are_the_evaluators(images, protocol):
    from vggfast.evaluate import Evaluator

    model, scales = _network(), SCALES[:1] if protocol == "single" else SCALES
    found, _ = evaluate_set(model, images, scales, Settings(protocol, flip=False), DistributedContext())
    pictures = [images.image(i) for i in range(17)]
    expected = Evaluator(model).posteriors(pictures, protocol, scales, flip=False)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_scores_may_be_summed(images):
    model = _network()
    mean, _ = evaluate_set(model, images, (70,), Settings(), DistributedContext())
    summed, _ = evaluate_set(model, images, (70,), Settings(pool="sum"), DistributedContext())
    assert summed.max(1).values.mean() > mean.max(1).values.mean()  # larger scores, sharper posteriors


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"protocol": "sparse"}, "protocol must be one of 'single', 'dense', 'multi-crop', 'both', got 'sparse'"),
        ({"on_bad_image": "hide"}, "on_bad_image must be one of 'fail', 'skip', got 'hide'"),
        ({"pool": "sum", "protocol": "both"}, "pool must be 'mean' with protocol 'both', .*, got 'sum'"),
    ],
)
def test_settings_that_cannot_be(values, message):
    with pytest.raises(ValueError, match=message):
        Settings(**values)


# ---- the folder ----------------------------------------------------------------------------------------------------


@pytest.fixture
def networks(tmp_path):
    for name, config in (("one", "A"), ("two", "B")):
        save_model(_network(config), tmp_path / f"{name}.safetensors", {"classes": CLASSES, "scales": [32, 33, 40]})
    return open_networks([tmp_path / "one.safetensors", tmp_path / "two.safetensors"])


def _order(**settings):
    return Order("noise", "val", [SCALES, (36,)], Settings(**settings))


def test_a_folder_holds_everything(images, networks, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(ValueError, match="fusion must be one of 'average', 'vote', got 'mean'"):
        evaluate_networks(_order(), networks, images, DistributedContext(), out, fusion="mean")
    done = evaluate_networks(_order(), networks, images, DistributedContext(), out)
    assert {path.name for path in out.iterdir()} == {
        "settings.json", "results.json", "posteriors-0.npy", "posteriors-1.npy", "labels.npy", "predictions.csv",
    }  # fmt: skip
    for k, posteriors in enumerate(done.posteriors):
        stored = np.load(out / f"posteriors-{k}.npy")
        assert stored.dtype == np.float32
        assert np.array_equal(stored, posteriors.numpy())
    assert np.load(out / "labels.npy").tolist() == images.labels.tolist()
    results = json.loads((out / "results.json").read_text())
    assert [model["scales"] for model in results["models"]] == [[33, 40], [36]]
    assert results["scales"] is None
    assert [row["name"] for row in results["rows"]] == [*(str(each.path) for each in networks), "average", "vote"]
    images.opened.clear()
    before = (out / "results.json").read_bytes()
    again = evaluate_networks(_order(memory=1 << 28), networks, images, DistributedContext(), out)
    assert images.opened == []
    assert (out / "results.json").read_bytes() == before
    assert all(torch.equal(a, b) for a, b in zip(again.posteriors, done.posteriors, strict=True))


def test_other_settings_are_refused_by_name(images, networks, tmp_path):
    out = tmp_path / "out"
    evaluate_networks(_order(), networks, images, DistributedContext(), out)
    other_scales = Order("noise", "val", [SCALES, (37,)], Settings())
    for order, text in (
        (_order(protocol="multi-crop"), "protocol dense there and multi-crop here"),
        (_order(flip=False), "flip True there and False here"),
        (other_scales, r"scales of .*two.safetensors 36 there and 37 here"),
    ):
        with pytest.raises(FileExistsError, match=text):
            evaluate_networks(order, networks, images, DistributedContext(), out)
    images.labels[4] = (images.labels[4] + 1) % 6
    with pytest.raises(FileExistsError, match=r"other settings: images [0-9a-f]+ there"):
        evaluate_networks(_order(), networks, images, DistributedContext(), out)
    images.labels[4] = (images.labels[4] - 1) % 6
    save_model(_network("B"), networks[1].path, {"classes": CLASSES})
    changed = open_networks([network.path for network in networks])
    with pytest.raises(FileExistsError, match=r"network 2 \(.*two.safetensors\) [0-9a-f]+ there"):
        evaluate_networks(_order(), changed, images, DistributedContext(), out)
    done = evaluate_networks(_order(), changed, images, DistributedContext(), out, overwrite=True)
    assert np.array_equal(np.load(out / "posteriors-1.npy"), done.posteriors[1].numpy())


def test_fewer_networks_leave_none_behind(images, networks, tmp_path):
    out = tmp_path / "out"
    evaluate_networks(_order(), networks, images, DistributedContext(), out)
    one = Order("noise", "val", [SCALES], Settings())
    with pytest.raises(FileExistsError, match=r"network 2 [0-9a-f]+ there and nothing here"):
        evaluate_networks(one, networks[:1], images, DistributedContext(), out)
    evaluate_networks(one, networks[:1], images, DistributedContext(), out, overwrite=True)
    assert not (out / "posteriors-1.npy").exists()


def test_a_kill_while_a_folder_is_cleared_leaves_nothing_to_other_settings(images, networks, tmp_path, monkeypatch):
    out = tmp_path / "out"
    evaluate_networks(_order(), networks, images, DistributedContext(), out)
    unlink, left = Path.unlink, []

    def stop(path, missing_ok=False):
        if len(left) == 2:
            raise KeyboardInterrupt
        left.append(path)
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", stop)
    with pytest.raises(KeyboardInterrupt):
        evaluate_networks(_order(flip=False), networks, images, DistributedContext(), out, overwrite=True)
    monkeypatch.undo()
    monkeypatch.setattr(dataset, "CHUNK", 4)
    with pytest.raises(FileExistsError, match="flip True there and False here"):
        evaluate_networks(_order(flip=False), networks, images, DistributedContext(), out)
    images.opened.clear()
    evaluate_networks(_order(), networks, images, DistributedContext(), out)
    assert images.opened == 2 * list(range(17))


def test_results_of_something_else_are_not_taken(images, networks, tmp_path):
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(FileExistsError, match=r"results\.json of something else"):
        evaluate_networks(_order(), networks, images, DistributedContext(), tmp_path)


def test_scales_are_checked_before_a_folder_is_made(images, networks, tmp_path):
    with pytest.raises(ValueError, match=r"one\.safetensors must be one or more of at least 32, got \[31\]"):
        evaluate_networks(
            Order("noise", "val", [(31,), SCALES], Settings()), networks, images, DistributedContext(), tmp_path / "out"
        )
    assert not (tmp_path / "out").exists()


def test_a_network_gone_wrong_is_no_bad_image(images):
    model = _network()
    with torch.no_grad():
        model.classifier[6].bias[2] = float("nan")
    with pytest.raises(ValueError, match="noise, image 0: what the network says of it is not finite"):
        evaluate_set(model, images, SCALES, Settings(on_bad_image="skip"), DistributedContext())


def test_chunks_on_disk_are_taken_up(images, networks, tmp_path, monkeypatch):
    whole = evaluate_networks(_order(), networks, images, DistributedContext(), tmp_path / "whole")
    out = tmp_path / "out"
    save = Folder.chunks

    def chunks(self, index):
        files = save(self, index)
        inner = files.save

        def stop(number, *values):
            if (index, number) == (1, 2):
                raise KeyboardInterrupt
            inner(number, *values)

        files.save = stop
        return files

    monkeypatch.setattr(Folder, "chunks", chunks)
    with pytest.raises(KeyboardInterrupt):
        evaluate_networks(_order(), networks, images, DistributedContext(), out)
    monkeypatch.setattr(Folder, "chunks", save)
    assert {path.name for path in out.iterdir()} == {"settings.json", "chunks"}
    images.opened.clear()
    done = evaluate_networks(_order(), networks, images, DistributedContext(), out)
    assert images.opened == list(range(8, 17))
    assert all(torch.equal(a, b) for a, b in zip(done.posteriors, whole.posteriors, strict=True))
    assert not (out / "chunks").exists()


# ---- real processes ------------------------------------------------------------------------------------------------

_PROGRAM = """
import os
import signal
import sys
from vggfast.cli import main
from vggfast.evaluate import dataset
from vggfast.evaluate.folder import ChunkFiles

dataset.CHUNK = 16
save = ChunkFiles.save

def save_or_die(self, number, *values):
    if str(number) == os.environ.get("DIES_AT"):
        os.kill(os.getpid(), signal.SIGKILL)
    save(self, number, *values)

ChunkFiles.save = save_or_die
sys.exit(main(sys.argv[1:]))
"""


def _evaluate(folder, ranks, out, dies_at=""):
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    command = [*launcher, folder / "program.py", "eval", "--model", folder / "a.safetensors", "--device", "cpu",
               "--out", folder / out]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DIES_AT": dies_at}
    return subprocess.run(
        [sys.executable, *map(str, command)], capture_output=True, text=True, env=environment, timeout=400
    )


@pytest.mark.slow
def test_killed_ranks_lose_nothing_that_was_done(tmp_path):
    """359 digits: one process; three ranks, of which one is killed, and two that go on: the same posteriors."""
    model = VGG("A", num_classes=10, width=0.1, hidden=16, pool_size=1, init="he")
    model.preprocessing = Preprocessing()
    metadata = {"classes": [str(i) for i in range(10)], "data": "digits", "scales": [32, 36, 40]}
    save_model(model, tmp_path / "a.safetensors", metadata)
    (tmp_path / "program.py").write_text(_PROGRAM)
    assert "359 images" in _evaluate(tmp_path, 1, "whole").stdout
    assert _evaluate(tmp_path, 3, "out", dies_at="7").returncode != 0
    assert {path.name for path in (tmp_path / "out" / "chunks").glob("0-*")} == {f"0-{k:06d}.npz" for k in range(7)}
    resumed = _evaluate(tmp_path, 2, "out")
    assert resumed.stdout.count("359 images") == 1, resumed.stderr
    one, other = (np.load(tmp_path / name / "posteriors-0.npy") for name in ("whole", "out"))
    assert np.array_equal(one, other)
