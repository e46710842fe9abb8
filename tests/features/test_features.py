"""Features against their plain definition, their files, and SVMs whose recall is known."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import vggfast
from vggfast.cli import main
from vggfast.data import Preprocessing, open_dataset, rescale
from vggfast.features import (
    Block,
    Extractor,
    caltech_protocol,
    combine_blocks,
    extract,
    extract_dataset,
    join,
    load_features,
    random_splits,
)
from vggfast.weights import save_model

PREPROCESSING = Preprocessing((120.0, 110.0, 100.0), (60.0, 61.0, 62.0), order="BGR")
TAPS = ("conv1_1", "relu2_1", "pool3", "relu5_2", "pool5", "penultimate")


def _model(**options):
    torch.manual_seed(0)
    arguments = {"num_classes": 4, "width": 0.1, "hidden": 16, "pool_size": 2, **options}
    model = vggfast.VGG("A", **arguments).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):  # biases that show where one is left out
            torch.nn.init.uniform_(module.bias, -0.1, 0.1)
    model.preprocessing = PREPROCESSING
    return model


@pytest.fixture(scope="module")
def model():
    return _model()


@pytest.fixture(scope="module")
def pictures():
    generator = np.random.default_rng(0)
    sizes = [(97, 131), (70, 70), (131, 97), (70, 70), (70, 70)]
    return [Image.fromarray(generator.integers(0, 255, (h, w, 3), np.uint8)) for h, w in sizes]


def _plain_maps(model, x):
    """Every tap's map of one image, layer by layer in plain torch."""
    maps, stage, index = {}, 1, 0
    for module in model.features:
        if isinstance(module, torch.nn.Conv2d):
            index += 1
            x = maps[f"conv{stage}_{index}"] = F.conv2d(x, module.weight, module.bias, padding=1)
        elif isinstance(module, torch.nn.ReLU):
            x = maps[f"relu{stage}_{index}"] = F.relu(x)
        else:
            x = maps[f"pool{stage}"] = F.max_pool2d(x, 2)
            stage, index = stage + 1, 0
    if "classifier" in dict(model.named_children()):
        size = model.arguments["pool_size"]
        for i, extent in ((0, size), (3, 1)):
            layer = model.classifier[i]
            x = F.relu(F.conv2d(x, layer.weight.reshape(len(layer.bias), -1, extent, extent), layer.bias))
        maps["penultimate"] = x
    return maps


def _plain(model, image, taps, scales, pools, flip):
    """Blocks of one image, as the definition says it: by scale, tap and pooling."""
    blocks = []
    for scale in scales:
        pixels = np.asarray(rescale(image, scale), dtype=np.float32)[..., ::-1]
        x = torch.from_numpy((pixels - PREPROCESSING.mean) / PREPROCESSING.std).float().permute(2, 0, 1)[None]
        views = [_plain_maps(model, view) for view in ((x, x.flip(3)) if flip else (x,))]
        for tap in taps:
            for pool in pools:
                rows = [view[tap].mean((2, 3)) if pool == "mean" else view[tap].amax((2, 3)) for view in views]
                blocks.append(torch.stack(rows).mean(0)[0])
    return blocks


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("pools", [("mean",), ("max",), ("mean", "max")])
def test_blocks_are_their_definition(model, pictures, pools, flip):
    scales = (65, 97)
    extractor = Extractor(model, TAPS, scales, pool=pools, flip=flip, batch_size=2)
    with torch.no_grad():
        expected = [_plain(model, picture, TAPS, scales, pools, flip) for picture in pictures]
    assert [block.dims for block in extractor.blocks] == [len(values) for values in expected[0]]
    assert extractor.blocks[0].name == f"conv1_1.{pools[0]}@65"
    found = extractor(pictures)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, torch.stack([torch.cat(b) for b in expected]).numpy(), rtol=1e-4, atol=1e-5)


def test_a_network_without_head_and_one_with_its_head_as_convolutions(model, pictures):
    bare = _model(head="none")
    with torch.no_grad():
        expected = torch.cat(_plain(bare, pictures[0], ["pool5"], [64], ["mean"], True)).numpy()
    found = extract(bare, pictures[:1], ["pool5"], [64], normalise=False)
    np.testing.assert_allclose(found[0], expected, rtol=1e-4, atol=1e-6)
    linear, conv = (extract(each, pictures, ["penultimate"], [70]) for each in (model, model.to_conv_head()))
    np.testing.assert_array_equal(linear, conv)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P"])
def test_pictures_of_other_modes_are_taken_as_rgb(model, pictures, mode):
    picture = pictures[0].convert(mode)
    np.testing.assert_array_equal(
        extract(model, [picture], scales=[64]), extract(model, [picture.convert("RGB")], scales=[64])
    )


def test_paths_are_read(model, pictures, tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(2)]
    for picture, path in zip(pictures, paths, strict=False):
        picture.save(path)
    np.testing.assert_array_equal(
        extract(model, [paths[0], str(paths[1])], scales=[64]), extract(model, pictures[:2], scales=[64])
    )


@pytest.mark.parametrize("how", ["stack", "average"])
@pytest.mark.parametrize("normalise", [True, False])
def test_scales_are_stacked_or_averaged(model, pictures, how, normalise):
    taps, scales, pools = ("pool4", "relu5_2"), (64, 96), ("mean", "max")
    found = extract(model, pictures, taps, scales, pool=pools, combine=how, normalise=normalise)
    unit = (lambda v: v / v.norm()) if normalise else (lambda v: v)
    for row, picture in zip(found, pictures, strict=True):
        with torch.no_grad():
            blocks = [unit(values) for values in _plain(model, picture, taps, scales, pools, True)]
        if how == "average":
            blocks = [(a + b) / 2 for a, b in zip(blocks[:4], blocks[4:], strict=True)]
        np.testing.assert_allclose(row, unit(torch.cat(blocks)).numpy(), rtol=1e-4, atol=1e-5)


def test_a_row_of_zeros_stays():
    rows = combine_blocks(np.array([[0, 0], [3, 4]], np.float32), [Block("pool5", "mean", 64, 2)])
    np.testing.assert_allclose(rows, [[0, 0], [0.6, 0.8]], rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"taps": ["relu9_1"]}, r"taps must be among conv1_1, .*, got 'relu9_1'"),
        ({"taps": ["pool5", "pool5"]}, r"taps must have each value only once, got \['pool5', 'pool5'\]"),
        ({"taps": []}, r"taps must have at least one name, got none"),
        ({"pool": "sum"}, r"pool must be one or more of 'mean', 'max', got 'sum'"),
        ({"scales": []}, r"scales must be one or more of at least 32, got \[\]"),
        ({"scales": [31]}, r"scales must be one or more of at least 32, got \[31\]"),
        ({"scales": [63], "taps": ["penultimate"]}, r"scales must be one or more of at least 64, got \[63\]"),
        ({"combine": "sum"}, r"combine must be one of 'stack', 'average', got 'sum'"),
        ({"batch_size": 0}, r"batch_size must be at least 1, got 0"),
    ],
)
def test_arguments_that_cannot_be(model, pictures, options, message):
    with pytest.raises(ValueError, match=message):
        extract(model, pictures, **{"scales": [64], **options})


def test_networks_that_cannot_be(pictures):
    bare = _model(head="none")
    with pytest.raises(
        ValueError, match="model must have an FC layer in its classifier for the tap 'penultimate', got none"
    ):
        extract(bare, pictures, ["penultimate"])
    with pytest.raises(ValueError, match="an FC layer in its classifier for the tap 'penultimate', got none"):
        extract(bare.features, pictures, ["penultimate"], preprocessing=PREPROCESSING)
    bare.preprocessing = None
    with pytest.raises(ValueError, match=r"preprocessing must be .* where the model has none of its own, got None"):
        extract(bare, pictures)


# ---- files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["features.npz", "features"])
def test_what_was_stopped_goes_on(model, photos, tmp_path, name):
    sets = [open_dataset(f"imagefolder:{photos}", split) for split in ("train", "val")]
    extractor, out = Extractor(model, ["pool4", "pool5"], [32, 48]), tmp_path / name
    calls = []

    class Stopping(Extractor):
        def __call__(self, pictures):
            calls.append(len(pictures))
            if len(calls) == 3:
                raise KeyboardInterrupt
            return super().__call__(pictures)

    with pytest.raises(KeyboardInterrupt):
        extract_dataset(Stopping(model, ["pool4", "pool5"], [32, 48]), sets, out, {"model": "m"}, chunk=7)
    assert not out.exists()
    with pytest.raises(ValueError, match=r"parts of other features \(flip differ\)"):
        extract_dataset(Extractor(model, ["pool4", "pool5"], [32, 48], flip=False), sets, out, {"model": "m"}, chunk=7)
    seen = []
    made = extract_dataset(
        extractor, sets, out, {"model": "m"}, chunk=7,
        progress=lambda done, total, text="": seen.append((done, total, text != "")),
    )  # fmt: skip
    assert calls == [7, 7, 6]
    assert seen == [(0, 20, False), (7, 20, False), (14, 20, False), (20, 20, True)]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("features")] == [name]
    read = load_features(out)
    every = [(images, i) for images in sets for i in range(len(images))]
    assert read.names == [images.source(i) for images, i in every]
    assert read.labels.tolist() == [images.labels[i] for images, i in every]
    assert read.blocks == made.blocks == extractor.blocks
    assert read.metadata["classes"] == ["blue", "red"]
    alone = np.concatenate([extractor([images.image(i)]) for images, i in every])
    np.testing.assert_allclose(read.features, alone, rtol=1e-4, atol=1e-6)
    through = extract_dataset(extractor, sets, tmp_path / "through.npz", {"model": "m"}, chunk=7)
    np.testing.assert_array_equal(read.features, through.features)
    with pytest.raises(FileExistsError, match="exists already: choose another name"):
        extract_dataset(extractor, sets, out, {"model": "m"}, chunk=7)


def test_parts_of_other_images_are_refused(model, photos, tmp_path):
    sets = [open_dataset(f"imagefolder:{photos}", "train")]

    class Stopping(Extractor):
        def __call__(self, pictures):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract_dataset(Stopping(model, scales=[32]), sets, tmp_path / "a.npz", {})
    sets[0].labels = sets[0].labels[::-1].copy()
    with pytest.raises(ValueError, match=r"parts of other features \(sets differ\)"):
        extract_dataset(Extractor(model, scales=[32]), sets, tmp_path / "a.npz", {})


def test_a_folder_that_is_half_written_is_finished(model, photos, tmp_path, monkeypatch):
    sets, extractor = [open_dataset(f"imagefolder:{photos}", "val")], Extractor(model, scales=[32])
    in_the_way = tmp_path / "features" / "names.npy"
    in_the_way.mkdir(parents=True)
    with pytest.raises(OSError, match=r"names\.npy could not be written"):
        extract_dataset(extractor, sets, tmp_path / "features", {})
    in_the_way.rmdir()
    monkeypatch.setattr(Extractor, "__call__", None)  # nothing is left to extract
    made = extract_dataset(extractor, sets, tmp_path / "features", {})
    np.testing.assert_array_equal(load_features(tmp_path / "features").features, made.features)


def test_blocks_are_selected_by_name(model, photos, tmp_path):
    sets = [open_dataset(f"imagefolder:{photos}", "val")]
    extractor = Extractor(model, ["pool4", "pool5"], [32, 48], pool=("mean", "max"))
    file = extract_dataset(extractor, sets, tmp_path / "a.npz", {})
    images = [sets[0].image(i) for i in range(len(sets[0]))]

    def check(found, *arguments, **options):
        # A network with other taps fuses other layers, and rounds otherwise.
        np.testing.assert_allclose(found, extract(model, images, *arguments, **options), rtol=1e-4, atol=1e-6)

    check(file.select(["pool5.max@48"]), ["pool5"], [48], pool="max")
    check(file.select(["pool5@32"]), ["pool5"], [32], pool=("mean", "max"))
    check(file.select(["pool4"], "average"), ["pool4"], [32, 48], pool=("mean", "max"), combine="average")
    check(file.select(["pool4.mean", "pool4.mean@32"]), ["pool4"], [32, 48])
    check(file.select(), ["pool4", "pool5"], [32, 48], pool=("mean", "max"))
    for wrong in ("pool3", "pool5@64", "pool5.sum", "@32", ""):
        with pytest.raises(ValueError, match=f"use must be among pool4.mean@32, .*, got '{wrong}'"):
            file.select([wrong])


def test_files_are_joined(model, photos, tmp_path):
    val, train = (open_dataset(f"imagefolder:{photos}", split) for split in ("val", "train"))
    small, large = (Extractor(model, ["pool4", "pool5"], [scale]) for scale in (32, 48))
    files = [extract_dataset(each, [val], tmp_path / f"{i}.npz", {}) for i, each in enumerate((small, large))]
    joined = join(files)
    assert [block.name for block in joined.blocks] == [
        "pool4.mean@32", "pool5.mean@32", "pool4.mean@48", "pool5.mean@48"
    ]  # fmt: skip
    np.testing.assert_array_equal(joined.features, np.hstack([file.features for file in files]))
    with pytest.raises(ValueError, match=r"files must have each block once, and pool4\.mean@32 is in more than one"):
        join([files[0], files[0]])
    with pytest.raises(ValueError, match="files must be of the same images in the same order"):
        join([files[0], extract_dataset(large, [train], tmp_path / "2.npz", {})])


def test_files_that_are_no_features(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such feature file or folder"):
        load_features(tmp_path / "a.npz")
    (tmp_path / "a.npz").write_text("nothing")
    np.savez(tmp_path / "b.npz", features=np.zeros((2, 2)))
    (tmp_path / "c.npz").write_bytes(b"PK\3\4 and no archive")
    (tmp_path / "d.npz").write_bytes(b"")
    for path in (*(tmp_path / f"{name}.npz" for name in "abcd"), tmp_path):
        with pytest.raises(ValueError, match="holds no features that vggfast wrote"):
            load_features(path)


# ---- SVM ----------------------------------------------------------------------------------------------------------


def test_splits_are_disjoint_and_come_again():
    labels = np.repeat([3, 5, 9], [8, 12, 40])
    first, again = (list(random_splits(labels, 6, 20, 3, seed=1)) for _ in range(2))
    for (known, unknown), (known_again, unknown_again) in zip(first, again, strict=True):
        np.testing.assert_array_equal(known, known_again)
        np.testing.assert_array_equal(unknown, unknown_again)
        assert not set(known) & set(unknown)
        assert len(set(known)) == len(known)
        assert [int((labels[known] == label).sum()) for label in (3, 5, 9)] == [6, 6, 6]
        assert [int((labels[unknown] == label).sum()) for label in (3, 5, 9)] == [2, 6, 20]
    assert len({tuple(known) for known, _ in first}) == 3
    assert set(first[0][0]) != set(next(random_splits(labels, 6, 20, 1, seed=2))[0])


def _separable(counts):
    labels = np.repeat(np.arange(len(counts)), counts)
    return np.eye(len(counts), dtype=np.float32)[labels], labels


@pytest.mark.parametrize("c", [None, 1.0])
def test_classes_apart_are_all_recognised(c):
    features, labels = _separable([8, 9, 14])
    done = []
    found = caltech_protocol(features, labels, train=6, test=5, splits=2, c=c, progress=lambda *each: done.append(each))
    assert (found.recalls, found.accuracies, found.mean, found.deviation) == ((100, 100), (100, 100), 100, 0)
    assert (found.train_images, found.test_images) == (18, 2 + 3 + 5)
    assert done == [(0, 2), (1, 2), (2, 2)]
    assert c is None or found.cs == (1, 1)


def test_recall_is_the_mean_over_classes_and_accuracy_that_over_images():
    """Of the second class' test images, all that are not its 6 training ones lie on the first class' place."""
    features, labels = _separable([10, 26])
    known = next(random_splits(labels, 6, 50, 1, seed=3))[0]
    features[np.setdiff1d(np.flatnonzero(labels == 1), known)] = features[0]
    found = caltech_protocol(features, labels, train=6, splits=1, seed=3, c=1.0)
    assert found.recalls == (50.0,)
    assert found.accuracies == (pytest.approx(100 * 4 / 24),)
    assert found.deviation is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train": 8}, "train must be at most 7, which leaves one of the 8 images of class number 0 to test, got 8"),
        ({"train": 0}, "train must be at least 1, got 0"),
        ({"splits": 0}, "splits must be at least 1, got 0"),
        ({"train": 2}, "train must be at least 3 to choose c, got 2"),
        ({"train": 4, "c": -1.0}, "c must be greater than 0, got -1.0"),
        (
            {"train": 4, "labels": np.zeros(3, int)},
            r"features must have shape \(3, D\), a row for each label, got \(17, 2\)",
        ),
        ({"train": 4, "labels": np.zeros(17, int)}, "labels must have at least 2 classes, got 1"),
        ({"train": 4, "features": np.full((17, 2), np.nan)}, "features has values that are not finite"),
    ],
)
def test_protocols_that_cannot_be(options, message):
    features, labels = _separable([8, 9])
    with pytest.raises(ValueError, match=message):
        caltech_protocol(**{"features": features, "labels": labels, **options})


# ---- commands -----------------------------------------------------------------------------------------------------


def test_the_two_commands(model, photos, tmp_path, capsys):
    weights, out, found = tmp_path / "a.safetensors", tmp_path / "features.npz", tmp_path / "svm.json"
    save_model(model, weights)
    given = ["--model", weights, "--data", f"imagefolder:{photos}", "--taps", "pool1", "pool5", "--scales", 64]
    assert main(list(map(str, ["features", *given, "--out", out]))) == 0
    assert "20 images" in capsys.readouterr().out
    metadata = load_features(out).metadata
    assert metadata["preprocessing"] == PREPROCESSING.as_dict()
    assert len(metadata["model_sha256"]) == 64
    use = ["--use", "pool1", "--train", 6, "--c", 1, "--json", found]
    assert main(list(map(str, ["svm", out, *use]))) == 0
    assert "mean class recall 100.00 ± 0.00 %" in capsys.readouterr().out  # red and blue: colour says it all
    figures = json.loads(found.read_text())
    assert (figures["mean"], figures["use"], figures["recalls"]) == (100, ["pool1"], [100, 100, 100])
    assert main(["svm", str(out), "--use", "pool3"]) == 1
    assert "use must be among pool1.mean@64, pool5.mean@64, got 'pool3'" in capsys.readouterr().err
    assert main(list(map(str, ["features", *given, "--out", tmp_path / "f.npy"]))) == 1
    assert "--out must be FILE.npz, or a folder for .npy files, got " in capsys.readouterr().err


def test_the_command_is_for_one_process(model, photos, tmp_path, capsys, monkeypatch):
    save_model(model, tmp_path / "m.safetensors")
    monkeypatch.setenv("WORLD_SIZE", "2")
    command = ["features", "--model", tmp_path / "m.safetensors", "--data", f"imagefolder:{photos}", "--out", tmp_path]
    assert main(list(map(str, command))) == 2
    assert "features is for one process: call it without torchrun" in capsys.readouterr().err


def test_a_model_that_does_not_say_its_preprocessing(photos, tmp_path, capsys):
    bare = _model()
    bare.preprocessing = None
    save_model(bare, tmp_path / "a.safetensors")
    given = ["--model", tmp_path / "a.safetensors", "--data", f"imagefolder:{photos}", "--out", tmp_path / "b.npz"]
    assert main(list(map(str, ["features", *given]))) == 1
    assert "does not say what preprocessing" in capsys.readouterr().err
