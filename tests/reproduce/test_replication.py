"""`vggfast reproduce tiny-imagenet` and `tiny-imagenet-boxes`: which network fills which row, and with what."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from vggfast import VGG, Preprocessing
from vggfast.cli import main
from vggfast.evaluate import average, interval, vote
from vggfast.runs.config import TrainConfig
from vggfast.runs.log import EPOCH_COLUMNS
from vggfast.weights import save_model

pytestmark = pytest.mark.usefixtures("one_thread")


def _reproduce(capsys, *arguments):
    code = main(["reproduce", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, " ".join(captured.out.split()), captured.err


def _save(path, config, outputs=2, pool_size=1, **metadata):
    model = VGG(config, num_classes=outputs, width=0.1, hidden=16, pool_size=pool_size, init="he")
    model.preprocessing = Preprocessing()
    path.parent.mkdir(parents=True, exist_ok=True)
    save_model(model, path, {"classes": ["blue", "red"], "data": "photos", "scales": [32, 36, 40], **metadata})


def _save_run(folder, config, epochs, planned, **values):
    """A run's folder as training leaves it: its recipe, and a row an epoch."""
    TrainConfig(config=config, epochs=planned, **values).write(folder / "config.yaml")
    rows = [",".join(str(epoch if name == "epoch" else 1) for name in EPOCH_COLUMNS) for epoch in range(epochs)]
    (folder / "metrics.csv").write_text("\n".join([",".join(EPOCH_COLUMNS), *rows, ""]))


@pytest.fixture
def weights(tmp_path):
    """A, six epochs of 24, in a folder called D; D in a file called A-256; a B of other classes; two of E."""
    folder = tmp_path / "weights"
    _save(folder / "D" / "model.safetensors", "A")
    _save_run(folder / "D", "A", 6, 24)
    _save(folder / "A-256.safetensors", "D")
    _save(folder / "B.safetensors", "B", outputs=3, classes=["a", "b", "c"])
    _save(folder / "lrn.safetensors", "A-LRN")
    for name in ("e1", "e2"):
        _save(folder / f"{name}.safetensors", "E")
    return folder


def test_rows_are_filled_by_what_files_hold(weights, photos, capsys, tmp_path):
    out = tmp_path / "out"
    command = ["tiny-imagenet", "--data", f"imagefolder:{photos}", "--weights", weights, "--out", out]
    code, printed, err = _reproduce(capsys, *command, "--split", "train")
    assert (code, err) == (0, "")
    content = json.loads((out / "tiny-imagenet.json").read_text())
    rows = {(row["network"], row["protocol"]): row for row in content["rows"]}
    assert content["files"] == {"A": str(weights / "D" / "model.safetensors"), "D": str(weights / "A-256.safetensors")}
    assert f"{weights / 'D' / 'model.safetensors'} is called D and holds A." in content["notes"]
    assert f"{weights / 'A-256.safetensors'} is called A and holds D." in content["notes"]
    assert "lrn.safetensors holds A-LRN, which the replication has not." in printed
    assert "B.safetensors knows 3 classes that are not the 2 of" in printed
    assert "not run: B: no network of configuration B is in" in printed
    assert "not run: E: two networks of E are there," in printed
    assert (rows["A", "single"]["epochs"], rows["D", "single"]["epochs"]) == ("6 of 24", "?")

    folder = out / "posteriors"
    labels = torch.from_numpy(np.load(folder / "A-dense-32-36-40" / "labels.npy"))
    each = {name: torch.from_numpy(np.load(folder / f"{name}-dense-32-36-40" / "posteriors-0.npy")) for name in "AD"}

    def right(found):
        return 100 * (found == labels).double().mean().item()

    both = [*each.values()]
    for name, expected, replication in (
        ("A", right(each["A"].argmax(1)), 35.9), ("D", right(each["D"].argmax(1)), 36.9),
        ("average of A D", right(average(both).argmax(1)), None), ("vote of A D", right(vote(both)[0]), None),
    ):  # fmt: skip
        (figure,) = rows[name, "dense"]["figures"].values()
        assert (figure["measured"], figure["replication"]) == (pytest.approx(expected), replication)
        low, high = interval(100 - expected, len(labels))
        assert figure["spread"] == pytest.approx([100 - high, 100 - low])
    protocols = ["single", "dense", "multi-crop", "both"]
    assert [key for key in rows if key[0] == "A"] == [("A", protocol) for protocol in protocols]
    assert [key[1] for key in rows if key[0] == "vote of A D"] == protocols


def test_nothing_ran(tmp_path, capsys, photos):
    (tmp_path / "none").mkdir()
    data = ["--data", f"imagefolder:{photos}", "--weights", tmp_path / "none"]
    code, printed, _ = _reproduce(capsys, "tiny-imagenet", *data)
    assert code == 1
    assert "two networks or more are needed, and 0 is there" in printed
    assert "35.9" in printed


def _tiny_imagenet(folder):
    """Its layout, with two classes; every object lies in the middle."""
    for number, wnid in enumerate(("n1", "n2")):
        images = folder / "train" / wnid / "images"
        images.mkdir(parents=True)
        Image.new("RGB", (64, 64)).save(images / f"{wnid}_0.png")
        (folder / "train" / wnid / f"{wnid}_boxes.txt").write_text(f"{wnid}_0.png\t16\t16\t47\t47\n")
        (folder / "val" / "images").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 64), (40 * number, 0, 0)).save(folder / "val" / "images" / f"{number}.png")
    lines = "".join(f"{number}.png\tn{number + 1}\t16\t16\t47\t47\n" for number in range(2))
    (folder / "val" / "val_annotations.txt").write_text(lines)
    (folder / "wnids.txt").write_text("n1\nn2\n")
    (folder / "words.txt").write_text("n1\tone\nn2\ttwo\n")
    return f"tiny-imagenet:{folder}"


def test_cells_of_boxes(tmp_path, capsys):
    data, weights, out = _tiny_imagenet(tmp_path / "data"), tmp_path / "weights", tmp_path / "out"
    boxes = {"classes": ["one", "two"], "mean_box": [0.25, 0.25, 0.75, 0.75]}
    for name, predict, outputs, layers in (("x", "box", 4, "fc"), ("y", "boxes", 8, "all"), ("z", "boxes", 8, "all")):
        _save(weights / name / "model.safetensors", "A", outputs, 2, scales=[64, 64, 72], predict=predict, **boxes)
        _save_run(weights / name, "A", 2, 2, predict=predict, train_layers=layers)
    _save(weights / "alone.safetensors", "A", 4, 2, scales=[64, 64, 72], predict="box", **boxes)
    _save(weights / "names.safetensors", "A")
    command = ["tiny-imagenet-boxes", "--data", data, "--weights", weights, "--out", out]
    code, printed, err = _reproduce(capsys, *command)
    assert (code, err) == (0, "")
    assert "alone.safetensors has no config.yaml beside it" in printed
    assert "names.safetensors predicts classes, not boxes" in printed
    rows = {(r["boxes"], r["trained"]): r for r in json.loads((out / "tiny-imagenet-boxes.json").read_text())["rows"]}
    assert len(rows) == 4
    filled = rows["one for all", "FC alone"]
    assert (filled["network"], filled["epochs"], filled["mean box's error %"]) == ("A", "2", "0.0")
    (figure,) = filled["figures"].values()
    assert (figure["paper"], filled["beats it"]) == (36.4, "no" if figure["spread"][0] > 0 else "within the interval")
    assert rows["one a class", "all"]["not_run"].startswith("two networks: ")
    assert rows["one for all", "all"]["not_run"] == "no network"
    assert rows["one for all", "all"]["figures"]["error at IoU 0.5 %"]["paper"] is None
    code, _, err = _reproduce(capsys, *command, "--no-flip")
    assert (code, "--no-flip: for" in err) == (2, True)
