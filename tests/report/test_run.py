"""Figures and the report of a run: whole at any number of classes and epochs, self-contained, harmless."""

import argparse
import base64
import io
import json
import shutil
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from vggfast.cli import report as command
from vggfast.data import ImageSet, Preprocessing
from vggfast.distributed import DistributedContext
from vggfast.environment import environment
from vggfast.models import VGG
from vggfast.report import confusion, contact_sheet, curves, most_confused, write_report
from vggfast.report.figures import thinned
from vggfast.runs import log as log_module
from vggfast.runs.config import TrainConfig
from vggfast.runs.log import RunLog
from vggfast.tasks import final_eval
from vggfast.weights import save_model

# What `final_eval` writes, as far as a report cannot do without it.
_METRICS = {"steps": 20, "centre_crop": {"top1_error": 1.0, "top5_error": 1.0}, "evaluation": {}}


def _step(step, **changes):
    row = {"step": step, "epoch": step // 10, "loss": 2.5, "top1_error": 50.0, "top5_error": 10.0, "lr": 0.01,
           "grad_norm": 1.5, "images_per_s": 100.0, "data_wait": 0.25}  # fmt: skip
    return {**row, **changes}


def _epoch(epoch, **changes):
    row = {"epoch": epoch, "step": 10 * (epoch + 1), "lr": 0.01, "train_loss": 2.5, "train_top1_error": 60.0,
           "train_top5_error": 20.0, "val_loss": 2.4, "val_top1_error": 55.0 - epoch, "val_top5_error": 18.0,
           "seconds": 2.0, "core_seconds": 4.0, "images_per_s": 100.0, "data_wait": 0.25, "bad_images": 3}  # fmt: skip
    return {**row, **changes}


def _images(classes, count):
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (count, 40, 36, 3), np.uint8)
    labels = np.arange(count) % len(classes)
    return ImageSet("noise", classes, labels, list(range(count)), lambda i: Image.fromarray(pixels[i]))


def _run(out, classes=("cat", "dog"), epochs=2, images=12):
    """A folder as training leaves it before `final_eval`, and the trainer that `final_eval` reads."""
    config = TrainConfig(data="digits", crop=32, scale_min=32, scale_max=32, width=0.05, hidden=8)
    out.mkdir(parents=True, exist_ok=True)
    config.write(out / "config.yaml")
    log = RunLog(out, 0)
    rows = [_epoch(i) for i in range(epochs)]
    for row in rows:
        log.step(_step(row["step"], epoch=row["epoch"]))
        log.epoch(row)
    log.close()
    model = VGG("A", len(classes), width=0.05, hidden=8, pool_size=1)
    model.preprocessing = Preprocessing()
    save_model(model, out / "model.safetensors")
    return SimpleNamespace(
        out=out, config=config, val_set=_images(list(classes), images),
        context=DistributedContext(), progress=SimpleNamespace(epochs=rows),
    )  # fmt: skip


class _Page(HTMLParser):
    """What a report loads, shows and says."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.loads, self.images, self.words = [], [], [], []
        self.feed(text)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        found = dict(attributes)
        self.loads += [found[name] for name in ("src", "href", "srcset", "action", "data") if name in found]
        if tag == "img":
            self.images.append(found)

    def handle_data(self, data):
        self.words.append(data)


def _page(out):
    return _Page((out / "report.html").read_text(encoding="utf-8"))


def _assert_self_contained(page):
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert "@import" not in page.text
    assert "url(" not in page.text
    assert len(page.loads) == len(page.images)
    for image in page.images:
        assert image["alt"]
        kind, _, content = image["src"].partition(",")
        assert kind == "data:image/png;base64"
        Image.open(io.BytesIO(base64.b64decode(content, validate=True))).load()


@pytest.fixture(autouse=True)
def _no_tensorboard(monkeypatch):
    """Its import takes longer than all of these tests; tests/runs/test_log.py has it."""
    monkeypatch.setattr(log_module, "_has_tensorboard", lambda: False)


@pytest.mark.parametrize("classes", [2, 200])
def test_a_run_ends_with_a_report_that_needs_no_other_file(classes, tmp_path, one_thread, capsys):
    names = ["<b>bold</b>", "$x_{$", *(f"class {i}" for i in range(2, classes))][:classes]
    final = final_eval(_run(tmp_path, names, epochs=1, images=24))
    page = _page(tmp_path)
    _assert_self_contained(page)
    assert len(page.images) == 3
    assert "b" not in page.tags
    for heading in ("In short", "Curves", "Confusion", "Predictions", "Epochs", "Configuration", "Environment"):
        assert heading in page.text
    assert "Finished after 10 steps" in page.text
    assert "best top-1 error 55.00 % best top-1 accuracy 45.00 %" in page.text
    assert "batch_size" in page.text
    assert page.text.index("hidden 8 4096") < page.text.index("The other") < page.text.index("batch_size 256 256")
    assert "ranks 1" in page.text
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert (metrics["steps"], metrics["epochs"], metrics["best_epoch"]) == (10, 1, 0)
    assert metrics["evaluation"].keys() == {"dense, one scale", "dense, 3 scales"}
    for row in metrics["confused"]:
        assert {row["is"], row["says"]} <= set(names)
        assert row["is"] in page.text
    assert all(path.is_file() for path in final.files)
    assert [row[0] for row in final.rows] == ["centre crop", "dense, one scale, flips", "dense, 3 scales, flips"]
    assert capsys.readouterr() == ("", "")


def test_names_are_escaped(tmp_path):
    hostile = "<script>alert(1)</script><img src='http://x'>"
    TrainConfig(data=f"imagefolder:{hostile}").write(tmp_path / "config.yaml")
    log = RunLog(tmp_path, 99)
    log.event(hostile, path=hostile, step=7)
    log.close()
    confused = [{"is": hostile, "says": "'\"&", "images": 1, "percent": 5.0}]
    metrics = {**_METRICS, "confused": confused, "environment": {hostile: hostile}}
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    page = _page(write_report(tmp_path).parent)
    _assert_self_contained(page)
    assert page.text.count(hostile) == 8  # title twice, option, event and its fact, pair, environment twice
    assert "'\"&" in page.text


def test_a_run_that_was_killed(tmp_path, capsys):
    _run(tmp_path)
    for name in ("steps.csv", "metrics.csv", "log.jsonl"):
        with (tmp_path / name).open("a") as file:
            file.write("12,3")  # torn
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    assert command.run(parser.parse_args([str(tmp_path)])) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'report.html'}\n"
    page = _page(tmp_path)
    _assert_self_contained(page)
    assert [image["alt"][:6] for image in page.images] == ["Curves"]
    assert "Not finished: the last row of its log is of step 20." in page.text
    assert "54.00 %" in page.text


def test_a_run_before_its_first_validation_and_before_its_first_row(tmp_path):
    TrainConfig().write(tmp_path / "config.yaml")
    page = _page(write_report(tmp_path).parent)
    assert "No step has been logged yet." in page.text
    assert "Nothing differs from the defaults" in page.text
    assert page.images == []
    log = RunLog(tmp_path, 0)
    log.step(_step(10, loss=1.75))
    log.event("session begins", step=0, environment=environment())
    page = _page(write_report(tmp_path).parent)
    assert "training loss 1.750" in page.text
    assert torch.__version__ in page.text
    assert "Events" not in page.text  # the environment is no event to read


def test_a_finished_run_that_goes_on(tmp_path):
    TrainConfig().write(tmp_path / "config.yaml")
    (tmp_path / "metrics.json").write_text(json.dumps(_METRICS))
    RunLog(tmp_path, 20).epoch(_epoch(2))
    page = _page(write_report(tmp_path).parent)
    assert "at step 30. The evaluation, confusion and predictions are of step 20" in page.text


def test_the_last_events_alone(tmp_path):
    TrainConfig().write(tmp_path / "config.yaml")
    log = RunLog(tmp_path, 0)
    for i in range(60):
        log.event(f"bad image {i}", step=i)
    page = _page(write_report(tmp_path).parent)
    assert "10 earlier ones are in log.jsonl" in page.text
    assert "bad image 9 " not in page.text
    assert "bad image 10" in page.text


def test_a_run_of_an_older_version(tmp_path):
    """Which called errors top1 and top5."""
    shutil.copytree(Path(__file__).parents[2] / "benchmarks" / "results" / "tiny-imagenet-a", tmp_path / "run")
    page = _page(write_report(tmp_path / "run").parent)
    assert "best top-1 error 77.36 % best top-1 accuracy 22.64 % its top-5 error 52.00 %" in page.text
    assert "dense, one scale 73 78.28 52.28" in page.text


def test_folders_and_files_that_are_no_runs(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no run: config\.yaml is not there"):
        write_report(tmp_path)
    TrainConfig().write(tmp_path / "config.yaml")
    (tmp_path / "metrics.json").write_text("{")
    with pytest.raises(ValueError, match=r"metrics\.json is no JSON file"):
        write_report(tmp_path)
    (tmp_path / "metrics.json").write_text("[]")
    with pytest.raises(ValueError, match=r"metrics\.json must hold a JSON object, got list"):
        write_report(tmp_path)
    (tmp_path / "metrics.json").unlink()
    (tmp_path / "log.jsonl").write_text("x\n")
    with pytest.raises(ValueError, match=r"log\.jsonl has a line that is no JSON"):
        write_report(tmp_path)


# ---- figures ---------------------------------------------------------------------------------------------------------


def test_most_confused():
    labels, predicted = np.array([0, 0, 0, 0, 1, 1, 2, 2]), np.array([0, 1, 1, 2, 0, 1, 1, 1])
    assert most_confused(labels, predicted, ["a", "b", "c"], most=3) == [
        {"is": "a", "says": "b", "images": 2, "percent": 50.0},
        {"is": "c", "says": "b", "images": 2, "percent": 100.0},
        {"is": "a", "says": "c", "images": 1, "percent": 25.0},
    ]
    assert most_confused(labels, labels, ["a", "b", "c"]) == []


@pytest.mark.parametrize("classes", [1, 2, 12, 40, 41, 200, 1000])
def test_confusion_at_any_number_of_classes(classes, tmp_path):
    labels = np.arange(2 * classes) % classes
    predicted = np.where(np.arange(2 * classes) < classes, labels, (labels + 1) % classes)
    confusion(labels, predicted, [f"${i}_{{" for i in range(classes)], tmp_path / "confusion.png")
    with Image.open(tmp_path / "confusion.png") as image:
        assert min(image.size) > 400
        # Blue cells beside grey letters: the map has its colours.
        assert (np.asarray(image.convert("RGB")).reshape(-1, 3).astype(int) @ [-1, 0, 1]).max() > 50


def test_classes_that_share_cells():
    from vggfast.report.confused import _shares

    shares, per_cell = _shares(np.array([0, 1, 2, 999]), np.array([0, 2, 999, 998]), 1000)
    assert (len(shares), per_cell) == (334, 3)
    assert shares[0, 0] == pytest.approx(2 / 3)
    assert shares[0, 333] == pytest.approx(1 / 3)
    assert shares[333].sum() == shares[333, 332] + shares[333, 333] == 1


@pytest.mark.parametrize(("steps", "epochs"), [(0, 1), (1, 0), (1, 1), (5000, 3)])
def test_curves_of_any_length(steps, epochs, tmp_path):
    rows = [_step(i + 1, lr=0.01 / 10 ** (4 * i // max(steps, 1)), top5_error=float("nan")) for i in range(steps)]
    curves(rows, [_epoch(i) for i in range(epochs)], tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as image:
        assert image.width > 1000


def test_thinned_rows_are_means():
    rows = [_step(i, loss=float(i), lr=1.0 / (i + 1)) for i in range(10)]
    assert thinned(rows, 10) == rows
    thin = thinned(rows, 4)
    assert [(row["step"], row["loss"], row["lr"]) for row in thin] == [
        (2, 1.0, 1 / 3), (5, 4.0, 1 / 6), (8, 7.0, 1 / 9), (9, 9.0, 1 / 10),
    ]  # fmt: skip


@pytest.mark.parametrize("count", [1, 8, 9])
def test_contact_sheet(count, tmp_path):
    image = Image.new("RGB", (30, 20))
    contact_sheet([image] * count, ["$a_{"] * count, ["<b>"] * count, [0.5] * count, tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.height == (480 if count > 8 else 240)
