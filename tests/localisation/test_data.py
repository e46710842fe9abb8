"""Data sets with boxes: Tiny-ImageNet's layout and ImageNet's, what is not in them, and what is wrong in them."""

import numpy as np
import pytest
from PIL import Image

from vggfast.data import open_dataset
from vggfast.localisation import open_boxes
from vggfast.localisation.data import with_boxes


def _picture(path, size=(64, 64)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path)


@pytest.fixture
def tiny(tmp_path):
    """Two classes of two training images and one validation image; the files of boxes list one that is not there."""
    (tmp_path / "wnids.txt").write_text("n2\nn1\n")
    (tmp_path / "words.txt").write_text("n1\tcat, a pet\nn2\tdog\n")
    for wnid, shift in (("n1", 0), ("n2", 10)):
        rows = [f"{wnid}_{i}.JPEG\t{i + shift}\t2\t{40 + i}\t63" for i in range(3)]
        for i in range(2):
            _picture(tmp_path / "train" / wnid / "images" / f"{wnid}_{i}.JPEG")
        (tmp_path / "train" / wnid / f"{wnid}_boxes.txt").write_text("\n".join(rows) + "\n")
    for name in ("val_0.JPEG", "val_1.JPEG"):
        _picture(tmp_path / "val" / "images" / name)
    annotations = "val_1.JPEG\tn2\t0\t0\t63\t63\nval_0.JPEG\tn1\t16\t32\t31\t47\n"
    (tmp_path / "val" / "val_annotations.txt").write_text(annotations)
    return tmp_path


def test_tiny_imagenet(tiny):
    train, val = (open_boxes(f"tiny-imagenet:{tiny}", split) for split in ("train", "val"))
    assert train.classes == val.classes == ["cat", "dog"]
    assert train.labels.tolist() == [0, 0, 1, 1]
    # A pixel that a box ends with is inside it.
    assert (64 * train.boxes).tolist() == [[0, 2, 41, 64], [1, 2, 42, 64], [10, 2, 41, 64], [11, 2, 42, 64]]
    assert train.starts.tolist() == [0, 1, 2, 3, 4]
    assert [train.source(i).rpartition("/")[2] for i in (1, 2)] == ["n1_1.JPEG", "n2_0.JPEG"]
    assert val.labels.tolist() == [1, 0]
    assert (64 * val.boxes_of(0)).tolist() == [[0, 0, 64, 64]]
    assert (64 * val.boxes_of(1)).tolist() == [[16, 32, 32, 48]]
    assert (64 * train.mean_box()).tolist() == [5.5, 2, 41.5, 64]
    assert val.pixels(1).shape == (64, 64, 3)


def test_images_of_one_name_in_two_classes(tiny):
    for wnid, box in (("n1", "0\t0\t31\t31"), ("n2", "32\t32\t63\t63")):
        (tiny / "train" / wnid / "images" / f"{wnid}_0.JPEG").rename(tiny / "train" / wnid / "images" / "0.JPEG")
        (tiny / "train" / wnid / f"{wnid}_boxes.txt").write_text(f"0.JPEG\t{box}\n")
    with pytest.warns(UserWarning, match="leaves out 2 without a box"):
        found = open_boxes(f"tiny-imagenet:{tiny}", "train")
    assert [(64 * found.boxes_of(i)).tolist() for i in (0, 1)] == [[[0, 0, 32, 32]], [[32, 32, 64, 64]]]


@pytest.mark.parametrize(
    "line", ["n1_0.JPEG\t1\t2\t3", "n1_0.JPEG\t1\t2\t3\tx", "n1_0.JPEG\t5\t2\t4\t9", "n1_0.JPEG\t1\t2\t3\t64", "",
             "n1_0.JPEG\t1\t2\t3\t4\t5", "n1_0.JPEG\t-1\t2\t3\t4", "n1_0.JPEG 1 2 3 4"]
)  # fmt: skip
def test_a_line_that_is_no_box_is_named(tiny, line):
    path = tiny / "train" / "n1" / "n1_boxes.txt"
    path.write_text(f"n1_1.JPEG\t1\t2\t3\t4\n{line}\nn1_0.JPEG\t1\t2\t3\t4\n")
    with pytest.raises(
        ValueError, match=r"n1_boxes.txt, line 2 must have left, top, right and bottom in its last columns, .*, got "
    ):
        open_boxes(f"tiny-imagenet:{tiny}", "train")


def test_a_file_of_boxes_that_is_not_there_is_named(tiny):
    (tiny / "train" / "n2" / "n2_boxes.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"n2_boxes.txt: no such file of boxes"):
        open_boxes(f"tiny-imagenet:{tiny}", "train")


def test_validation_rows_without_boxes_are_refused(tiny):
    (tiny / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn1\nval_1.JPEG\tn2\n")
    with pytest.raises(ValueError, match=r"val_annotations.txt, line 1 must have left, .*, got 'val_0.JPEG\\tn1'"):
        open_boxes(f"tiny-imagenet:{tiny}", "val")


@pytest.mark.parametrize("spec", ["digits", "imagefolder:photos", "cache:dir"])
def test_other_kinds_have_no_boxes(spec):
    with pytest.raises(ValueError, match=r"data must be one with boxes, tiny-imagenet:DIR or imagenet:DIR, got "):
        open_boxes(spec, "train")


def test_an_image_has_several_boxes_or_none(photos):
    images = open_dataset(f"imagefolder:{photos}", "train")
    small, large, none = [0.1, 0.1, 0.2, 0.2], [0.5, 0.0, 1.0, 1.0], []
    boxes = {2: [small, large], 5: [large], 7: [small, small]}
    found = with_boxes(images, lambda index: boxes.get(index, none))
    assert len(found) == 3
    assert found.labels.tolist() == images.labels[[2, 5, 7]].tolist()
    assert [found.source(i) for i in range(3)] == [images.source(i) for i in (2, 5, 7)]
    assert found.boxes_of(0).tolist() == [small, large]
    assert found.largest.tolist() == [large, large, small]
    np.testing.assert_allclose(found.mean_box(), (2 * np.array(large) + small) / 3)
    with pytest.raises(ValueError, match=r"none of its 18 images has a box"):
        with_boxes(images, lambda index: [])


# ---- ImageNet -----------------------------------------------------------------------------------------------------

_OBJECT = (
    "<object><name>n1</name><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"
)


def _annotation(path, *boxes, size=(100, 50)):
    objects = "".join(_OBJECT.format(*box) for box in boxes)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f"<annotation><size><width>{size[0]}</width><height>{size[1]}</height></size>{objects}</annotation>"
    )


_OUTSIDE = f"<annotation><size><width>100</width><height>50</height></size>{_OBJECT}</annotation>"


@pytest.fixture(params=["", "ILSVRC"])
def imagenet(request, tmp_path):
    """As it is distributed; the second training image of n1 has no boxes, the validation images are in no folders."""
    data = tmp_path / "ILSVRC" / "Data" / "CLS-LOC" if request.param else tmp_path
    for name in ("n1/n1_1", "n1/n1_2", "n2/n2_1"):
        _picture(data / "train" / f"{name}.JPEG", (200, 100))
    _picture(data / "val" / "ILSVRC2012_val_00000001.JPEG")
    (tmp_path / "val.txt").write_text("ILSVRC2012_val_00000001.JPEG 1\n")
    annotations = tmp_path / request.param / "Annotations" / "CLS-LOC"
    _annotation(annotations / "train" / "n1" / "n1_1.xml", (10, 5, 60, 50), (0, 0, 10, 10))
    _annotation(annotations / "train" / "n2" / "n2_1.xml", (50, 25, 101, 50))
    _annotation(annotations / "val" / "ILSVRC2012_val_00000001.xml", (25, 0, 75, 50))
    return tmp_path, annotations


def test_imagenet(imagenet):
    folder, _ = imagenet
    train, val = (open_boxes(f"imagenet:{folder}", split) for split in ("train", "val"))
    assert [train.source(i).rpartition("/")[2] for i in range(len(train))] == ["n1_1.JPEG", "n2_1.JPEG"]
    assert train.labels.tolist() == [0, 1]
    np.testing.assert_allclose(train.boxes_of(0), [[0.1, 0.1, 0.6, 1.0], [0, 0, 0.1, 0.2]])
    np.testing.assert_allclose(train.boxes_of(1), [[0.5, 0.5, 1.0, 1.0]])  # cut off at the edge
    assert val.labels.tolist() == [1]
    np.testing.assert_allclose(val.boxes, [[0.25, 0, 0.75, 1]])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("<annotation>", "no annotation of boxes: no element found"),
        (_OUTSIDE.format(200, 0, 300, 40), r"boxes in its picture of 100x50, got \[200.0, 0.0, 300.0, 40.0\]"),
        (_OUTSIDE.format(0, -9, 10, 0), r"boxes in its picture of 100x50, got \[0.0, -9.0, 10.0, 0.0\]"),
        ("<annotation><object/></annotation>", "size/width must be a number, got None"),
        (
            None,
            r"must have boxes with xmin < xmax and ymin < ymax, got \[60.0, 5.0, 10.0, 50.0\] in a picture of 100x50",
        ),
    ],
)
def test_an_annotation_that_is_none_is_named(imagenet, text, says):
    folder, annotations = imagenet
    path = annotations / "train" / "n1" / "n1_1.xml"
    if text is None:
        _annotation(path, (60, 5, 10, 50))
    else:
        path.write_text(text)
    with pytest.raises(ValueError, match=rf"n1_1.xml .*{says}"):
        open_boxes(f"imagenet:{folder}", "train")


def test_imagenet_without_annotations(tmp_path):
    _picture(tmp_path / "train" / "n1" / "a.JPEG")
    with pytest.raises(FileNotFoundError, match=r"Annotations/CLS-LOC/train: no such folder"):
        open_boxes(f"imagenet:{tmp_path}", "train")
