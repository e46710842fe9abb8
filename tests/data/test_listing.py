"""What is in a folder of classes: each member is an image, is named in an error, or is counted."""

import os
import shutil
import socket
import warnings

import numpy as np
import pytest
from PIL import Image

from vggfast.data import open_dataset, open_image, open_splits


def save(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 4), (value, value, value)).save(path, "PNG")


def opened(root, split="train", whole=True):
    """(data set, warnings)."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        return open_dataset(f"imagefolder:{root}", split, whole), [str(each.message) for each in said]


def names(images, root):
    return [os.path.relpath(images.source(i), root) for i in range(len(images))]


@pytest.fixture
def root(tmp_path):
    save(tmp_path / "set" / "ant" / "a.png")
    save(tmp_path / "set" / "bee" / "a.png")
    return tmp_path / "set"


def test_what_is_left_out_is_counted(root):
    for name in ("ant/a.txt", "ant/b.TXT", "bee/x/c.json", "ant/noending", "ant/._a.png", "ant/.DS_Store", "top.png"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).touch()
    save(root / "ant" / ".thumbnails" / "a.png")
    save(root / "__MACOSX" / "a.png")
    save(root / ".git" / "a.png")
    save(root / "@eaDir" / "a.png")
    save(root / "ant" / "@eaDir" / "a.png" / "SYNOPHOTO_THUMB_M.jpg")
    images, said = opened(root)
    assert names(images, root) == ["ant/a.png", "bee/a.png"]
    text = "leaves out 4 files of other endings: .txt 2, .json 1, none 1; 1 beside the class folders; 7 hidden"
    assert said == [f"{root} {text}"]


def test_beside_train_and_val(root, tmp_path):
    (tmp_path / "set").rename(tmp_path / "train")
    (tmp_path / "whole").mkdir()
    (tmp_path / "train").rename(tmp_path / "whole" / "train")
    (tmp_path / "whole" / "test").mkdir()
    assert opened(tmp_path / "whole")[1] == [f"{tmp_path / 'whole' / 'train'} leaves out 1 beside train and val"]


@pytest.mark.parametrize("ending", [".jpg", ".JPEG", ".jfif", ".jpe", ".WebP", ".tif", ".pbm", ".jp2", ".avif"])
def test_endings(root, ending):
    save(root / "ant" / f"b.c{ending}")
    images, said = opened(root)
    assert (len(images), said) == (3, [])


@pytest.mark.parametrize(
    ("folders", "classes"),
    [
        (["0", "1", "10", "2"], ["0", "1", "2", "10"]),
        (["07", "8", "10"], ["07", "8", "10"]),
        (["1", "01"], ["01", "1"]),
        (["0", "10", "2", "x"], ["0", "10", "2", "x"]),
        (["-1", "-10", "-2"], ["-1", "-10", "-2"]),
        (["²", "1"], ["1", "²"]),
    ],
)
def test_folders_called_by_numbers(tmp_path, folders, classes):
    for name in folders:
        save(tmp_path / name / "a.png")
    images, _ = opened(tmp_path)
    assert images.classes == classes
    assert names(images, tmp_path) == [f"{name}/a.png" for name in classes]


def test_the_order_of_networks_trained_before(tmp_path):
    for value in (0, 1, 2, 10):
        save(tmp_path / str(value) / "a.png", value)
    images, _ = opened(tmp_path)
    old = ["0", "1", "10", "2"]
    moved = images.ordered(old)
    assert moved.classes == old
    assert [int(old[label]) for label in moved.labels] == [int(moved.pixels(i)[0, 0, 0]) for i in range(4)]
    assert images.ordered(["0", "1", "2", "3"]) is images


def test_which_images_are_held_out_does_not_depend_on_the_order_of_the_classes(tmp_path):
    for name in ("0", "1", "2", "10", "11"):
        for i in range(20):
            save(tmp_path / "numbers" / name / f"{i}.png")
    shutil.copytree(tmp_path / "numbers", tmp_path / "texts")
    for folder in (tmp_path / "texts").iterdir():
        folder.rename(f"{folder}.")
    numbers, texts = (open_splits(f"imagefolder:{tmp_path / name}") for name in ("numbers", "texts"))
    assert [numbers[1].classes, texts[1].classes] == [["0", "1", "2", "10", "11"], ["0.", "1.", "10.", "11.", "2."]]
    for mine, theirs in zip(numbers, texts, strict=True):
        assert sorted(names(mine, tmp_path / "numbers")) == sorted(
            name.replace("./", "/") for name in names(theirs, tmp_path / "texts")
        )


def test_errors_are_of_one_line(tmp_path):
    save(tmp_path / "a\nb" / "a.png")
    (tmp_path / "a\nb" / "loop").symlink_to(".")
    with pytest.raises(ValueError, match=r"a\N{REPLACEMENT CHARACTER}b are one folder, by a link: remove one of them$"):
        opened(tmp_path)


@pytest.mark.parametrize("splits", [("Train", "Val"), ("test", "training"), ("valid",)])
def test_folders_of_splits_are_no_classes(splits, tmp_path):
    for name in splits:
        save(tmp_path / name / "ant" / "a.png")
    said = f"must have class folders, or the folders train and val, got {', '.join(splits)}"
    with pytest.raises(ValueError, match=said):
        opened(tmp_path)


def test_links_are_followed(root, tmp_path):
    save(tmp_path / "elsewhere" / "deep" / "b.png")
    (root / "ant" / "more").symlink_to(tmp_path / "elsewhere")
    (root / "ant" / "c.png").symlink_to(tmp_path / "elsewhere" / "deep" / "b.png")
    (root / "cat").symlink_to(tmp_path / "elsewhere")
    images, _ = opened(root)
    assert names(images, root) == ["ant/a.png", "ant/c.png", "ant/more/deep/b.png", "bee/a.png", "cat/deep/b.png"]


def _link(target):
    return lambda path: path.symlink_to(target)


def _socket(path):
    with socket.socket(socket.AF_UNIX) as each:
        each.bind(str(path))


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("loop", _link("."), r"ant/loop and .*/ant are one folder, by a link"),
        ("loop", _link("../../set"), r"are one folder, by a link"),
        ("loop", _link("loop"), r"ant/loop is a link to loop: not there"),
        ("gone.png", _link("nowhere.png"), r"gone\.png is a link to nowhere\.png: not there"),
        ("x.png", os.mkfifo, r"x\.png must be a regular file, and is not"),
        ("x.png", _link("/dev/zero"), r"x\.png must be a regular file, and is not"),
        ("x.png", _socket, r"x\.png must be a regular file, and is not"),
    ],
)
def test_refused(root, monkeypatch, name, make, message):
    monkeypatch.chdir(root / "ant")  # a socket's name is short
    make((root / "ant" / name) if make is not _socket else type(root)(name))
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        opened(root)


@pytest.mark.parametrize("make", [os.mkfifo, _link("/dev/zero")])
def test_an_image_that_is_no_file_hangs_nothing(tmp_path, make):
    make(tmp_path / "x.png")
    with pytest.raises(ValueError, match=r"x\.png: not a file that can be read \(it is no regular file\)"):
        open_image(tmp_path / "x.png")


def test_names_that_are_no_utf_8(tmp_path):
    for name in (b"caf\xe9", b"caf\xe8", b"\xe9t\xe9"):
        folder = os.path.join(os.fsencode(tmp_path), name)
        os.mkdir(folder)
        Image.new("RGB", (4, 4)).save(os.path.join(folder, b"\xff.png"), "PNG")
    images, _ = opened(tmp_path)
    assert images.classes == ["caf\ufffd (0)", "caf\ufffd (1)", "\ufffdt\ufffd"]
    assert [images.pixels(i).shape for i in range(3)] == [(4, 4, 3)] * 3
    with open(images.source(0), "wb") as file:
        file.write(b"no image")
    with pytest.raises(ValueError, match="\ufffd/\ufffd\\.png: not an image that decodes"):
        images.pixels(0)


@pytest.mark.parametrize("name", ["a\nb", "a\tb", 'a"b', "<b>", "100%", "a" * 250, "$x$", " a ", "\x1b[31m"])
def test_odd_names(root, name):
    save(root / name / "a.png")
    images, _ = opened(root)
    assert name in images.classes
    assert np.bincount(images.labels).tolist() == [1, 1, 1]


def test_a_folder_of_images_beside_class_folders_of_validation(tmp_path):
    """Hidden folders make no class folders of ImageNet's flat validation images."""
    save(tmp_path / "train" / "n01" / "a.png")
    save(tmp_path / "val" / "v.png")
    save(tmp_path / "val" / ".cache" / "v.png")
    (tmp_path / "val" / "val.txt").write_text("v.png 0\n")
    (tmp_path / "val" / "readme.md").touch()
    with pytest.warns(UserWarning, match=r"val leaves out 1 file of other endings: \.md 1; 1 hidden"):
        assert len(open_dataset(f"imagenet:{tmp_path}", "val")) == 1
