"""Networks that predict boxes: their loss, their training by the trainer, the commands."""

import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from tests.localisation.test_evaluation import PLAIN, _network
from vggfast.cli import main
from vggfast.data import Batches, CentreCrop
from vggfast.localisation import corner_form, iou, open_boxes
from vggfast.localisation.boxes import true_class_boxes
from vggfast.localisation.data import BoxSet
from vggfast.report import write_report
from vggfast.runs.config import TrainConfig
from vggfast.runs.log import read_csv
from vggfast.tasks import Localisation, build_trainer, final_eval
from vggfast.weights import load_model, save_model

pytestmark = pytest.mark.usefixtures("one_thread")


# ---- the loss -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("predict", ["box", "boxes"])
def test_loss_and_gradient_are_those_of_the_definition(predict):
    task, classes = Localisation(predict), 3
    outputs = torch.randn(6, task.outputs(classes), dtype=torch.float64, requires_grad=True)
    labels, boxes = torch.tensor([0, 2, 1, 2, 2, 0]), torch.rand(6, 4, dtype=torch.float64)
    losses, wrong, far = task.measure(outputs, 0.0, labels, boxes)

    weights = torch.arange(1.0, 7.0)
    found = torch.autograd.grad((losses * weights).sum(), outputs)[0]
    expected, gradient = [], torch.zeros_like(outputs)
    for i, label in enumerate(labels.tolist()):
        first = 4 * label if predict == "boxes" else 0
        difference = outputs[i, first : first + 4].detach() - boxes[i]
        expected.append(float(difference @ difference) / 2)
        gradient[i, first : first + 4] = weights[i] * difference
    torch.testing.assert_close(losses.detach(), torch.tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(found, gradient)
    own = true_class_boxes(outputs.detach(), labels)
    overlaps = iou(corner_form(own), corner_form(boxes)).diagonal()
    assert torch.equal(wrong, overlaps <= 0.5)
    assert torch.equal(far, overlaps <= 0.75)


def test_a_perfect_box_counts_in_no_error():
    boxes = torch.tensor([[0.5, 0.5, 0.5, 0.25]])
    losses, wrong, far = Localisation("box").measure(boxes.clone(), 0.0, torch.tensor([7]), boxes)
    assert losses.tolist() == [0]
    assert not wrong.any()
    assert not far.any()


# ---- training -----------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny(tmp_path):
    """Tiny-ImageNet's layout: a bright rectangle on noise, red ones of class n1, blue ones of n2."""
    folder = tmp_path / "tiny"
    generator = np.random.default_rng(0)
    annotations = []
    for split, count in (("train", 24), ("val", 8)):
        for channel, wnid in ((0, "n1"), (2, "n2")):
            rows = []
            for i in range(count):
                pixels = generator.integers(0, 90, (64, 64, 3), np.uint8)
                left, top = generator.integers(0, 24, 2)
                right, bottom = left + generator.integers(24, 40), top + generator.integers(24, 40)
                pixels[top : bottom + 1, left : right + 1, channel] += 160
                name = f"{wnid}_{split}_{i}.png"
                home = folder / (f"train/{wnid}/images" if split == "train" else "val/images")
                home.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(home / name)
                rows.append((name, left, top, right, bottom))
            if split == "train":
                text = "".join("\t".join(map(str, row)) + "\n" for row in rows)
                (folder / "train" / wnid / f"{wnid}_boxes.txt").write_text(text)
            annotations += [(row[0], wnid, *row[1:]) for row in rows]
    val = "".join("\t".join(map(str, row)) + "\n" for row in annotations if "_val_" in row[0])
    (folder / "val" / "val_annotations.txt").write_text(val)
    (folder / "wnids.txt").write_text("n1\nn2\n")
    (folder / "words.txt").write_text("n1\tred\nn2\tblue\n")
    return folder


def _config(tiny, **changes):
    small = {"crop": 32, "scale_min": 36, "scale_max": 40, "width": 0.1, "hidden": 16, "batch_size": 8, "epochs": 2,
             "workers": 0, "log_every": 2, "dropout": 0.0, "colour_shift": 0.0}  # fmt: skip
    return TrainConfig(data=f"tiny-imagenet:{tiny}", **{**small, **changes})


@pytest.fixture
def classifier(tiny, tmp_path):
    """The file of a classification network on it, hardly trained."""
    build_trainer(_config(tiny, epochs=1, steps=2), tmp_path / "classifier").run()
    return tmp_path / "classifier" / "model.safetensors"


@pytest.mark.parametrize(("predict", "layers"), [("boxes", "all"), ("box", "fc")])
def test_a_run_starts_from_a_classifier_and_learns_boxes(tiny, classifier, tmp_path, predict, layers):
    options = {"predict": predict, "init_from": str(classifier), "init_layers": "body", "train_layers": layers}
    trainer = build_trainer(_config(tiny, **options, epochs=6, optimiser="adam", lr=3e-3), tmp_path / "run")
    start, donor = trainer.model.state_dict(), load_model(classifier)[0].state_dict()
    last = {"classifier.6.weight", "classifier.6.bias"}
    for name in start.keys() - last:
        assert torch.equal(start[name], donor[name]), name
    assert start["classifier.6.weight"].shape == (8 if predict == "boxes" else 4, 16)
    before = {name: tensor.clone() for name, tensor in start.items()}
    assert trainer.run()

    rows = read_csv(tmp_path / "run" / "metrics.csv")
    assert rows[-1]["val_loss"] < 0.5 * rows[0]["val_loss"] or rows[-1]["val_loss"] < 0.05
    model, metadata = load_model(tmp_path / "run" / "model.safetensors")
    assert metadata["predict"] == predict
    np.testing.assert_allclose(metadata["mean_box"], trainer.train_set.mean_box())
    changed = {name for name, tensor in trainer.model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert any(name.startswith("features") for name in changed) is (layers == "all")
    assert last < changed
    final_eval(trainer)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())["localisation"]
    best = min(rows, key=lambda row: row["val_top1_error"])
    assert metrics["errors"]["true_class"]["percent"] <= best["val_top1_error"] + 1e-9  # boxes are cut off at the edge
    assert model.arguments["num_classes"] == len(start["classifier.6.bias"])
    with pytest.raises(ValueError, match=f"holds a run that predicts '{predict}'"):
        write_report(tmp_path / "run")


def test_a_resumed_run_equals_one_that_was_never_stopped(tiny, tmp_path):
    build_trainer(_config(tiny, predict="boxes"), tmp_path / "whole").run()
    first = build_trainer(_config(tiny, predict="boxes"), tmp_path / "parts")
    log_step = first._log_step

    def stop_at_7(sums, batch):
        sums.stop = first.progress.step == 7
        log_step(sums, batch)

    first._log_step = stop_at_7
    assert not first.run()
    assert build_trainer(_config(tiny, predict="boxes"), tmp_path / "parts", resume=True).run()
    whole, parts = (load_model(tmp_path / name / "model.safetensors")[0].state_dict() for name in ("whole", "parts"))
    for name in whole:
        assert torch.equal(whole[name], parts[name]), name


def test_batches_carry_the_box_of_the_image_that_stands_in(tiny, tmp_path):
    """A picture that does not decode is replaced with its box; in validation its box is 0 and does not count."""
    images = open_boxes(f"tiny-imagenet:{tiny}", "val")
    (tiny / "val" / "images" / "n1_val_1.png").write_bytes(b"no picture")
    options = {"boxes": images.largest, "on_bad_image": "skip"}
    transform = CentreCrop(64, 64, PLAIN)
    seen = next(Batches(images, transform, 4, shuffle=False, **options).epoch())
    assert seen.counts.tolist() == [True, False, True, True]
    assert seen.boxes[1].tolist() == [0, 0, 0, 0]
    assert seen.boxes.dtype == torch.float32
    torch.testing.assert_close(corner_form(seen.boxes[2:]), torch.from_numpy(images.largest[2:4]).float())
    shuffled = list(Batches(images, transform, 4, shuffle=True, **options).epoch())
    boxes, labels = torch.cat([b.boxes for b in shuffled]), torch.cat([b.labels for b in shuffled])
    twice = (corner_form(boxes) - torch.from_numpy(images.largest[2]).float()).abs().amax(1) < 1e-6
    assert twice.sum() == 2  # the third image's, for it stands in for the second
    assert labels[twice].tolist() == [0, 0]


def test_ranks_share_boxes(tiny):
    images = open_boxes(f"tiny-imagenet:{tiny}", "train")
    whole, *parts = (
        next(Batches(images, CentreCrop(32, 40, PLAIN), 7, shuffle=True, boxes=images.largest, **ranks).epoch()).boxes
        for ranks in ({}, {"rank": 0, "ranks": 2}, {"rank": 1, "ranks": 2})
    )
    assert torch.equal(whole, torch.cat(parts))


def test_label_smoothing_means_nothing_to_boxes(tiny):
    with pytest.raises(ValueError, match=r"label_smoothing must be 0 where predict is 'box', got 0.1"):
        _config(tiny, predict="box", label_smoothing=0.1)


# ---- the commands -------------------------------------------------------------------------------------------------


def test_the_commands(tiny, classifier, tmp_path, capsys):
    run = tmp_path / "boxes"
    train = ["train", "--preset", "none", "--data", f"tiny-imagenet:{tiny}", "--predict", "boxes", "--init-from",
             str(classifier), "--init-layers", "body", "--crop", "32", "--scale-min", "36", "--scale-max", "40",
             "--width", "0.1", "--hidden", "16", "--batch-size", "8", "--epochs", "1", "--workers", "0",
             "--out", str(run)]  # fmt: skip
    assert main(train) == 0
    assert "true class, the mean box" in capsys.readouterr().out
    networks = ["--model", str(run / "model.safetensors"), "--classifier", str(classifier)]
    assert main(["localise", "eval", *networks, "--scales", "64", "--json", str(tmp_path / "found.json")]) == 0
    assert "five classes and boxes, dense" in capsys.readouterr().out
    found = json.loads((tmp_path / "found.json").read_text())
    assert (found["images"], found["predict"], found["threshold"], found["scales"]) == (16, "boxes", 0.5, [64])
    assert found["errors"]["classes"]["percent"] == 0  # there are but two
    at_end = json.loads((run / "metrics.json").read_text())["localisation"]["errors"]
    assert at_end.items() < found["errors"].items()
    photo = tiny / "val" / "images" / "n1_val_0.png"
    assert main(["localise", "predict", *networks, "--draw", str(tmp_path / "drawn"), str(photo)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(str(photo))
    assert {line.split()[1] for line in lines[1:]} == {"red", "blue"}
    assert all(0 <= float(value) <= 64 for line in lines[1:] for value in line.split()[2:])
    drawn = Image.open(tmp_path / "drawn" / "n1_val_0-boxes.png")
    assert drawn.size == (256, 256)  # enlarged, so that the labels can be read
    assert np.abs(np.asarray(drawn.resize((64, 64))).astype(int) - np.asarray(Image.open(photo))).max() > 100


def test_commands_refuse_networks_of_the_other_kind(classifier, tmp_path, capsys):
    boxes = tmp_path / "boxes.safetensors"
    metadata = load_model(classifier)[1]
    save_model(_network(8), boxes, {**metadata, "predict": "boxes", "mean_box": [0, 0, 1, 1]})
    assert main(["localise", "eval", "--model", str(classifier)]) == 1
    assert "has no mean_box, predict: --model must be a network that predicts boxes" in capsys.readouterr().err
    assert main(["localise", "predict", "--model", str(boxes), "--classifier", str(boxes), "a.png"]) == 1
    assert f"--classifier must predict the classes of {boxes}, and {boxes} does not" in capsys.readouterr().err
    assert main(["predict", "--model", str(boxes), "a.png"]) == 1
    assert "boxes.safetensors predicts boxes, not classes" in capsys.readouterr().err


def test_the_set_of_boxes_travels_to_workers(tiny):
    images = pickle.loads(pickle.dumps(open_boxes(f"tiny-imagenet:{tiny}", "train")))
    assert isinstance(images, BoxSet)
    assert len(images) == 48
