"""Hugging Face's data sets: their splits and columns, and what is refused."""

import pickle
import sys
import types

import pytest

from tests.data.test_sources import png, values
from vggfast.data import open_dataset, open_splits


def test_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match="data 'hf:cifar10' needs Hugging Face's package: pip install"):
        open_dataset("hf:cifar10", "train")


def _hugging_face(folder, names=("ant", "bee"), **splits):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"img": datasets.Image(), "fine": datasets.ClassLabel(names=[*names])})
    made = {
        name: datasets.Dataset.from_dict({"img": [{"bytes": png(v), "path": None} for v in found],
                                          "fine": [v % len(names) for v in found]}, features=features)
        for name, found in splits.items()
    }  # fmt: skip
    datasets.DatasetDict(made).save_to_disk(str(folder))


def test_from_disk(tmp_path):
    _hugging_face(tmp_path / "set", train=range(6), validation=[7, 8])
    train, val = open_splits(f"hf:{tmp_path / 'set'}")
    assert train.classes == ["ant", "bee"]
    assert values(train) == list(range(6))
    assert train.labels.tolist() == [0, 1] * 3
    assert values(val) == [7, 8]
    assert values(pickle.loads(pickle.dumps(val))) == [7, 8]


def test_without_a_validation_split(tmp_path):
    _hugging_face(tmp_path / "set", train=range(20))
    train, val = open_splits(f"hf:{tmp_path / 'set'}")
    assert (len(train), len(val)) == (18, 2)
    assert not set(values(train)) & set(values(val))


def test_splits_that_are_left_out(tmp_path):
    _hugging_face(tmp_path / "set", train=range(20), test=range(3))
    with pytest.warns(UserWarning, match="set leaves out 3 rows of its split test"):
        assert len(open_dataset(f"hf:{tmp_path / 'set'}", "val")) == 2


def test_splits_of_other_classes(tmp_path):
    _hugging_face(tmp_path / "a", train=range(4))
    _hugging_face(tmp_path / "b", ["bee", "ant"], val=range(4))
    datasets = pytest.importorskip("datasets")
    parts = {**datasets.load_from_disk(str(tmp_path / "a")), **datasets.load_from_disk(str(tmp_path / "b"))}
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "set"))
    with pytest.raises(ValueError, match=r"set: train and val have different classes \(their order\)"):
        open_splits(f"hf:{tmp_path / 'set'}")


def test_numbers_in_another_order_than_the_training_images_have(tmp_path):
    for name in ("0", "1", "2", "10"):
        (tmp_path / "folder" / name).mkdir(parents=True)
        (tmp_path / "folder" / name / "a.png").write_bytes(png(0))
    _hugging_face(tmp_path / "set", ["0", "1", "10", "2"], train=[1, 2, 3])
    _, val = open_splits(f"imagefolder:{tmp_path / 'folder'}", f"hf:{tmp_path / 'set'}")
    assert val.classes == ["0", "1", "2", "10"]
    assert val.labels.tolist() == [1, 3, 2]


def test_sets_that_do_not_load(tmp_path):
    _hugging_face(tmp_path / "set", train=range(4))
    next((tmp_path / "set" / "train").glob("*.arrow")).write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"hf:.*set is not a data set that can be read"):
        open_dataset(f"hf:{tmp_path / 'set'}", "train")


@pytest.mark.parametrize("value", [b"\xff", b"\x7f"])
def test_damaged_offsets_end_no_process(tmp_path, value):
    """An offset that leads behind the file's end: pyarrow follows it unless it is told to look first."""
    _hugging_face(tmp_path / "set", train=range(4))
    path = next((tmp_path / "set" / "train").glob("*.arrow"))
    content, ends = path.read_bytes(), [0, len(png(0)), len(png(0)) + len(png(1))]
    offsets = b"".join(end.to_bytes(4, "little") for end in ends)
    assert content.count(offsets) == 1
    path.unlink()  # which is mapped
    path.write_bytes(content.replace(offsets, offsets[:8] + value * 4))
    with pytest.raises(ValueError, match=r"hf:.*set is not a data set that can be read \("):
        open_dataset(f"hf:{tmp_path / 'set'}", "train")


@pytest.mark.parametrize(
    "format", [{"type": "numpy"}, {"type": "torch"}, {"type": "pandas"}, {"type": "arrow"}, {"columns": ["img"]}]
)
def test_sets_that_were_saved_with_a_format(tmp_path, format):
    _hugging_face(tmp_path / "a", train=range(4))
    datasets = pytest.importorskip("datasets")
    datasets.load_from_disk(str(tmp_path / "a"))["train"].with_format(**format).save_to_disk(str(tmp_path / "b"))
    images = open_dataset(f"hf:{tmp_path / 'b'}", "train", True)
    assert (values(images), images.labels.tolist()) == ([0, 1, 2, 3], [0, 1, 0, 1])


def test_a_folder_as_the_hub_has_it(tmp_path, monkeypatch):
    _hugging_face(tmp_path / "a", train=range(4), validation=[7, 8, 9])
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "b" / "data").mkdir(parents=True)
    for split, rows in datasets.load_from_disk(str(tmp_path / "a")).items():
        rows.to_parquet(tmp_path / "b" / "data" / f"{split}-00000-of-00001.parquet")
    train, val = open_splits(f"hf:{tmp_path / 'b'}")
    assert (values(train), values(val), val.labels.tolist()) == ([0, 1, 2, 3], [7, 8, 9], [1, 0, 1])


def test_columns_that_are_chosen(monkeypatch):
    image, label = type("Image", (), {}), type("ClassLabel", (), {"names": ["a", "b"]})
    columns = {"img": image(), "fine": label(), "coarse": label(), "text": object()}

    class Rows(types.SimpleNamespace):
        features = columns

        def __getitem__(self, column):
            return {"fine": [0, 1], "coarse": [1, None]}[column]

        def select_columns(self, *_):
            return self

        cast_column = with_format = select_columns
        data = types.SimpleNamespace(validate=lambda full: None)

    fake = types.SimpleNamespace(Image=image, ClassLabel=label, load_dataset=lambda name: {"train": Rows()})
    image.__init__ = lambda self, **_: None
    monkeypatch.setitem(sys.modules, "datasets", fake)
    assert open_dataset("hf:cifar#fine", "train", True).labels.tolist() == [0, 1]
    assert open_dataset("hf:cifar#img,fine", "train", True).labels.tolist() == [0, 1]
    for spec, message in {
        "hf:cifar": r"got 2 among the columns img, fine, coarse, text; hf:cifar#COLUMN chooses one",
        "hf:cifar#text": "cifar must have one column of type ClassLabel, got 2",
        "hf:cifar#fine,text": "text is none of these",
        "hf:cifar#coarse": "cifar, row 1 must have a class of 0 to 1, got None",
    }.items():
        with pytest.raises(ValueError, match=message):
            open_dataset(spec, "train", True)


def test_columns_that_do_not_fit(monkeypatch):
    """Without the package: what is asked of its data sets."""
    image, label = type("Image", (), {}), type("ClassLabel", (), {})
    rows = types.SimpleNamespace(
        features={"a": image(), "b": image(), "y": label()}, with_format=lambda _: rows,
        data=types.SimpleNamespace(validate=lambda full: None),
    )  # fmt: skip
    fake = types.SimpleNamespace(Image=image, ClassLabel=label, load_dataset=lambda name: {"train": rows})
    monkeypatch.setitem(sys.modules, "datasets", fake)
    with pytest.raises(ValueError, match="twins must have one column of type Image, got 2 among the columns a, b, y"):
        open_dataset("hf:twins", "train")
    del rows.features["b"], rows.features["y"]
    with pytest.raises(ValueError, match=r"twins must have one column of type ClassLabel, got 0 among the columns a$"):
        open_dataset("hf:twins", "train")
    fake.load_dataset = lambda name: {"test": rows}
    with pytest.raises(ValueError, match="twins must have the split train, got test"):
        open_dataset("hf:twins", "train")
