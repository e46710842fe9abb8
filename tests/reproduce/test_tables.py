"""`vggfast reproduce`: the paper's figures beside what was measured, and what could not be."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vggfast import VGG, Preprocessing
from vggfast.cli import main
from vggfast.evaluate import average, errors
from vggfast.reproduce import paper
from vggfast.weights import save_model

pytestmark = pytest.mark.usefixtures("one_thread")
CLASSES = ["blue", "red"]


def _run(capsys, *arguments):
    code = main(["reproduce", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def _save(path, config, head="linear", pool_size=1, classes=CLASSES, **metadata):
    model = VGG(config, num_classes=len(classes), width=0.1, hidden=16, pool_size=pool_size, init="he", head=head)
    model.preprocessing = Preprocessing()
    path.parent.mkdir(exist_ok=True)
    save_model(model, path, {"classes": classes, **metadata})


@pytest.fixture
def weights(tmp_path):
    """A of S = 256, D and E of jittered scales, as small networks; D of S = 384 for other classes."""
    folder = tmp_path / "weights"
    for name, scales in (("A-256", [32, 36, 40]), ("D-jitter", [36, 54, 72]), ("E-jitter", [36, 54, 72])):
        _save(folder / f"{name}.safetensors", name.rpartition("-")[0], data="photos", scales=scales)
    _save(folder / "D-384.safetensors", "D", classes=["a", "b", "c"], data="photos", scales=[40, 44, 48])
    return folder


def _rows(out, table):
    content = json.loads((out / f"{table}.json").read_text())
    return content, {(row["network"], row["S"], row["protocol"]): row for row in content["rows"]}


def test_what_is_there_is_measured(weights, photos, capsys, tmp_path):
    data, out = f"imagefolder:{photos}", tmp_path / "out"
    code, printed, err = _run(capsys, "table3", "--data", data, "--weights", weights, "--out", out, "--split", "train")
    assert (code, err) == (0, "")
    content, rows = _rows(out, "table3")
    assert len(rows) == 12
    assert content["trained_on"] == ["photos"]
    assert "networks trained on photos" in content["title"]
    assert content["notes"] == ["The paper's columns are of networks trained and tested on ImageNet (1000 classes)."]
    assert "(1000 classes)" in printed

    posteriors = np.load(out / "posteriors" / "A-256-single-36" / "posteriors-0.npy")
    labels = np.load(out / "posteriors" / "A-256-single-36" / "labels.npy")
    expected = errors(torch.from_numpy(posteriors), torch.from_numpy(labels))
    row = rows["A", "256", "single"]
    assert (row["Q"], row["not_run"]) == ("36", None)
    top1 = row["figures"]["top-1 error %"]
    assert (top1["measured"], top1["paper"]) == (pytest.approx(expected["top1_error"]), 29.6)
    assert top1["spread"][0] < top1["measured"] < top1["spread"][1]
    assert rows["D", "jitter", "single"]["Q"] == "54"

    missing = rows["C", "256", "single"]
    assert missing["not_run"] == "no C-256.safetensors"
    assert missing["figures"]["top-1 error %"] == {
        "measured": None, "spread": [], "paper": 28.1, "paper_deviation": None
    }  # fmt: skip
    assert "D-384.safetensors knows 3 classes that are not the 2 of" in rows["D", "384", "single"]["not_run"]
    markdown = (out / "table3.md").read_text()
    assert "| C | 384 | single |  | not run | 28.1 | - | 9.3 |" in markdown
    assert "- not run: C 384 single: no C-384.safetensors\n" in markdown
    assert re.search(r"\| A \| 256 \| single \| 36 \| \d+\.\d \(\d+\.\d-\d+\.\d\) \| 29.6 \|", markdown)


def test_tables_share_what_is_computed(weights, photos, capsys, tmp_path, monkeypatch):
    command = ["--data", f"imagefolder:{photos}", "--weights", weights, "--out", tmp_path / "out"]
    assert _run(capsys, "table5", *command)[0] == 0
    _, rows = _rows(tmp_path / "out", "table5")
    assert [row["figures"]["top-1 error %"]["paper"] for row in rows.values()] == [24.8, 24.6, 24.4, 24.8, 24.6, 24.4]

    def fail(*_, **__):
        raise AssertionError("computed again")

    monkeypatch.setattr("vggfast.evaluate.evaluation.evaluate_set", fail)
    assert _run(capsys, "table6", *command)[0] == 0
    _, rows = _rows(tmp_path / "out", "table6")
    folder = tmp_path / "out" / "posteriors"
    each = {
        name: torch.from_numpy(np.load(folder / f"{name}-36-54-72" / "posteriors-0.npy"))
        for name in ("D-jitter-dense", "E-jitter-dense", "D-jitter-multi-crop", "E-jitter-multi-crop")
    }
    labels = torch.from_numpy(np.load(folder / "D-jitter-dense-36-54-72" / "labels.npy"))
    for protocol, used in (("dense", [*each][:2]), ("multi-crop", [*each][2:]), ("both", [*each])):
        expected = errors(average([each[name] for name in used]), labels)["top1_error"]
        assert rows["D + E", "jitter", protocol]["figures"]["top-1 error %"]["measured"] == pytest.approx(expected)


def test_weights_that_change_are_refused(weights, photos, capsys, tmp_path):
    command = ["table3", "--data", f"imagefolder:{photos}", "--weights", weights, "--out", tmp_path / "out"]
    assert _run(capsys, *command)[0] == 0
    torch.manual_seed(7)
    _save(weights / "A-256.safetensors", "A", data="photos", scales=[32, 36, 40])
    code, _, err = _run(capsys, *command)
    assert (code, "A-256-single-36 holds an evaluation with other settings: network 1" in err) == (1, True)
    assert _run(capsys, *command, "--overwrite")[0] == 0


def test_scales_of_large_and_small_networks(tmp_path, photos):
    """The paper's where the network is as large as the paper's, whatever its file says; else the file's, or smaller."""
    from vggfast.data import open_dataset
    from vggfast.distributed import DistributedContext
    from vggfast.evaluate import Settings
    from vggfast.reproduce.classification import Bench

    data = f"imagefolder:{photos}"
    _save(tmp_path / "B-256.safetensors", "B", pool_size=7, scales=[224, 256, 288])
    _save(tmp_path / "C-384.safetensors", "C", pool_size=7, scales=[336, 384, 432])
    _save(tmp_path / "D-jitter.safetensors", "D", pool_size=2)
    bench = Bench(tmp_path, data, "val", open_dataset(data, "val"), Settings(), DistributedContext())
    for name, protocol, scales in (
        ("B-256", "dense", (224, 256, 288)), ("C-384", "dense", (352, 384, 416)), ("C-384", "single", (384,)),
        ("D-jitter", "multi-crop", (73, 110, 146)), ("D-jitter", "single", (110,)),
    ):  # fmt: skip
        assert not isinstance(bench.network(name), str)
        assert bench.scales(name, protocol) == scales


def test_wrong_calls(capsys, tmp_path):
    code, _, err = _run(capsys, "table3", "--data", "digits", "--weights", tmp_path / "none")
    assert (code, err) == (1, f"vggfast: --weights is {tmp_path / 'none'}: no such folder\n")
    code, _, err = _run(capsys, "table3", "--data", "digits", "--weights", tmp_path, "--scales", 3)
    assert (code, "--scales is for appendix-b" in err) == (2, True)
    code, _, err = _run(capsys, "appendix-b", "--data", "digits", "--weights", tmp_path, "--no-flip", "--memory", "1G")
    assert (
        code,
        "--no-flip, --memory: for table3, table4, table5, table6, tiny-" in err,
    ) == (2, True)


def test_nothing_is_there(capsys, tmp_path):
    code, out, _ = _run(capsys, "table6", "--data", "digits", "--weights", tmp_path)
    assert code == 1
    assert "no network of it is there" in " ".join(out.split())
    assert "24.0" in out


def _caltech(folder, images=32):
    """Two classes of so many pictures each, the one reddish, the other bluish."""
    generator = np.random.default_rng(0)
    for name, channel in (("red", 0), ("blue", 2)):
        (folder / name).mkdir(parents=True)
        for i in range(images):
            pixels = generator.integers(0, 100, (33, 36, 3), np.uint8)
            pixels[..., channel] += 150
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return f"imagefolder:{folder}"


@pytest.mark.filterwarnings("ignore:Liblinear failed to converge")
def test_appendix_b(capsys, tmp_path, monkeypatch):
    data, out = _caltech(tmp_path / "data"), tmp_path / "out"
    _save(tmp_path / "weights" / "E-256.safetensors", "E", scales=[32, 36, 40])
    _save(tmp_path / "weights" / "vgg16-conv.safetensors", "D", head="none")
    command = ["appendix-b", "--data", data, "--weights", tmp_path / "weights", "--out", out, "--scales", 33, 40]
    code, _, err = _run(capsys, *command)
    assert (code, err) == (0, "")
    rows = {(row["data"], row["networks"]): row for row in json.loads((out / "appendix-b.json").read_text())["rows"]}
    assert len(rows) == 9
    for networks, features in (
        ("D", "pool5 of vgg16-conv"), ("E", "penultimate of E-256"),
        ("D + E", "pool5 of vgg16-conv, penultimate of E-256"),
    ):  # fmt: skip
        row = rows["Caltech-101", networks]
        assert (row["features"], row["Q"], row["not_run"]) == (features, "33 40", None)
        (figure,) = row["figures"].values()
        assert 50 < figure["measured"] <= 100
        assert len(figure["spread"]) == 1
    assert rows["VOC-2007", "D"]["not_run"] == "not without VOC-2007's images"
    monkeypatch.setattr("vggfast.reproduce.appendices.extract_dataset", None)  # the features are there
    assert _run(capsys, *command)[0] == 0


def test_appendix_b_without_networks(capsys, tmp_path):
    data = _caltech(tmp_path / "data")
    (tmp_path / "weights").mkdir()
    code, out, _ = _run(capsys, "appendix-b", "--data", data, "--weights", tmp_path / "weights")
    assert code == 1
    assert "no D-*.safetensors" in " ".join(out.split())


def _tiny_imagenet(folder):
    """Its layout, with two classes; every object lies in the middle."""
    for wnid in ("n1", "n2"):
        images = folder / "train" / wnid / "images"
        images.mkdir(parents=True)
        Image.new("RGB", (64, 64)).save(images / f"{wnid}_0.png")
        (folder / "train" / wnid / f"{wnid}_boxes.txt").write_text(f"{wnid}_0.png\t16\t16\t47\t47\n")
    (folder / "val" / "images").mkdir(parents=True)
    lines = []
    for i in range(6):
        Image.new("RGB", (64, 64), (40 * i, 0, 0)).save(folder / "val" / "images" / f"{i}.png")
        lines.append(f"{i}.png\tn{1 + i % 2}\t16\t16\t47\t47\n")
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))
    (folder / "wnids.txt").write_text("n1\nn2\n")
    (folder / "words.txt").write_text("n1\tone\nn2\ttwo\n")
    return f"tiny-imagenet:{folder}"


def test_localisation(capsys, tmp_path):
    data, weights, out = _tiny_imagenet(tmp_path / "data"), tmp_path / "weights", tmp_path / "out"
    weights.mkdir()
    model = VGG("B", num_classes=4, width=0.1, hidden=16, pool_size=2)
    model.preprocessing = Preprocessing()
    with torch.no_grad():  # it always says: the middle
        model.classifier[6].weight.zero_()
        model.classifier[6].bias.copy_(torch.tensor([0.5, 0.5, 0.5, 0.5]))
    metadata = {"classes": ["one", "two"], "data": "boxes", "scales": [64, 64, 72]}
    save_model(model, weights / "D-localise-scr-fc.safetensors", {
        **metadata, "predict": "box", "mean_box": [0.0, 0.0, 0.1, 0.1],
    })  # fmt: skip
    code, _, err = _run(capsys, "localisation", "--data", data, "--weights", weights, "--out", out)
    assert (code, err) == (0, "")
    content = json.loads((out / "localisation.json").read_text())
    assert content["trained_on"] == ["boxes"]
    scr, pcr_fc, pcr = content["rows"]
    assert (scr["network"], scr["mean box's error %"], scr["not_run"]) == ("B", "100.0", None)
    (figure,) = scr["figures"].values()
    assert (figure["measured"], figure["paper"]) == (0, 36.4)
    assert pcr_fc["not_run"] == "no D-localise-pcr-fc.safetensors"
    assert pcr["not_run"] == "no D-localise-pcr.safetensors"
    save_model(model, weights / "D-localise-pcr.safetensors", {"classes": ["one", "two"]})
    code, _, err = _run(capsys, "localisation", "--data", data, "--weights", weights)
    assert (code, "D-localise-pcr.safetensors must be what vggfast train --predict box" in err) == (1, True)


# ---- the paper's figures -------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def restated() -> str:
    path = Path(__file__).resolve().parents[3] / "shared" / "paper.md"
    if not path.is_file():
        pytest.skip(f"no {path}")
    return path.read_text()


def test_figures_of_tables_are_the_papers(restated):
    """Each row of paper.md's table has all figures that are here, of its network and regime."""
    columns = {"single": 1, "dense": 2, "multi-crop": 3, "both": 4}
    table = {}
    for line in restated.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        match = re.fullmatch(r"(A|A-LRN|B|C|D|E|D \+ E)(?: \((.*)\)|, (jitter))", cells[0])
        if match and len(cells) == 5:
            regimes = (match[2] or match[3]).split(" · ")
            for protocol, column in columns.items():
                figures = cells[column].split(" · ") if cells[column] else []
                for regime, figure in zip(regimes if len(figures) > 1 else regimes[-1:], figures, strict=False):
                    table[match[1], regime, protocol] = figure
    here = {
        (" + ".join(name.rpartition("-")[0] for name in cell.networks), cell.networks[0].rpartition("-")[2],
         cell.protocol): f"{cell.top1_error}/{cell.top5_error}"
        for each in paper.TABLES.values() for cell in each.cells
    }  # fmt: skip
    assert here == table


def test_figures_of_the_appendices_are_the_papers(restated):
    text = " ".join(restated.split())
    for cell in paper.LOCALISATION:
        kind = "PCR" if cell.boxes == "one a class" else "SCR"
        assert re.search(rf"({kind}, )?{cell.tuned}[^:;]*(only)?: {cell.error} %", text)
    assert (
        "D 91.8±1.0, E 92.3±0.5, D+E 92.7±0.5. Caltech-256: 85.0, 85.1, 86.2. VOC-2007 mAP: 89.3, 89.3, 89.7." in text
    )
    assert [cell.figure for cell in paper.FEATURES] == [91.8, 92.3, 92.7, 85.0, 85.1, 86.2, 89.3, 89.3, 89.7]
    assert [cell.deviation for cell in paper.FEATURES[:3]] == [1.0, 0.5, 0.5]
