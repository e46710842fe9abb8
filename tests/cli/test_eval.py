"""`vggfast eval` and `vggfast predict`: of one network and of several, of trained ones and of converted ones."""

import argparse
import builtins
import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vggfast import VGG, Preprocessing
from vggfast.cli import main
from vggfast.cli.options import parse_bytes
from vggfast.evaluate import Network, average, errors, interval, vote
from vggfast.weights import load_model, save_model

pytestmark = pytest.mark.usefixtures("one_thread")
CLASSES = ["blue", "red"]


def _run(capsys, *arguments):
    code = main(list(map(str, arguments)))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def _save(path, config="A", outputs=2, preprocessing=True, **metadata):
    model = VGG(config, num_classes=outputs, width=0.1, hidden=16, pool_size=1, init="he")
    model.preprocessing = Preprocessing() if preprocessing else None
    save_model(model, path, metadata)
    return path


@pytest.fixture
def nets(tmp_path, photos):
    """Three networks as training writes them, and the photos of their classes."""
    metadata = {"classes": CLASSES, "data": f"imagefolder:{photos}", "scales": [32, 36, 40]}
    return [_save(tmp_path / f"{config}.safetensors", config, **metadata) for config in ("A", "B", "C")]


@pytest.fixture
def opened(monkeypatch):
    """The paths of all files that are opened; safetensors' own reader, which opens them elsewhere, is not to be."""
    paths, plain = [], builtins.open

    def counted(file, *arguments, **options):
        paths.append(str(file))
        return plain(file, *arguments, **options)

    def refused(*_, **__):
        raise AssertionError("safetensors.safe_open")

    for module in (builtins, io):
        monkeypatch.setattr(module, "open", counted)
    monkeypatch.setattr("safetensors.safe_open", refused)
    return paths


@pytest.mark.parametrize("command", ["predict", "predict --sheet", "eval --json", "eval --out"])
def test_a_weight_file_is_opened_once(nets, capsys, tmp_path, photos, opened, command):
    name, *option = command.split()
    written = tmp_path / {"--sheet": "sheet.html", "--json": "found.json", "--out": "out"}.get("".join(option), "")
    images = [photos / "red" / "0.png"] if name == "predict" else []
    more = [*option, written] if option else []
    assert (
        _run(capsys, name, "--models", *nets[:2], *more, "--scales", 32, *(["--", *images] if images else []))[0] == 0
    )
    assert [opened.count(str(path)) for path in nets[:2]] == [1, 1]


def test_a_checkpoint_is_opened_once(nets, capsys, tmp_path, photos, opened):
    model, metadata = load_model(nets[0])
    extra = {"preprocessing": model.preprocessing.as_dict(), **metadata}
    checkpoint = tmp_path / "checkpoint.pt"
    torch.save({"model": model.state_dict(), "arguments": {**model.arguments, "extra": extra}}, checkpoint)
    outs = [_run(capsys, "predict", "--model", each, photos / "red" / "0.png") for each in (checkpoint, nets[0])]
    assert outs[0] == outs[1]
    assert opened.count(str(checkpoint)) == 1


def test_eval_of_several_networks(nets, capsys, tmp_path, photos):
    out, figures, predictions = tmp_path / "out", tmp_path / "found.json", tmp_path / "found.csv"
    command = ["eval", "--models", *nets, "--out", out, "--json", figures, "--csv", predictions, "--split", "train",
               "--fusion", "vote", "--memory", "64M"]  # fmt: skip
    code, printed, err = _run(capsys, *command)
    assert (code, err) == (0, "")
    assert f"imagefolder:{photos} (train, 18 images), dense, image and mirror image" in " ".join(printed.split())
    found = json.loads(figures.read_text())
    assert found == json.loads((out / "results.json").read_text())
    expected = {"images": 18, "bad_images": 0, "classes": CLASSES, "protocol": "dense", "scales": [32, 36, 40],
              "flip": True, "pool": "mean", "fusion": "vote"}  # fmt: skip
    assert {name: found[name] for name in expected} == expected
    assert [model["config"] for model in found["models"]] == ["A", "B", "C"]
    posteriors = [torch.from_numpy(np.load(out / f"posteriors-{k}.npy")) for k in range(3)]
    labels = torch.from_numpy(np.load(out / "labels.npy"))
    names = [*map(str, nets), "average", "vote"]
    assert [row["name"] for row in found["rows"]] == names
    final, confidence = vote(posteriors)
    expected = [errors(each, labels)["top1_error"] for each in (*posteriors, average(posteriors))]
    expected.append(100 * (final != labels).double().mean().item())
    for row, top1 in zip(found["rows"], expected, strict=True):
        assert row["top1_error"] == pytest.approx(top1)
        assert row["top1_error_interval"] == pytest.approx(interval(top1, 18))
        assert row["top1_accuracy"] == pytest.approx(100 - top1)
        assert f"{top1:.2f}" in printed
        assert f"accuracy {100 - top1:.2f} %" in printed
    assert found["rows"][-1]["top5_error"] is found["rows"][-1]["top5_accuracy"] is None
    assert all((row["images_per_s"] is None) == (row["name"] in ("average", "vote")) for row in found["rows"])

    rows = list(csv.reader(predictions.read_text().splitlines()))
    assert rows[0] == ["image", "class", *map(str, nets), "prediction", "confidence"]
    assert len(rows) == 19
    for i, (image, true, *by_net, label, sure) in enumerate(rows[1:]):
        assert image.startswith(str(photos))
        assert true == CLASSES[labels[i]] == Path(image).parent.name
        assert by_net == [CLASSES[each[i].argmax()] for each in posteriors]
        assert label == CLASSES[final[i]]
        assert float(sure) == pytest.approx(confidence[i].item(), abs=1e-6)
    assert (out / "predictions.csv").read_text() == predictions.read_text()
    assert _run(capsys, *command)[1] == printed


def test_single_and_no_flip(nets, capsys, tmp_path):
    found = tmp_path / "found.json"
    arguments = ["--protocol", "single", "--no-flip", "--pool", "sum", "--json", found]
    assert _run(capsys, "eval", "--model", nets[0], *arguments)[0] == 0
    found = json.loads(found.read_text())
    assert (found["scales"], found["flip"], found["pool"]) == ([36], False, "sum")
    assert [row["name"] for row in found["rows"]] == [str(nets[0])]


def test_converted_networks(capsys, tmp_path, photos):
    """They have neither data nor scales nor, at times, names of their classes."""
    plain = _save(tmp_path / "plain.safetensors")
    assert "--data must be given; what the networks were trained with" in _run(capsys, "eval", "--model", plain)[2]
    found = tmp_path / "found.json"
    code, _, err = _run(capsys, "eval", "--model", plain, "--data", f"imagefolder:{photos}", "--json", found)
    assert (code, err) == (0, "")
    assert json.loads(found.read_text())["scales"] == [37, 55, 73]  # 256, 384 and 512 of a head of 7
    assert Network.open(plain).scales("single") == (37,)
    names = tmp_path / "names.txt"
    names.write_text("red\nblue\n")
    code, _, err = _run(capsys, "eval", "--model", plain, "--data", f"imagefolder:{photos}", "--classes", names)
    assert (code, f"{plain} knows 2 classes that are not the 2 of imagefolder:{photos}" in err) == (1, True)


def test_what_eval_says_of_files(nets, capsys, tmp_path, photos):
    _save(tmp_path / "other.safetensors", outputs=3)
    data = ["--data", f"imagefolder:{photos}"]
    for models, text in (
        ([nets[0], tmp_path / "other.safetensors"], "other.safetensors knows 3 classes that are not the 2 of"),
        ([nets[0], nets[0]], "A.safetensors twice"),
        ([_save(tmp_path / "bare.safetensors", preprocessing=False)], "does not say how its images are prepared"),
        (
            [_save(tmp_path / "boxes.safetensors", outputs=8, predict="boxes")],
            "boxes.safetensors predicts boxes, not classes",
        ),
        ([tmp_path / "none.safetensors"], "none.safetensors: no such weight file"),
    ):
        code, _, err = _run(capsys, "eval", *data, "--models", *models)
        assert (code, text in err) == (1, True), err
    code, _, err = _run(capsys, "eval", *data)
    assert (code, err) == (2, "vggfast: --models must be given: one file or more\n")
    names = tmp_path / "names.txt"
    names.write_text("one\ntwo\nthree\n")
    err = _run(capsys, "eval", *data, "--model", _save(tmp_path / "two.safetensors"), "--classes", names)[2]
    assert "two.safetensors has 2 classes, and 3 names are given for them" in err
    for content, path, text in (
        ("one\ntwo\n", nets[0], "A.safetensors has names of its own for its classes, and others are given"),
        (
            "one\n\ntwo\n",
            tmp_path / "two.safetensors",
            "names.txt must have the name of a class on each line, and line 2 is empty",
        ),
        ("", tmp_path / "two.safetensors", "names.txt must have the name of a class on each line, and has no lines"),
    ):
        names.write_text(content)
        assert text in _run(capsys, "eval", *data, "--model", path, "--classes", names)[2]


def test_features_alone_are_refused(capsys, tmp_path):
    model = VGG("A", head="none", width=0.1)
    model.preprocessing = Preprocessing()
    save_model(model, tmp_path / "features.safetensors")
    err = _run(capsys, "eval", "--model", tmp_path / "features.safetensors", "--data", "digits")[2]
    assert "features.safetensors must hold a network with FC layers, and has convolutions alone" in err


def test_images_that_do_not_decode(nets, capsys, tmp_path, photos):
    (photos / "red" / "3.png").write_text("no image")
    whole = ["eval", "--model", nets[0], "--split", "train"]
    if "3.png" not in _run(capsys, *whole)[2]:
        whole[-1] = "val"  # it was held out
        assert "3.png: not an image that decodes" in _run(capsys, *whole)[2]
    code, out, _ = _run(capsys, *whole, "--on-bad-image", "skip", "--csv", tmp_path / "found.csv",
                        "--json", tmp_path / "found.json")  # fmt: skip
    assert code == 0
    assert "3.png: not an image that decodes" in "".join(out.split("\n"))
    found = json.loads((tmp_path / "found.json").read_text())
    assert (found["bad_images"], found["rows"][0]["images"]) == (1, found["images"] - 1)
    (row,) = [row for row in csv.reader((tmp_path / "found.csv").open()) if row[0].endswith("red/3.png")]
    assert row[1:] == ["red", "", "", ""]


def test_predict_by_several_networks(nets, capsys, tmp_path):
    for name, colour in (("a", "red"), ("b", "green"), ("c", "blue")):
        Image.new("RGB", (50, 40), colour).save(tmp_path / f"{name}.png")
    pictures = [tmp_path / f"{name}.png" for name in "abc"]
    code, out, err = _run(capsys, "predict", *pictures, "--top", 2, "--scales", 40, "--csv", tmp_path / "found.csv",
                          "--models", *nets)  # fmt: skip
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert [line for line in lines if line.endswith(".png")] == list(map(str, pictures))
    assert len(lines) == 9
    rows = list(csv.DictReader((tmp_path / "found.csv").open()))
    for i, row in enumerate(rows):
        assert row["image"] == str(pictures[i])
        assert lines[3 * i + 1].split() == [f"{float(row['confidence']):.2%}", row["prediction"]]


def test_predict_wants_names(capsys, tmp_path):
    Image.new("RGB", (50, 40)).save(tmp_path / "a.png")
    plain = _save(tmp_path / "plain.safetensors")
    err = _run(capsys, "predict", tmp_path / "a.png", "--model", plain)[2]
    assert "plain.safetensors has no names of its classes: give --classes FILE" in err
    (tmp_path / "names.txt").write_text("left\nright\n")
    code, out, _ = _run(capsys, "predict", tmp_path / "a.png", "--model", plain, "--classes", tmp_path / "names.txt",
                        "--top", 2)  # fmt: skip
    assert code == 0
    assert {line.split()[1] for line in out.splitlines()[1:]} == {"left", "right"}


def test_bytes():
    assert [parse_bytes(text) for text in ("2G", "512M", "1.5k", "4096", "1GiB")] == [
        2 << 30, 512 << 20, 1536, 4096, 1 << 30,
    ]  # fmt: skip
    for text in ("", "2T", "-1", "0"):
        with pytest.raises(argparse.ArgumentTypeError, match="a number of bytes, such as 512M or 2G"):
            parse_bytes(text)
