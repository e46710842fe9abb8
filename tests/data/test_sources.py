"""ImageNet's layouts and shards: what they hold, and what is mislabelled in them."""

import io
import json
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vggfast.data import open_dataset, open_splits
from vggfast.data.sources.shards import expand

WNIDS = ["n01440764", "n01443537", "n02000000"]


def picture(value: int) -> Image.Image:
    return Image.new("RGB", (6, 4), (value, value, value))


def png(value: int) -> bytes:
    file = io.BytesIO()
    picture(value).save(file, "PNG")
    return file.getvalue()


def values(images) -> list[int]:
    return [int(images.pixels(i)[0, 0, 0]) for i in range(len(images))]


# ---- ImageNet -------------------------------------------------------------------------------------------------------


@pytest.fixture
def imagenet(tmp_path) -> Path:
    """train/ of three classes; val/ flat, of four images of classes 2, 0, 1, 0."""
    for label, wnid in enumerate(WNIDS):
        (tmp_path / "train" / wnid).mkdir(parents=True)
        for i in range(2):
            picture(10 * label + i).save(tmp_path / "train" / wnid / f"{wnid}_{i}.JPEG", "PNG")
    (tmp_path / "val").mkdir()
    for i, value in enumerate((2, 0, 1, 0), 1):
        picture(value).save(tmp_path / "val" / f"ILSVRC2012_val_{i:08d}.JPEG", "PNG")
    return tmp_path


def by_numbers(root):
    (root / "val.txt").write_text("".join(f"ILSVRC2012_val_{i:08d}.JPEG {n}\n" for i, n in enumerate((2, 0, 1, 0), 1)))


def by_wnids(root):
    rows = (f"ILSVRC2012_val_{i:08d}.JPEG {WNIDS[n]}\n" for i, n in enumerate((2, 0, 1, 0), 1))
    (root / "val" / "val.txt").write_text("".join(rows))


def by_solution(root):
    rows = (f"ILSVRC2012_val_{i:08d},{WNIDS[n]} 1 2 3 4 \n" for i, n in enumerate((2, 0, 1, 0), 1))
    (root / "LOC_val_solution.csv").write_text("ImageId,PredictionString\n" + "".join(rows))


def by_devkit(root, truth=(7, 5, 6, 5)):
    from scipy.io import savemat

    data = root / "ILSVRC2012_devkit_t12" / "data"
    data.mkdir(parents=True)
    synsets = np.zeros(4, dtype=[("ILSVRC2012_ID", object), ("WNID", object), ("words", object)])
    for row, number, wnid in zip(synsets, (5, 6, 7, 8), [*WNIDS, "n09999999"], strict=True):
        row["ILSVRC2012_ID"], row["WNID"], row["words"] = number, wnid, "words"
    savemat(data / "meta.mat", {"synsets": synsets})
    (data / "ILSVRC2012_validation_ground_truth.txt").write_text("".join(f"{number}\n" for number in truth))


@pytest.mark.parametrize("write", [by_numbers, by_wnids, by_solution, by_devkit])
def test_flat_validation_images(imagenet, write):
    write(imagenet)
    train, val = open_splits(f"imagenet:{imagenet}")
    assert train.classes == val.classes == WNIDS
    assert values(train) == [0, 1, 10, 11, 20, 21]
    assert train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert val.labels.tolist() == values(val) == [2, 0, 1, 0]


def test_validation_in_class_folders_and_names(imagenet):
    for path in (imagenet / "val").iterdir():
        path.unlink()
    for label, wnid in enumerate(WNIDS):
        (imagenet / "val" / wnid).mkdir()
        picture(label).save(imagenet / "val" / wnid / "a.png")
    rows = ["n01440764 tench, Tinca tinca", "n01443537 goldfish", "n02000000 tench, as another is called"]
    (imagenet / "LOC_synset_mapping.txt").write_text("\n".join(rows) + "\n")
    val = open_dataset(f"imagenet:{imagenet}", "val")
    assert val.classes == ["tench", "goldfish", "tench"]
    assert values(val) == val.labels.tolist() == [0, 1, 2]
    (imagenet / "val" / WNIDS[1]).rename(imagenet / "val" / "n09999999")
    with pytest.raises(ValueError, match=r"train and val have different classes \(n01443537, n09999999\)"):
        open_dataset(f"imagenet:{imagenet}", "val")


def test_the_layout_of_the_contest(imagenet, tmp_path_factory):
    root = tmp_path_factory.mktemp("contest")
    (root / "ILSVRC" / "Data").mkdir(parents=True)
    (root / "ILSVRC" / "Data" / "CLS-LOC").symlink_to(imagenet)
    by_solution(root)
    assert open_dataset(f"imagenet:{root}", "val").labels.tolist() == [2, 0, 1, 0]


def test_numbers_that_are_names_of_classes_too(imagenet):
    for name, wnid in zip("123", WNIDS, strict=True):
        (imagenet / "train" / wnid).rename(imagenet / "train" / name)
    files = [f"ILSVRC2012_val_{i:08d}.JPEG" for i in range(1, 5)]
    (imagenet / "val.txt").write_text("".join(f"{file} {name}\n" for file, name in zip(files, "3123", strict=True)))
    said = "val.txt must say which class 1 means: a class of this name is there, which is number 0"
    with pytest.raises(ValueError, match=said):
        open_dataset(f"imagenet:{imagenet}", "val")
    for name in "123":
        (imagenet / "train" / name).rename(imagenet / "train" / str(int(name) - 1))
    (imagenet / "val.txt").write_text("".join(f"{file} {name}\n" for file, name in zip(files, "2010", strict=True)))
    assert open_dataset(f"imagenet:{imagenet}", "val").labels.tolist() == [2, 0, 1, 0]


def _drop_an_image(root):
    by_numbers(root)
    (root / "val" / "ILSVRC2012_val_00000003.JPEG").unlink()


def _drop_a_label(root):
    by_numbers(root)
    (root / "val.txt").write_text("\n".join((root / "val.txt").read_text().splitlines()[:3]))


def _strange_wnid(root):
    (root / "val.txt").write_text("ILSVRC2012_val_00000001.JPEG n09999999\n")


def _two_classes(root):
    row = f"ILSVRC2012_val_00000001,{WNIDS[0]} 1 2 3 4 {WNIDS[1]} 5 6 7 8 "
    (root / "LOC_val_solution.csv").write_text(f"ImageId,PredictionString\n{row}\n")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: None, "none of val.txt, LOC_val_solution.csv, or ILSVRC2012_validation_ground_truth.txt with"),
        (_drop_an_image, r"ILSVRC2012_val_00000003\.JPEG: not there, and 0 more that have a label"),
        (_drop_a_label, r"ILSVRC2012_val_00000004\.JPEG has no label; images without one: 1"),
        (_two_classes, r"solution\.csv must name a file and its class, .*, got 'ILSVRC2012_val_00000001\.JPEG n0.* n0"),
        (_strange_wnid, r"val\.txt must name a file and its class, .*, got 'ILSVRC2012_val_00000001\.JPEG n09999999'"),
        (
            lambda root: by_devkit(root, (7, 5, 6)),
            "ground_truth.txt must have a label for each of the 4 images of val/, got 3",
        ),
        (lambda root: by_devkit(root, (7, 5, 6, 8)), "has '8' for ILSVRC2012_val_00000004.JPEG, which is no class"),
        (lambda root: by_devkit(root, (7, 5, 6, 9)), "has '9' for ILSVRC2012_val_00000004.JPEG, which is no class"),
    ],
)
def test_mislabelled_validation_images(imagenet, spoil, message):
    spoil(imagenet)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        open_dataset(f"imagenet:{imagenet}", "val")


@pytest.mark.parametrize("rows", [f"{WNIDS[0]}: tench\n", f"{WNIDS[0]},tench\n", "tench\ngoldfish\n"])
def test_names_of_no_class(imagenet, rows):
    (imagenet / "synset_words.txt").write_text(rows)
    with pytest.raises(
        ValueError, match=r"synset_words\.txt there must have rows such as 'n\d+ its name', and has none"
    ):
        open_dataset(f"imagenet:{imagenet}", "train")


def test_a_damaged_devkit(imagenet):
    by_devkit(imagenet)
    (imagenet / "ILSVRC2012_devkit_t12" / "data" / "meta.mat").write_bytes(b"x" * 300)
    with pytest.raises(ValueError, match=r"meta\.mat is not the devkit's"):
        open_dataset(f"imagenet:{imagenet}", "val")


# ---- Tiny-ImageNet --------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny(tmp_path) -> Path:
    for wnid in WNIDS:
        (tmp_path / "train" / wnid / "images").mkdir(parents=True)
        picture(1).save(tmp_path / "train" / wnid / "images" / "a.png")
    (tmp_path / "val" / "images").mkdir(parents=True)
    picture(2).save(tmp_path / "val" / "images" / "v.png")
    (tmp_path / "wnids.txt").write_text("\n".join(reversed(WNIDS)))
    (tmp_path / "words.txt").write_text("n01440764\ttench, Tinca\nn09\tnothing\n")
    (tmp_path / "val" / "val_annotations.txt").write_text("v.png\tn02000000\t0\t0\t1\t1\n")
    return tmp_path


def test_tiny_imagenet(tiny):
    train, val = open_splits(f"tiny-imagenet:{tiny}")
    assert train.classes == ["tench", "n01443537", "n02000000"]
    assert val.labels.tolist() == [2]
    assert val.source(0) == str(tiny / "val" / "images" / "v.png")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("n01440764\ttench\nn09\tnothing\nn01440764\tcarp\n", "once, got n01440764 as 'tench' and 'carp'"),
        ("n01440764\ttench\nn09 nothing\n", "line 2 must be a wnid, a tab and words, got 'n09 nothing'"),
        ("n01440764\t\n", "line 1 must be a wnid, a tab and words, got 'n01440764"),
    ],
)
def test_words_that_name_no_classes(tiny, words, message):
    (tiny / "words.txt").write_text(words)
    with pytest.raises(ValueError, match=rf"words\.txt.* {message}"):
        open_dataset(f"tiny-imagenet:{tiny}", "train")


def test_tiny_imagenet_has_its_images_in_folders_images(tiny):
    folder = tiny / "train" / WNIDS[0]
    (folder / f"{WNIDS[0]}_boxes.txt").write_text("a.png\t0\t0\t1\t1\n")
    picture(3).save(folder / "b.png")
    with pytest.warns(UserWarning, match="train leaves out 1 beside the folders images$"):
        assert len(open_dataset(f"tiny-imagenet:{tiny}", "train")) == len(WNIDS)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            "v.png\tn09999999\n",
            r"annotations\.txt, line 1 must be a file and a class of wnids\.txt, got 'v\.png\\tn09999999'",
        ),
        ("v.png\tn02000000\nw.png\tn02000000\n", r"w\.png: not there, and 0 more of val_annotations\.txt"),
        ("\n", r"val_annotations\.txt must have a file and its class on each line, and has no lines"),
    ],
)
def test_annotations_that_do_not_fit(tiny, rows, message):
    (tiny / "val" / "val_annotations.txt").write_text(rows)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        open_dataset(f"tiny-imagenet:{tiny}", "val")


def test_tiny_imagenet_with_blank_lines_and_other_classes(tiny):
    (tiny / "val" / "val_annotations.txt").write_text("v.png\tn02000000\n\n\n")
    assert open_dataset(f"tiny-imagenet:{tiny}", "val").labels.tolist() == [2]
    (tiny / "wnids.txt").write_text("n09\n" + "\n".join(WNIDS))
    with pytest.raises(ValueError, match=r"train and wnids\.txt have different classes \(n09\)"):
        open_dataset(f"tiny-imagenet:{tiny}", "train")


# ---- shards ---------------------------------------------------------------------------------------------------------


def write_shard(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


@pytest.fixture
def shards(tmp_path) -> Path:
    """Two shards for training, one of them with JSON labels, and one for validation; five classes."""
    write_shard(tmp_path / "train-00.tar", {f"a/{i}.{end}": content for i in range(3)
                                            for end, content in (("png", png(i)), ("cls", b"%d\n" % i))})  # fmt: skip
    write_shard(tmp_path / "train-01.tar", {f"b/{i}.{end}": content for i in (3, 4)
                                            for end, content in (("json", json.dumps({"label": i}).encode()),
                                                                 ("png", png(i)))})  # fmt: skip
    write_shard(tmp_path / "val-00.tar", {"v.png": png(1), "v.cls": b"1", "readme.txt": b"no sample"})
    return tmp_path


@pytest.mark.parametrize("pattern", ["{split}-*.tar", "{split}-{00..00}*.tar", "{split}-0[0-9].tar"])
def test_shards_of_both_splits(shards, pattern):
    if pattern == "{split}-{00..00}*.tar":
        (shards / "train-01.tar").rename(shards / "train-00-b.tar")
    train, val = open_splits(f"shards:{shards}/{pattern}")
    assert sorted(values(train)) == sorted(train.labels.tolist()) == [0, 1, 2, 3, 4]
    assert values(train) == train.labels.tolist()
    assert (train.classes, val.classes) == (["0", "1", "2", "3", "4"],) * 2
    assert values(val) == val.labels.tolist() == [1]
    assert values(pickle.loads(pickle.dumps(train))) == values(train)


def test_the_index_is_kept_and_made_again(shards):
    open_splits(f"shards:{shards}/{{split}}-*.tar")
    kept = shards / "val-00.tar.index.npz"
    assert kept.exists()
    kept.write_bytes(b"damaged")
    assert values(open_dataset(f"shards:{shards}/{{split}}-*.tar", "val")) == [1]
    write_shard(shards / "val-00.tar", {"w.png": png(3), "w.cls": b"3", "x.png": png(4), "x.cls": b"4"})
    assert values(open_dataset(f"shards:{shards}/{{split}}-*.tar", "val")) == [3, 4]


def test_one_pattern_holds_a_tenth_out(tmp_path):
    members = {f"{i}.{end}": content for i in range(10) for end, content in (("png", png(i)), ("cls", b"0"))}
    write_shard(tmp_path / "all.tar", members)
    train, val = open_splits(f"shards:{tmp_path}/all.tar")
    assert (len(train), len(val)) == (9, 1)
    assert sorted(values(train) + values(val)) == list(range(10))


def test_classes_of_shards_have_names(shards):
    (shards / "classes.txt").write_text("ant\nbee\ncat\ndog\nelk\nfox\n")
    assert open_dataset(f"shards:{shards}/{{split}}-*.tar", "val").classes == ["ant", "bee", "cat", "dog", "elk", "fox"]


@pytest.mark.parametrize("pattern", ["{split}", "{train,val}"])
def test_shards_whose_folders_name_other_classes(shards, pattern):
    for split, names in (("train", "ant\nbee\n"), ("val", "bee\nant\n")):
        (shards / split).mkdir()
        write_shard(shards / split / "a.tar", {"a.png": png(1), "a.cls": b"0", "b.png": png(2), "b.cls": b"1"})
        (shards / split / "classes.txt").write_text(names)
    spec = f"shards:{shards}/{pattern}/a.tar"
    with pytest.raises(ValueError, match=r"train/classes\.txt and .*val/classes\.txt must name the same classes"):
        open_dataset(spec, "val", whole=True)
    (shards / "val" / "classes.txt").write_text("ant\nbee\n")
    assert open_dataset(spec, "val", whole=True).classes == ["ant", "bee"]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"v.png": png(1), "v.cls": b"9"}, r"val-00\.tar:v\.png must have a class of 0 to 4, got 9 \(1 such samples\)"),
        ({"v.png": png(1), "v.cls": b"-1"}, r"val-00\.tar:v\.png must have a class of 0 to 4, got -1"),
        ({"v.png": png(1), "v.cls": b"cat"}, r"val-00\.tar:v\.cls must be a whole number, got b'cat'"),
        (
            {"v.png": png(1), "v.json": b'{"label": "cat"}'},
            r"v\.json must be a JSON object with a whole number \"label\", got b'{\"label\": \"cat\"}'",
        ),
        ({"v.png": png(1), "v.json": b"{"}, r"v\.json must be a JSON object with a whole number \"label\", got b'{'"),
        ({"v.png": png(1)}, r"val-00\.tar:v\.png must have a \.cls or \.json of its name, got no label"),
        ({"v.cls": b"1"}, r"val-00\.tar must have images, names that end in one of \.jpg, .*, got none$"),
        ({"._v.png": png(1), "d/._v.png": png(1)}, r"val-00\.tar must have images, .*, got none but 2 hidden members"),
    ],
)
def test_mislabelled_samples(shards, members, message):
    write_shard(shards / "val-00.tar", members)
    with pytest.raises(ValueError, match=message):
        open_dataset(f"shards:{shards}/{{split}}-*.tar", "val")


def test_a_sample_that_does_not_decode_is_named(shards):
    write_shard(shards / "val-00.tar", {"v.png": b"no image", "v.cls": b"1"})
    images = open_dataset(f"shards:{shards}/{{split}}-*.tar", "val")
    with pytest.raises(ValueError, match=r"val-00\.tar:v\.png: not an image that decodes \(of no known format\)"):
        images.pixels(0)
    (shards / "val-00.tar").unlink()
    with pytest.raises(ValueError, match=r"val-00\.tar:v\.png: not a sample that can be read \(No such file"):
        images.pixels(0)


def test_no_tar_file(shards):
    (shards / "val-00.tar").write_bytes(b"x" * 2000)
    with pytest.raises(ValueError, match=r"val-00\.tar: not an uncompressed tar file"):
        open_dataset(f"shards:{shards}/{{split}}-*.tar", "val")


def test_patterns(tmp_path):
    for name in ("a-08", "a-09", "a-10", "b-09"):
        (tmp_path / name).touch()
    assert [Path(path).name for path in expand(f"{tmp_path}/a-{{08..10}}")] == ["a-08", "a-09", "a-10"]
    assert [Path(path).name for path in expand(f"{tmp_path}/{{b,a}}-09")] == ["b-09", "a-09"]
    assert [Path(path).name for path in expand(f"{tmp_path}/*-09")] == ["a-09", "b-09"]
    with pytest.raises(FileNotFoundError, match=r"a-11: no such shard"):
        expand(f"{tmp_path}/a-{{10..11}}")
