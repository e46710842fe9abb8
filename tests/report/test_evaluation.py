"""The report of an evaluation: its figures are those of the metrics, its photos the right ones, its names harmless."""

import argparse
import csv
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from vggfast.cli import report as command
from vggfast.data import open_dataset
from vggfast.evaluate.dataset import Settings
from vggfast.evaluate.evaluation import Evaluation, Order
from vggfast.evaluate.folder import Folder
from vggfast.evaluate.fusion import average
from vggfast.evaluate.metrics import errors, per_class, reliability
from vggfast.evaluate.networks import Network
from vggfast.report.evaluation import write_evaluation
from vggfast.runs.config import TrainConfig

NAMES = ("<b>bold", "a & b", "$x_{$" + " long" * 20)


def _photos(root, names=NAMES, each=10):
    """Pictures of all shapes, as many a class; those of a class are of one colour."""
    for number, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for i in range(each):
            Image.new("RGB", (8 + i % 9, 20 - i % 9), (40 * number % 256, 100, i % 256)).save(root / name / f"{i}.png")
    return f"imagefolder:{root}"


def _evaluation(tmp_path, networks=1, names=NAMES, each=10):
    """(folder as vggfast eval --out leaves it, its Evaluation): random answers, one image of which does not decode."""
    data = _photos(tmp_path / "photos", names, each)
    images = open_dataset(data, "val")
    nets = [
        Network(
            SimpleNamespace(path=Path(f"<i>{k}.safetensors"), sha256="ab" * 32),
            {"config": "D"},
            images.classes,
            {"data": data},
        )
        for k in range(networks)
    ]
    generator = torch.Generator().manual_seed(0)
    posteriors = [(3 * torch.randn(len(images), len(names), generator=generator)).softmax(1) for _ in nets]
    for each_net in posteriors:
        each_net[1] = torch.nan
    order = Order(data, "val", [(32, 64)] * networks, Settings(on_bad_image="skip"))
    done = Evaluation(nets, images, posteriors, order, [2.0] * networks, {"device": "cpu"})
    folder = Folder(tmp_path / "out", {}, {})
    for k, values in enumerate(posteriors):
        folder.save(f"posteriors-{k}.npy", values.numpy())
    folder.save("labels.npy", images.labels)
    done.write_csv(folder.path / "predictions.csv", "average")
    folder.finish(done.content("average"))
    return folder.path, done


class _Page(HTMLParser):
    """The tables of a page, cell by cell, its tags, and what it loads."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.loads, self.tables, self.words, self.in_cell = [], [], [], [], False
        self.feed(text)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.loads += [value for name, value in attributes if name in ("src", "href")]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self.in_cell = True

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.in_cell = False

    def handle_data(self, data):
        self.words.append(data)
        if self.in_cell:
            self.tables[-1][-1][-1] += data

    def table(self, heading):
        return next(table for table in self.tables if table[0][0] == heading)


def _seen(done):
    seen = ~done.posteriors[0].isnan().any(1)
    return average(done.posteriors)[seen], torch.from_numpy(done.images.labels)[seen]


@pytest.mark.parametrize("networks", [1, 2])
def test_figures_are_those_of_the_metrics(networks, tmp_path):
    folder, done = _evaluation(tmp_path, networks, each=50)
    path = write_evaluation(folder)
    assert path == folder / "evaluation.html"
    page = _Page(path.read_text(encoding="utf-8"))
    posteriors, labels = _seen(done)
    found = errors(posteriors, labels)
    rows = page.table("Network")[1:]
    assert [row[0] for row in rows] == [f"<i>{k}.safetensors" for k in range(networks)] + ["average", "vote"] * (
        networks - 1
    )
    assert rows[networks if networks > 1 else 0][1].startswith(f"{found['top1_error']:.2f} (")
    top1 = found["top1_error"]
    assert f"top-1 error {top1:.2f} % top-1 accuracy {100 - top1:.2f} %" in page.text
    assert ("All that follows is of the average" in page.text) == (networks > 1)
    expected = {row.name: row for row in per_class(posteriors, labels, done.images.classes)}
    cells = page.table("Class")[1:]
    assert len(cells) == len(expected) == 3
    top1 = [float(row[2]) for row in cells]
    assert top1 == sorted(top1, reverse=True)
    for name, count, first, fifth, confidence, taken, times in cells:
        row = expected[name]
        assert (int(count), first, fifth) == (row.images, f"{row.top1_error:.1f}", f"{row.top5_error:.1f}")
        assert confidence == f"{100 * row.confidence:.1f}"
        assert (taken, times) == ((row.taken_for, str(row.times)) if row.times else ("–", "–"))
    assert f"calibration error {100 * reliability(posteriors, labels).error:.1f} %" in page.text
    assert "1 do not decode and count in no error" in page.text
    assert page.tags.count("script") == 1  # that sorts the table
    assert not {"b", "i", "link", "iframe"} & set(page.tags)
    assert all(value.startswith("data:image/") for value in page.loads)
    assert not [file.name for file in folder.iterdir() if file.name.startswith(".")]


def test_results_of_an_older_version(tmp_path):
    """Which called errors top1 and top5."""
    folder, _ = _evaluation(tmp_path)
    text, results = write_evaluation(folder).read_text(), folder / "results.json"
    results.write_text(results.read_text().replace("_error", ""))
    assert '"top5_interval"' in results.read_text()
    assert write_evaluation(folder).read_text() == text


def test_contact_sheets_hold_the_right_photos(tmp_path):
    folder, _ = _evaluation(tmp_path, each=100)
    text = write_evaluation(folder).read_text(encoding="utf-8")
    with open(folder / "predictions.csv", newline="", encoding="utf-8") as file:
        lines = [line for line in list(csv.reader(file))[1:] if line[-1]]
    own = [Path(line[0]).parent.name for line in lines]
    surest = sorted(range(len(lines)), key=lambda i: -float(lines[i][-1]))
    for name, right in (("best", True), ("worst", False)):
        section = re.search(rf'<section aria-labelledby="{name}">(.*?)</section>', text, re.DOTALL).group(1)
        chosen = [i for i in surest if (own[i] == lines[i][-2]) == right][:24]
        shown = [float(value) for value in re.findall(r"([\d.]+)&nbsp;%", section)]
        assert shown == [pytest.approx(100 * float(lines[i][-1]), abs=0.06) for i in chosen]
        captions = re.findall(r"<figcaption>(.*?)<br>", section)
        escaped = {"<b>bold": "&lt;b&gt;bold", "a & b": "a &amp; b"}
        assert captions == [escaped.get(own[i], own[i]) for i in chosen]
    for name in ("best", "worst", "confused", "confusion", "reliability"):
        with Image.open(folder / f"evaluation-{name}.png") as image:
            assert min(image.size) > 200


def test_everything_right_or_one_image_or_many_classes(tmp_path):
    folder, done = _evaluation(tmp_path, names=[f"class {i}" for i in range(1000)], each=2)
    perfect = torch.eye(1000)[torch.from_numpy(done.images.labels)] * 0.9 + 0.0001
    np.save(folder / "posteriors-0.npy", perfect.numpy())
    (folder / "evaluation-worst.png").write_bytes(b"of an earlier one")
    page = _Page(write_evaluation(folder).read_text(encoding="utf-8"))
    assert page.text.count("There are none.") == 2
    assert "No image is taken for another class." in page.text
    assert not (folder / "evaluation-worst.png").exists()
    assert len(page.table("Class")) == 1001
    perfect[1:] = torch.nan
    np.save(folder / "posteriors-0.npy", perfect.numpy())
    page = _Page(write_evaluation(folder).read_text(encoding="utf-8"))
    assert page.table("Class")[2][1:] == ["0", "–", "–", "–", "–", "–"]


def test_folders_that_are_no_evaluations(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"neither a run \(config\.yaml\) nor a finished evaluation"):
        command.run(argparse.Namespace(out=tmp_path))
    with pytest.raises(FileNotFoundError, match=r"holds no finished evaluation: results\.json is not there"):
        write_evaluation(tmp_path)
    (tmp_path / "results.json").write_text('{"data": "digits", "split": "val"}')
    with pytest.raises(
        ValueError, match=r"results\.json must be that of vggfast eval --out, and has no bad_images, classes, "
    ):
        write_evaluation(tmp_path)
    folder, _ = _evaluation(tmp_path)
    (folder / "posteriors-0.npy").write_bytes(b"torn")
    with pytest.raises(ValueError, match="out holds no whole evaluation"):
        write_evaluation(folder)
    np.save(folder / "posteriors-0.npy", np.ones((2, 3), np.float32))
    with pytest.raises(ValueError, match=r"posteriors have shape \(2, 3\); 3 labels and 3 classes are there"):
        write_evaluation(folder)


def test_a_data_set_that_is_another_one_now(tmp_path):
    folder, _ = _evaluation(tmp_path)
    results = json.loads((folder / "results.json").read_text())
    results["data"] = _photos(tmp_path / "others", ("x", "y", "z"))
    (folder / "results.json").write_text(json.dumps(results))
    with pytest.raises(ValueError, match=r"has other images now .* it must have 3 images of 3 classes"):
        write_evaluation(folder)


def test_the_command_knows_runs_and_evaluations(tmp_path, capsys):
    folder, _ = _evaluation(tmp_path)
    TrainConfig().write(folder / "config.yaml")
    assert command.run(argparse.Namespace(out=folder)) == 0
    assert capsys.readouterr().out.split() == [str(folder / "report.html"), str(folder / "evaluation.html")]
