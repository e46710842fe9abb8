"""prepare_images on every back end, crop_images on the CPU, against their meaning in float64, and PIL."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.support.comparisons import assert_rounded_once
from vggfast import ops
from vggfast.ops import reference

MEAN, DEVIATION = (123.68, 116.78, 103.94), (58.4, 57.1, 57.4)


def options(n: int, corners=True, flips=True, shifts=True) -> dict:
    return {
        "corners": torch.randint(-3, 9, (n, 2), dtype=torch.int32) if corners else None,
        "flips": torch.randint(0, 2, (n,), dtype=torch.uint8) if flips else None,
        "shifts": 20 * torch.randn(n, 3) if shifts else None,
    }


def assert_right(images, size, dtype, **chosen):
    got = ops.prepare_images(images, size, mean=MEAN, std=DEVIATION, dtype=dtype, **chosen)
    expected = reference.prepare_images(images, size, mean=MEAN, std=DEVIATION, dtype=torch.float64, **chosen)
    assert got.dtype == dtype
    assert got.is_contiguous(memory_format=torch.channels_last) or 0 in got.shape
    assert got.shape == expected.shape
    if dtype == torch.float64:
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)  # shifts and constants are float32
    elif dtype == torch.float32:
        torch.testing.assert_close(got, expected.float(), rtol=1e-5, atol=1e-5)
    else:
        assert_rounded_once(got, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("size", [(8, 8), (5, 7), (1, 1), (16, 12)], ids=str)
@pytest.mark.parametrize("shape", [(3, 13, 17), (1, 1, 1), (2, 24, 16)], ids=str)
def test_against_float64(backend, dtype, size, shape):
    images = torch.randint(0, 256, (*shape, 3), dtype=torch.uint8)
    assert_right(images, size, dtype, **options(shape[0]))


@pytest.mark.parametrize("left_out", ["corners", "flips", "shifts"])
def test_without_an_option(backend, left_out):
    images = torch.randint(0, 256, (4, 11, 9, 3), dtype=torch.uint8)
    assert_right(images, 6, torch.float32, **options(4, **{left_out: False}))


def test_no_images(backend):
    assert ops.prepare_images(torch.empty(0, 4, 4, 3, dtype=torch.uint8), 3).shape == (0, 3, 3, 3)


def test_a_bool_is_a_flip(backend):
    images = torch.randint(0, 256, (2, 4, 4, 3), dtype=torch.uint8)
    by_bool = ops.prepare_images(images, 4, flips=torch.tensor([True, False]))
    assert torch.equal(by_bool, ops.prepare_images(images, 4, flips=torch.tensor([1, 0], dtype=torch.uint8)))
    assert torch.equal(by_bool[0].flip(2), ops.prepare_images(images, 4)[0])


IMAGES = torch.zeros(2, 4, 4, 3, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("images", "chosen", "error", "text"),
    [
        (
            IMAGES.float(),
            {},
            ValueError,
            r"images must be torch.uint8 of shape \(N, H, W, 3\) .*, got torch.float32 of shape \(2, 4, 4, 3\)",
        ),
        (IMAGES[..., :2], {}, ValueError, r"images must be .*, got torch.uint8 of shape \(2, 4, 4, 2\)"),
        (IMAGES, {"size": 0}, ValueError, "size must be at least 1, got 0"),
        (
            IMAGES,
            {"corners": torch.zeros(2, 2)},
            ValueError,
            "corners must be torch.int32 of shape .*, got torch.float32",
        ),
        (IMAGES, {"flips": torch.zeros(3, dtype=torch.uint8)}, ValueError, r"flips must be .*, got .*shape \(3,\)"),
        (IMAGES, {"shifts": torch.zeros(2, 1)}, ValueError, r"shifts must be .*\(2, 3\).*, got .*\(2, 1\)"),
        (IMAGES, {"dtype": torch.int32}, TypeError, "dtype must be one of .*, got torch.int32"),
        (IMAGES, {"mean": (1.0,)}, ValueError, "mean must have 3 values, got 1"),
        (IMAGES, {"shifts": torch.zeros(2, 3, requires_grad=True)}, ValueError, "shifts requires a gradient"),
    ],
)
def test_errors(images, chosen, error, text):
    with pytest.raises(error, match=text):
        ops.prepare_images(images, **{"size": 2, **chosen})


# ---- crops of pictures of any sizes ---------------------------------------------------------------------------------


def picture(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def resize_matrix(old: int, new: int) -> np.ndarray:
    """(new, old) float64: the triangle filter by which each new pixel reads the old ones."""
    reach = max(old / new, 1.0)
    distance = (np.arange(old) + 0.5)[None] - ((np.arange(new) + 0.5) * old / new)[:, None]
    weights = np.maximum(1 - np.abs(distance) / reach, 0)
    return weights / weights.sum(1, keepdims=True)


def cropped(pixels, size, scaled, corner, flip, shift):
    """What crop_images is to make of one picture, in float64: (3, size, size)."""
    resized = np.einsum("yh,xw,hwc->yxc", *map(resize_matrix, pixels.shape[:2], scaled), pixels.astype(np.float64))
    crop = resized[corner[0] : corner[0] + size, corner[1] : corner[1] + size]
    return (((crop[:, ::-1] if flip else crop) + shift - MEAN) / DEVIATION).transpose(2, 0, 1)


def crop_one(pixels, size, scaled, corner=(0, 0), flip=False, shift=(0, 0, 0), **options):
    return ops.crop_images(
        [pixels], size, sizes=torch.tensor([scaled], dtype=torch.int32),
        corners=torch.tensor([corner], dtype=torch.int32), flips=torch.tensor([flip]),
        shifts=torch.tensor([shift], dtype=torch.float32), **options,
    )[0]  # fmt: skip


@st.composite
def geometries(draw):
    height, width, size = draw(st.integers(1, 60)), draw(st.integers(1, 60)), draw(st.integers(1, 20))
    scaled = tuple(draw(st.one_of(st.integers(size, 90), st.just(max(size, extent)))) for extent in (height, width))
    corner = tuple(draw(st.integers(0, extent - size)) for extent in scaled)
    return (height, width), size, scaled, corner, draw(st.booleans())


@pytest.mark.backends("cpu")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_crops_against_float64(backend, dtype):
    @settings(max_examples=60, deadline=None)
    @given(geometry=geometries(), seed=st.integers(0, 9))
    def check(geometry, seed):
        extents, size, scaled, corner, flip = geometry
        pixels, shift = picture(*extents, seed), (seed - 4.5, 3.0, 0.25)
        got = crop_one(pixels, size, scaled, corner, flip, shift, mean=MEAN, std=DEVIATION, dtype=dtype)
        expected = torch.from_numpy(cropped(pixels, size, scaled, corner, flip, shift).copy())
        if dtype == torch.float32:
            torch.testing.assert_close(got, expected.float(), rtol=1e-5, atol=1e-5)
        else:
            assert_rounded_once(got, expected)

    check()


@settings(max_examples=100, deadline=None)
@given(geometry=geometries(), seed=st.integers(0, 9))
def test_crops_against_pil(geometry, seed):
    """PIL rounds to 8 bits after each of its two passes."""
    extents, size, scaled, corner, flip = geometry
    pixels = picture(*extents, seed)
    image = Image.fromarray(pixels).resize(scaled[::-1], Image.Resampling.BILINEAR)
    expected = np.asarray(image)[corner[0] : corner[0] + size, corner[1] : corner[1] + size]
    got = crop_one(pixels, size, scaled, corner, flip).permute(1, 2, 0).numpy()
    assert np.abs(got - (expected[:, ::-1] if flip else expected)).max() <= 1.01


@settings(max_examples=50, deadline=None)
@given(geometry=geometries(), seed=st.integers(0, 9))
def test_at_its_own_size_a_crop_is_a_copy(geometry, seed):
    (_, _), size, extents, (top, left), flip = geometry
    pixels = picture(*extents, seed)
    got = crop_one(pixels, size, extents, (top, left), flip).permute(1, 2, 0).numpy()
    crop = pixels[top : top + size, left : left + size]
    assert np.array_equal(got, crop[:, ::-1] if flip else crop)
    whole = torch.from_numpy(pixels)[None]
    options = {"corners": torch.tensor([[top, left]], dtype=torch.int32), "flips": torch.tensor([flip])}
    assert torch.equal(ops.prepare_images(whole, size, **options)[0].permute(1, 2, 0), torch.from_numpy(got))


@pytest.mark.backends("cpu")
def test_a_crop_does_not_depend_on_its_batch(backend, set_threads):
    pictures = [picture(20 + 7 * i, 30 + 3 * i, i) for i in range(9)]
    sizes = torch.tensor([[24 + i, 40 - i] for i in range(9)], dtype=torch.int32)
    together = ops.crop_images(pictures, (20, 17), sizes=sizes)
    for i, each in enumerate(pictures):
        assert torch.equal(ops.crop_images([each], (20, 17), sizes=sizes[i : i + 1])[0], together[i])
    set_threads(1)
    assert torch.equal(ops.crop_images(pictures, (20, 17), sizes=sizes), together)


def test_read_only_and_mapped_pictures(tmp_path):
    pixels = picture(9, 8)
    pixels.tofile(tmp_path / "pixels")
    mapped = np.memmap(tmp_path / "pixels", np.uint8, mode="r").reshape(9, 8, 3)
    assert torch.equal(ops.crop_images([mapped], 8), ops.crop_images([pixels], 8))


def test_out_is_written_to():
    out = torch.empty(2, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    assert ops.crop_images([picture(9, 8), picture(8, 8)], 8, out=out) is out
    assert torch.equal(out, ops.crop_images([picture(9, 8), picture(8, 8)], 8))


def test_no_pictures():
    assert ops.crop_images([], 8).shape == (0, 3, 8, 8)


@pytest.mark.parametrize(
    ("chosen", "error", "text"),
    [
        ({"size": 0}, ValueError, "size must be at least 1, got 0"),
        (
            {"size": 9},
            ValueError,
            r"corners\[0\] must put the crop of 9 x 9 pixels within the picture of 8 x 9, got \(0, 0\)",
        ),
        ({"dtype": torch.float64}, TypeError, "dtype must be torch.float32 or torch.bfloat16, got torch.float64"),
        ({"sizes": torch.zeros(2, 2).int()}, ValueError, r"sizes must be .* of shape \(1, 2\) .*, got .* \(2, 2\)"),
        ({"sizes": torch.zeros(1, 2)}, ValueError, "sizes must be torch.int32 of .*, got torch.float32"),
        ({"mean": (1.0,)}, ValueError, "mean must have 3 values, got 1"),
        (
            {"pictures": [picture(8, 9).astype(np.float32)]},
            ValueError,
            r"pictures\[0\] must be uint8 of shape \(H, W, 3\), got buffer format f",
        ),
        (
            {"pictures": [picture(8, 9)[..., :2]]},
            ValueError,
            r"must be uint8 of shape \(H, W, 3\), got .* and shape \(8, 9, 2\)",
        ),
        ({"pictures": [picture(8, 9)[:, ::2]]}, ValueError, r"pictures\[0\] is not contiguous"),
        (
            {"out": torch.empty(1, 3, 4, 5)},
            ValueError,
            r"out must be .*, got torch.float32 of shape \(1, 3, 4, 5\)",
        ),
        ({"out": torch.empty(1, 3, 4, 4)}, ValueError, "out must be channels_last, got strides"),
    ],
)
def test_errors_of_crops(chosen, error, text):
    with pytest.raises(error, match=text):
        ops.crop_images(**{"pictures": [picture(8, 9)], "size": 4, **chosen})
