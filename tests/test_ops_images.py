"""prepare_images on every back end, against its meaning in float64."""

import pytest
import torch
from conftest import assert_rounded_once

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
    got = ops.prepare_images(images, size, mean=MEAN, deviation=DEVIATION, dtype=dtype, **chosen)
    wanted = reference.prepare_images(images, size, mean=MEAN, deviation=DEVIATION, dtype=torch.float64, **chosen)
    assert got.dtype == dtype
    assert got.is_contiguous(memory_format=torch.channels_last) or 0 in got.shape
    assert got.shape == wanted.shape
    if dtype == torch.float64:
        torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-6)  # shifts and constants are float32
    elif dtype == torch.float32:
        torch.testing.assert_close(got, wanted.float(), rtol=1e-5, atol=1e-5)
    else:
        assert_rounded_once(got, wanted)


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
            r"images is torch.float32 of shape \(2, 4, 4, 3\): torch.uint8, \(N, H, W, 3\)",
        ),
        (IMAGES[..., :2], {}, ValueError, r"images is torch.uint8 of shape \(2, 4, 4, 2\)"),
        (IMAGES, {"size": 0}, ValueError, r"size is \(0, 0\): at least 1 x 1"),
        (IMAGES, {"corners": torch.zeros(2, 2)}, ValueError, "corners is torch.float32 .* torch.int32 of shape"),
        (IMAGES, {"flips": torch.zeros(3, dtype=torch.uint8)}, ValueError, r"flips is .*shape \(3,\)"),
        (IMAGES, {"shifts": torch.zeros(2, 1)}, ValueError, r"shifts is .*\(2, 1\).*\(2, 3\)"),
        (IMAGES, {"dtype": torch.int32}, TypeError, "dtype is torch.int32: one of"),
        (IMAGES, {"mean": (1.0,)}, ValueError, "mean has 1 values: 3 are wanted"),
        (IMAGES, {"shifts": torch.zeros(2, 3, requires_grad=True)}, RuntimeError, "shifts requires a gradient"),
    ],
)
def test_errors(images, chosen, error, text):
    with pytest.raises(error, match=text):
        ops.prepare_images(images, **{"size": 2, **chosen})
