"""Data sets, transforms and batches."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vggfast.data import (
    Augmentation,
    Batches,
    ImageFiles,
    Preprocessing,
    colour_statistics,
    measure_colours,
    open_dataset,
    open_splits,
    rescale,
)
from vggfast.data.sources import SPECS
from vggfast.data.sources.base import Strings
from vggfast.data.transforms import CentreCrop, crop_pictures, image_to_rescale


def test_digits_split_is_fixed_disjoint_and_complete():
    train, val = open_dataset("digits", "train"), open_dataset("digits", "val")
    assert len(train) + len(val) == 1797
    assert not set(train.sources) & set(val.sources)
    assert open_dataset("digits", "val").sources.tolist() == val.sources.tolist()
    assert np.bincount(val.labels).min() >= 34
    assert train.image(0).size == (32, 32)
    assert train.image(0).mode == "RGB"


def test_folder_without_splits_holds_out_a_tenth_of_each_class(photos):
    train, val = open_dataset(f"imagefolder:{photos}", "train"), open_dataset(f"imagefolder:{photos}", "val")
    assert train.classes == val.classes == ["blue", "red"]
    assert np.bincount(train.labels).tolist() == [9, 9]
    assert np.bincount(val.labels).tolist() == [1, 1]


def test_folders_given_apart_are_taken_whole(photos):
    train, val = open_splits(f"imagefolder:{photos}", f"imagefolder:{photos}")
    assert len(train) == len(val) == 20
    train, val = open_splits(f"imagefolder:{photos}")
    assert (len(train), len(val)) == (18, 2)


def test_folder_with_splits(photos, tmp_path):
    for split in ("train", "val"):
        (tmp_path / "set").mkdir(exist_ok=True)
        (tmp_path / "set" / split).symlink_to(photos)
    assert len(open_dataset(f"imagefolder:{tmp_path / 'set'}", "val")) == 20


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            "mnist",
            f"data must be one of {SPECS}, got .mnist.",
        ),
        ("imagefolder:", "data must be one of .*, got 'imagefolder:'"),
        ("digits:8", "data must be one of .*, got 'digits:8'"),
        ("imagefolder:nowhere", "nowhere: no such folder"),
        ("tiny-imagenet:nowhere", "wnids.txt: not there; the folder must have Tiny-ImageNet's own layout"),
    ],
)
def test_unknown_data(spec, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        open_dataset(spec, "train")


def test_a_spec_that_is_no_text():
    with pytest.raises(TypeError, match=r"spec must be a text, one of digits, .*, got PosixPath\('digits'\)"):
        open_dataset(Path("digits"), "train")


def test_empty_class_folder_is_named(photos):
    (photos / "green").mkdir()
    with pytest.raises(ValueError, match=r"green must have at least one image of \.jpg, .*, got none"):
        open_dataset(f"imagefolder:{photos}", "train")


def test_rescale_sets_the_shorter_side():
    assert rescale(Image.new("RGB", (300, 200)), 100).size == (150, 100)
    assert rescale(Image.new("RGB", (33, 32)), 36).size == (37, 36)


def test_a_picture_that_is_too_narrow_is_named(tmp_path):
    Image.new("L", (1, 40_000)).save(tmp_path / "narrow.png")
    images = ImageFiles([str(tmp_path / "narrow.png")], ["a"])
    assert image_to_rescale(images, 0, 32).size == (1, 40_000)
    with pytest.raises(ValueError, match=r"narrow\.png: rescaled to a shorter side of 256, .* got 256 x 10240000"):
        image_to_rescale(images, 0, 256)


def test_colour_statistics_of_known_pixels():
    pixels = np.zeros((2, 2, 3), np.uint8)
    pixels[0] = 255
    found = colour_statistics([Image.fromarray(pixels)])
    assert found.mean == pytest.approx([127.5] * 3)
    assert found.std == pytest.approx([127.5] * 3)
    assert found.variances == pytest.approx([0, 0, 0.75], abs=1e-9)
    assert np.abs(found.axes[:, 2]) == pytest.approx([3**-0.5] * 3)


def _augmentation(**changes):
    statistics = colour_statistics([Image.fromarray(np.random.default_rng(0).integers(0, 255, (9, 9, 3), np.uint8))])
    values = dict(crop=8, scales=(10, 14), flip=True, colour_shift=0.1, statistics=statistics)
    return Augmentation(**{**values, "preprocessing": Preprocessing((0, 0, 0)), **changes})


def _crop(transform, pixels, seed=0):
    """One picture by a transform, as the batches take it."""
    pixels = np.asarray(pixels)
    return crop_pictures([pixels], [transform.draw(pixels.shape[:2], np.random.default_rng(seed))], transform)[0]


def test_augmentation_without_chance_is_the_crop():
    image = Image.fromarray(np.random.default_rng(1).integers(0, 255, (8, 8, 3), np.uint8))
    plain = _crop(_augmentation(scales=(8, 8), flip=False, colour_shift=0.0), image)
    assert torch.equal(plain, torch.from_numpy(np.array(image)).permute(2, 0, 1).float())


def test_colour_shift_is_one_colour_for_the_whole_crop():
    image = Image.new("RGB", (20, 20), (100, 100, 100))
    shifted = _crop(_augmentation(), image) - 100
    assert shifted.abs().max() > 0.5
    assert torch.allclose(shifted, shifted[:, :1, :1].expand_as(shifted), atol=1e-4)  # rounding of the filter


def test_flip_is_drawn():
    image = Image.fromarray(np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3))
    augment = _augmentation(scales=(8, 8), colour_shift=0.0)
    crops = [_crop(augment, image, seed) for seed in range(20)]
    flipped = [torch.equal(crop, crops[0].flip(2)) for crop in crops]
    assert 3 < sum(flipped) < 17


@pytest.mark.parametrize("size", [(64, 64), (30, 90), (200, 20), (1, 1)])
@pytest.mark.parametrize("least", [0.1, 0.9])
def test_random_parts_of_a_picture(size, least):
    """Each lies in the picture, has the least share or the largest that its shape leaves, and is 3:4 to 4:3."""
    augment = _augmentation(crop=1000, scales=(1000, 1000), min_area=least)
    height, width = size
    possible = min(1.0, 4 / 3 * min(height / width, width / height))
    shares, shapes = [], []
    for seed in range(100):
        (whole_height, whole_width), (top, left), *_ = augment.draw(size, np.random.default_rng(seed))
        assert 0 <= top <= whole_height - 1000
        assert 0 <= left <= whole_width - 1000
        shares.append(1000**2 / (whole_height * whole_width))
        shapes.append(width / whole_width * whole_height / height)
    assert min(least, possible) - 0.002 < min(shares)
    assert max(shares) <= possible + 0.002
    assert min(shapes) > 0.748
    assert max(shapes) < 1.337
    if least < possible:
        assert max(shares) - min(shares) > 0.8 * (possible - least)


def test_a_random_part_is_resized_as_pil_does():
    pixels = np.random.default_rng(3).integers(0, 255, (40, 50, 3), np.uint8)
    augment = _augmentation(crop=16, scales=(16, 16), min_area=0.2, flip=False, colour_shift=0.0)
    (height, width), (top, left), *_ = augment.draw((40, 50), np.random.default_rng(0))
    whole = Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR)
    expected = np.asarray(whole)[top : top + 16, left : left + 16].transpose(2, 0, 1)
    assert (_crop(augment, pixels) - torch.from_numpy(expected.copy())).abs().max() <= 1


def test_a_smaller_crop_sees_the_same_part():
    small = _augmentation(crop=64, scales=(73, 80)).at(32)
    assert (small.crop, small.scales) == (32, (36, 40))
    assert _augmentation(crop=8, scales=(8, 9)).at(8).scales == (8, 9)


def test_crop_larger_than_the_image_is_refused():
    with pytest.raises(ValueError, match="crop and scales must be 1 <= crop <= low <= high, got 16 and 10 to 14"):
        _augmentation(crop=16)


def test_centre_crop():
    pixels = np.zeros((10, 20, 3), np.uint8)
    pixels[:, 9:11] = 255
    crop = _crop(CentreCrop(10, 10, Preprocessing((0, 0, 0))), pixels)
    assert crop.shape == (3, 10, 10)
    assert crop[0, 0].nonzero().flatten().tolist() == [4, 5]


@pytest.mark.parametrize(
    ("size", "message"),
    [(0, "batch_size must be at least 1, got 0"), (19, "batch_size must be at most 18, .*, got 19")],
)
def test_batch_size_that_cannot_be(photos, size, message):
    images = open_dataset(f"imagefolder:{photos}", "train")
    with pytest.raises(ValueError, match=message):
        Batches(images, _augmentation(), size, shuffle=True, keep_last=False)


def test_tiny_imagenet_as_distributed(tiny_imagenet):
    train, val = (open_dataset(f"tiny-imagenet:{tiny_imagenet}", split) for split in ("train", "val"))
    assert len(train.classes) == 200
    assert len(train) == 40_000
    assert len(val) == 5_000
    assert np.bincount(val.labels).tolist() == [25] * 200
    assert val.image(0).size == (64, 64)


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_image_is_one_line_from_a_worker_too(photos, workers):
    (photos / "red" / "3.png").write_bytes(b"no image")
    images = open_dataset(f"imagefolder:{photos}", "train")
    batches = Batches(images, _augmentation(), 4, shuffle=False, workers=workers)
    with pytest.raises(ValueError, match=r"3\.png: not an image that decodes") as error:
        list(batches.epoch())
    assert "\n" not in str(error.value)


def test_classes_that_differ_are_named(photos, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(photos, other)
    (other / "red").rename(other / "pink")
    with pytest.raises(ValueError, match=r"other: train and val have different classes \(pink, red\)"):
        open_splits(f"imagefolder:{photos}", f"imagefolder:{other}")


def test_colours_are_measured_on_the_same_sample(photos):
    images = open_dataset(f"imagefolder:{photos}", "train")
    once, again = measure_colours(images, 7), measure_colours(images, 7)
    assert (once.mean == again.mean).all()
    assert not (once.mean == measure_colours(images).mean).all()
    chosen = int(np.random.default_rng(0).permutation(18)[0])
    Path(images.source(chosen)).write_bytes(b"no image")
    with pytest.raises(ValueError, match="not an image that decodes"):
        measure_colours(images, 7)
    assert measure_colours(images, 7, on_bad_image="skip").mean.shape == (3,)


def test_strings():
    words = ["", "a", "żółw", "b\udcff", "end"]
    found = Strings(words, prefix="x/")
    assert list(found) == [f"x/{word}" for word in words]
    assert found[-1] == "x/end"
    assert found[1:3] == ["x/a", "x/żółw"]
    with pytest.raises(IndexError, match="index must be less than 5, got 5"):
        found[5]
