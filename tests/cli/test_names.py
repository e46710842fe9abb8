"""Names that are no UTF-8, or that have control characters, in whatever a command prints and writes; and outputs that
cannot be written: each is named, and the others are there.
"""

import csv
import json
import os

import numpy as np
import pytest
from PIL import Image

from vggfast import VGG
from vggfast.cli import main
from vggfast.data import Preprocessing, open_dataset
from vggfast.weights import save_model

SMALL = (
    "--config", "A", "--crop", "32", "--scale-min", "32", "--scale-max", "36", "--width", "0.0625", "--hidden", "16",
    "--workers", "0", "--epochs", "1", "--batch-size", "4",
)  # fmt: skip
ONCE = ("--protocol", "single", "--scales", 32)


@pytest.fixture
def odd(tmp_path):
    """A folder of two classes and four pictures each, one of the classes and the pictures called in Latin-1."""
    for name in (b"cats", b"caf\xe9"):
        folder = os.path.join(os.fsencode(tmp_path), b"set", name)
        os.makedirs(folder)
        for i in range(4):
            pixels = np.random.default_rng(i).integers(0, 256, (40, 40, 3), np.uint8)
            Image.fromarray(pixels).save(os.path.join(folder, b"\xff%d.png" % i), "PNG")
    return tmp_path / "set"


@pytest.fixture
def net(odd, tmp_path):
    model = VGG("A", 2, width=0.0625, hidden=16, pool_size=1)
    model.preprocessing = Preprocessing((127, 127, 127))
    path = tmp_path / "net.safetensors"
    save_model(
        model, path, {"classes": open_dataset(f"imagefolder:{odd}", "train", True).classes, "scales": [32, 36, 40]}
    )
    return path


def run(capsys, *arguments):
    capsys.readouterr()
    code = main([str(argument) for argument in arguments])
    return code, *capsys.readouterr()


def test_predict(net, odd, capsys, tmp_path):
    image = odd / os.fsdecode(b"caf\xe9") / os.fsdecode(b"\xff0.png")
    other = tmp_path / "a\nb\x1b.png"
    image.rename(other)
    image = image.with_name(os.fsdecode(b"\xff1.png"))
    sheet, table = tmp_path / "sheet.html", tmp_path / "table.csv"
    code, out, err = run(capsys, "predict", "--model", net, "--csv", table, "--sheet", sheet, image, other)
    assert (code, err) == (0, "")
    shown = f"{odd}/caf\ufffd/\ufffd1.png"
    assert [line for line in out.splitlines() if not line.startswith("  ")] == [shown, f"{tmp_path}/a\ufffdb\ufffd.png"]
    assert "caf\ufffd" in out
    assert shown in sheet.read_text(encoding="utf-8")
    with table.open(encoding="utf-8", newline="") as file:
        assert [row["image"] for row in csv.DictReader(file)] == [shown, str(other)]
    code, out, err = run(capsys, "predict", "--model", net, "--sheet", tmp_path / "sheet.png", image)
    assert (code, err) == (0, "")


def test_eval_and_its_report(net, odd, capsys, tmp_path):
    renamed = odd.rename(odd.with_name(os.fsdecode(b"s\xe9t")))
    out = tmp_path / "out"
    code, printed, err = run(capsys, "eval", "--model", net, "--data", f"imagefolder:{renamed}", *ONCE, "--out", out)
    assert (code, err) == (0, "")
    assert "s\ufffdt" in printed
    assert json.loads((out / "results.json").read_text())["classes"] == ["cats", "caf\ufffd"][::-1]
    assert f"{tmp_path}/s\ufffdt/caf\ufffd/\ufffd" in (out / "predictions.csv").read_text(encoding="utf-8")
    assert run(capsys, "report", out)[0] == 0
    assert "caf\ufffd" in (out / "evaluation.html").read_text(encoding="utf-8")


def test_one_output_that_cannot_be_written_keeps_no_other_back(net, odd, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("vggfast.io.check_writable", lambda path: None)  # they were, when the command began
    (tmp_path / "dir.json").mkdir()
    (tmp_path / "dir.csv").mkdir()
    (tmp_path / "dir.html").mkdir()
    arguments = ("eval", "--model", net, "--data", f"imagefolder:{odd}", *ONCE)
    code, out, err = run(capsys, *arguments, "--json", tmp_path / "dir.json", "--csv", tmp_path / "good.csv")
    assert code == 1
    assert err.startswith(f"vggfast: {tmp_path}/dir.json could not be written (")
    assert "top-1 error" in out
    assert (tmp_path / "good.csv").is_file()
    image = next((odd / "cats").iterdir())
    code, out, err = run(
        capsys, "predict", "--model", net, image, "--csv", tmp_path / "dir.csv", "--sheet", tmp_path / "sheet.html"
    )
    assert (code, err.count("could not be written"), (tmp_path / "sheet.html").is_file()) == (1, 1, True)
    code, out, err = run(capsys, "predict", "--model", net, image, "--sheet", tmp_path / "dir.html")
    assert code == 1
    assert f"{tmp_path}/dir.html could not be written" in err
    assert "%" in out


def test_predictions_that_cannot_be_written_keep_no_results_back(net, odd, capsys, tmp_path):
    (tmp_path / "out" / "predictions.csv").mkdir(parents=True)
    arguments = ("eval", "--model", net, "--data", f"imagefolder:{odd}", *ONCE, "--out", tmp_path / "out")
    for _ in range(2):  # the second time from the results
        code, out, err = run(capsys, *arguments)
        assert code == 0
        assert err.startswith(f"vggfast: warning: {tmp_path}/out/predictions.csv could not be written (")
        assert "top-1 error" in out
        assert (tmp_path / "out" / "results.json").is_file()


def test_what_is_left_out_is_one_line(net, odd, capsys):
    (odd / "cats" / "notes.txt").touch()
    arguments = ("eval", "--model", net, "--data", f"imagefolder:{odd}", *ONCE)
    code, _, err = run(capsys, *arguments)
    assert (code, err) == (0, f"vggfast: warning: {odd} leaves out 1 file of other endings: .txt 1\n")


@pytest.mark.slow
def test_train(odd, capsys, tmp_path):
    out = tmp_path / os.fsdecode(b"r\xfcn")
    code, printed, err = run(capsys, "train", "--data", f"imagefolder:{odd}", *SMALL, "--out", out)
    assert (code, err) == (0, "")
    assert f"{tmp_path}/r\ufffdn/report.html" in printed
    assert f"warning: {tmp_path}/r\ufffdn gets no files for TensorBoard" in printed
    assert "caf\ufffd" in (out / "metrics.json").read_text() or (out / "report.html").is_file()
    assert (out / "confusion.png").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["report.html", "confusion.png", "predictions.png", "metrics.json", "curves.png"])
def test_a_report_that_cannot_be_written(odd, capsys, tmp_path, name):
    (tmp_path / "run" / name).mkdir(parents=True)
    code, printed, err = run(capsys, "train", "--data", f"imagefolder:{odd}", *SMALL, "--out", tmp_path / "run")
    assert code == 0
    assert err.startswith(f"vggfast: warning: {tmp_path}/run/{name} could not be written (")
    assert "top-1 error" in printed
    for other in {"report.html", "confusion.png", "predictions.png", "metrics.json", "model.safetensors"} - {name}:
        assert (tmp_path / "run" / other).is_file()


@pytest.mark.parametrize(("name", "why"), [("folder", "it is a folder"), ("m/x.csv", "Not a directory")])
def test_a_file_that_cannot_be_written_is_named_before_the_work(tmp_path, monkeypatch, capsys, name, why):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m").write_bytes(b"network")
    (tmp_path / "folder").mkdir()
    assert main(["eval", "--model", "none", "--csv", name]) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"vggfast: {name} cannot be written (")
    assert why in err


def test_convert_keeps_what_is_there(tmp_path, capsys):
    source, out = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_model(VGG("A", 3, width=0.1, hidden=8), source, {"preprocessing": Preprocessing().as_dict()})
    out.write_bytes(b"mine")
    assert main(["convert", str(source), str(out)]) == 1
    assert f"{out} exists already: give another name, or --overwrite" in capsys.readouterr().err
    assert out.read_bytes() == b"mine"
    assert main(["convert", str(source), str(out), "--overwrite"]) == 0
    assert out.read_bytes() == source.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["eval", "--model", "m", "--csv", "x", "--json", "./x"], "--csv must be another file than --json, got x for"),
        (["predict", "a.png", "--model", "m", "--csv", "x", "--sheet", "x"], "--sheet must be another file than --csv"),
        (["predict", "a.png", "--model", "m", "--sheet", "a.png"], "--sheet must be another file than IMAGE, got a"),
        (["eval", "--model", "m", "--json", "linked"], "--json must be another file than --models, got linked"),
        (["svm", "f.npz", "--json", "f.npz"], "--json must be another file than --features, got f.npz for both"),
        (["convert", "m", "m"], "OUT must be another file than SOURCE, got m for both"),
    ],
)
def test_a_file_is_not_written_twice_nor_over_what_is_read(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m").write_bytes(b"network")
    (tmp_path / "linked").hardlink_to(tmp_path / "m")
    assert main(arguments) == 2
    assert message in capsys.readouterr().err
    assert (tmp_path / "m").read_bytes() == b"network"
