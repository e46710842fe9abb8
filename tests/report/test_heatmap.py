"""Heat maps, boxes and the prediction sheet: everything where it should be, by pixel."""

import re

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from vggfast.cli import main
from vggfast.data import ImageSet, Preprocessing
from vggfast.models import VGG
from vggfast.report import sheet as sheet_module
from vggfast.report.boxes import draw_boxes
from vggfast.report.heatmap import bar, class_probabilities, heat_map
from vggfast.report.sheet import write_sheet
from vggfast.weights import save_model

GREY = Image.new("RGB", (230, 170), (128, 128, 128))  # neither side a multiple of 32


def _pixels(image):
    return np.asarray(image).astype(int)


@pytest.mark.parametrize(("cell", "centre"), [((0, 0), (32, 32)), ((1, 4), (64, 160)), ((3, 5), (128, 192))])
def test_a_hot_cell_lights_its_place_alone(cell, centre):
    values = np.zeros((4, 6))  # 170 // 32 - 2 + 1, 230 // 32 - 2 + 1
    values[cell] = 1
    pixels = _pixels(heat_map(GREY, values, window=64))
    yellow = pixels[..., 0] + pixels[..., 1] - 2 * pixels[..., 2]
    hot = np.argwhere(yellow > 0.9 * yellow.max())
    inner = [i for i in (0, 1) if 0 < cell[i] < values.shape[i] - 1]  # an outer one goes on to the frame
    assert np.allclose(hot.mean(0)[inner] + 0.5, np.array(centre)[inner])
    assert abs(hot.mean(0) + 0.5 - centre).max() < 8
    far = np.ones_like(yellow, bool)
    far[max(0, centre[0] - 34) : centre[0] + 34, max(0, centre[1] - 34) : centre[1] + 34] = False
    assert yellow[far].max() < 0.1 * yellow.max()


def test_nothing_is_drawn_where_the_map_knows_nothing():
    values = np.random.default_rng(0).random((4, 6))
    pixels = _pixels(heat_map(GREY, values, window=64))
    inside = np.zeros(pixels.shape[:2], bool)
    inside[16:144, 16:208] = True
    assert (pixels[~inside] == 128).all()
    assert (pixels[16, 16:208] == 255).all()  # the frame
    assert (pixels[143, 16:208] == 255).all()
    assert (np.ptp(pixels[17:143, 17:207], axis=2) > 0).mean() > 0.9


def test_colours_are_those_of_the_bar():
    values = np.random.default_rng(0).uniform(0.2, 1, (4, 6))
    pixels, key = _pixels(heat_map(GREY, values, window=64)), _pixels(bar(1001, 1))[0]
    for (i, j), value in np.ndenumerate(values):
        middle = pixels[32 * i + 31 : 32 * i + 33, 32 * j + 31 : 32 * j + 33].mean((0, 1))
        assert abs(middle - key[round(1000 * value**0.5)]).max() < 5


def test_maps_that_do_not_fit_their_photo():
    with pytest.raises(ValueError, match=r"values must have shape \(4, 6\), .*170 x 230 pixels.*, got \(4, 5\)"):
        heat_map(GREY, np.zeros((4, 5)), window=64)
    with pytest.raises(ValueError, match=r"values must have shape .*, got "):
        heat_map(GREY, np.zeros((0, 0)), window=256)
    for wrong in (1.5, -0.1, np.nan):
        with pytest.raises(ValueError, match="values must be 0 to 1, got "):
            heat_map(GREY, np.full((4, 6), wrong), window=64)


def test_class_probabilities():
    scores = torch.randn(5, 2, 3) * 100
    assert np.allclose(class_probabilities(scores.numpy()), scores.double().softmax(0).numpy())


# ---- boxes -----------------------------------------------------------------------------------------------------------


def _is(pixels, colour):
    return (pixels == colour).all(-1)


ORANGE, BLUE = (0xEE, 0x77, 0x33), (0x33, 0xBB, 0xEE)


def test_boxes_are_where_they_should_be():
    pixels = _pixels(draw_boxes(Image.new("RGB", (300, 400)), [[50, 60, 150, 200]], [[160, 210, 280, 390]]))
    found = np.argwhere(_is(pixels, ORANGE))
    assert found.min(0).tolist() == [60, 50]
    assert (found.max(0) + 1).tolist() == [200, 150]
    assert _is(pixels, ORANGE)[60:200, 50].all()
    assert not pixels[80:180, 70:130].any()
    found = np.argwhere(_is(pixels, BLUE))
    assert found.min(0).tolist() == [210, 160]
    assert (found.max(0) + 1).tolist() == [390, 280]
    assert 0.3 < _is(pixels, BLUE)[210:390, 160].mean() < 0.7  # broken


def test_small_photos_are_enlarged_with_their_boxes():
    image = draw_boxes(Image.new("RGB", (64, 80)), [[10, 20, 30.5, 40]])
    assert image.size == (256, 320)
    found = np.argwhere(_is(_pixels(image), ORANGE))
    assert (found.min(0).tolist(), (found.max(0) + 1).tolist()) == ([80, 40], [160, 122])


@pytest.mark.parametrize("box", [[0, 0, 300, 300], [100, 100, 200, 200], [250, 290, 320, 310], [5, 5, 5, 5]])
def test_labels_stay_on_the_photo(box):
    bare, labelled = (
        _pixels(draw_boxes(Image.new("RGB", (300, 300)), [box], labels=labels, ious=ious))
        for labels, ious in (((), ()), (["a class with a very long name, " * 9], [0.5]))
    )
    rows, columns = np.nonzero((bare != labelled).any(-1))
    assert 10 < np.ptp(rows) < 40
    assert np.ptp(columns) > 250
    assert max(columns) <= 299


def test_boxes_of_a_wrong_shape():
    photo = Image.new("RGB", (64, 64))
    with pytest.raises(
        ValueError, match=r"predicted must have shape \(boxes, 4\), left, top, right, bottom, got \(4,\)"
    ):
        draw_boxes(photo, [1, 2, 3, 4])
    with pytest.raises(ValueError, match=r"true must have shape \(boxes, 4\), left, top, right, bottom, got \(1, 3\)"):
        draw_boxes(photo, true=[[1, 2, 3]])
    with pytest.raises(ValueError, match="ious must have length 1, one for each predicted box, or 0, got 2"):
        draw_boxes(photo, [[1, 2, 3, 4]], ious=[0.5, 0.5])


# ---- the sheet -------------------------------------------------------------------------------------------------------


def _case(classes, sizes=((40, 100), (64, 64), (33, 20))):
    model = VGG("A", classes, width=0.05, hidden=8, pool_size=1).eval()
    model.preprocessing = Preprocessing.torchvision()
    names = ["<b>$x_{$", *(f"class {i}" for i in range(1, classes))]
    photos = [Image.new("RGB", size, "teal") for size in sizes]
    images = ImageSet("photos", names, np.zeros(len(sizes), int), [f"<i>{i}.jpg" for i in range(len(sizes))],
                      lambda source: photos[int(source[3:-4])])  # fmt: skip
    return model, images, torch.rand(len(sizes), classes).softmax(1)


@pytest.mark.parametrize("classes", [1, 3, 1000])
def test_a_sheet(classes, tmp_path):
    model, images, posteriors = _case(classes)
    text = write_sheet(tmp_path / "sheet.html", model, images, posteriors).read_text(encoding="utf-8")
    maps = min(classes, 2)
    assert text.count("data:image/jpeg;base64,") == 1 + 3 * (1 + maps)  # the bar; photos and their maps
    assert "<b>" not in text
    assert "<i>" not in text
    assert f"knows {classes} class" in text
    assert "32 x 32 pixels around each place, in the photo rescaled to a shorter side of 64" in text
    assert all(f"<li>{name}</li>" in text for name in images.classes[1:])
    shown = re.findall(r'<li><span>(.*?)</span><span class="number">(.*?) %', text)
    best = posteriors.topk(min(5, classes))
    assert [value for _, value in shown] == [f"{100 * value:.1f}" for value in best.values.flatten().tolist()]
    assert [name for name, _ in shown if "class" in name] == [
        images.classes[i] for i in best.indices.flatten().tolist() if i
    ]


def test_a_sheet_as_a_picture(tmp_path):
    model, images, posteriors = _case(3)
    with Image.open(write_sheet(tmp_path / "sheet.png", model, images, posteriors, top=2)) as image:
        assert image.size[0] > 1000
        assert image.size[1] > 3 * 300


def test_sheets_that_cannot_be(tmp_path, monkeypatch):
    model, images, posteriors = _case(3)
    with pytest.raises(ValueError, match=r"sheet must be a name that ends in \.html or \.png, got .*sheet\.pdf'"):
        write_sheet(tmp_path / "sheet.pdf", model, images, posteriors)
    monkeypatch.setattr(sheet_module, "_MOST_PNG", 2)
    with pytest.raises(ValueError, match=r"a sheet of more than 2 photos must be \.html, got .*\.png. for 3 photos"):
        write_sheet(tmp_path / "sheet.png", model, images, posteriors)


def test_predict_writes_a_sheet(tmp_path, capsys):
    model, images, _ = _case(3)
    save_model(model, tmp_path / "model.safetensors", {"classes": images.classes, "scales": [32]})
    images.image(0).save(tmp_path / "a.png")

    def predict(name):
        return main(["predict", "--model", str(tmp_path / "model.safetensors"), "--sheet", str(tmp_path / name),
                     "--top", "3", str(tmp_path / "a.png")])  # fmt: skip

    assert predict("sheet.html") == 0
    printed = [line.split("%")[0].strip() for line in capsys.readouterr().out.splitlines() if "%" in line]
    text = (tmp_path / "sheet.html").read_text(encoding="utf-8")
    shown = re.findall(r'<span class="number">(.*?) %', text)
    assert [float(value) for value in shown] == [pytest.approx(float(value), abs=0.06) for value in printed]
    assert str(tmp_path / "a.png") in text
    assert predict("sheet.pdf") == 1
    out, err = capsys.readouterr()
    assert "must be a name that ends in .html or .png, got " in err
    assert "%" not in out  # refused before the network runs


def test_a_sheet_that_breaks_off_leaves_what_was_there(tmp_path, monkeypatch):
    model, images, posteriors = _case(1)
    path = tmp_path / "sheet.png"
    path.write_bytes(b"before")

    def half(self, file, **_):
        file.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(Figure, "savefig", half)
    with pytest.raises(OSError, match=r"sheet\.png could not be written \(no space left\)"):
        write_sheet(path, model, images, posteriors)
    assert [file.name for file in tmp_path.iterdir()] == ["sheet.png"]
    assert path.read_bytes() == b"before"
