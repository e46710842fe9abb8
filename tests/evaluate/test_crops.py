"""Multi-crop against an explicit loop over the crops; both protocols together; several networks as one."""

import numpy as np
import pytest
import torch
from PIL import Image

import vggfast
from tests.support.plain_evaluation import plain_multi_crop
from vggfast.data import Preprocessing
from vggfast.evaluate import average, dense, multi_crop, posteriors, vote
from vggfast.evaluate import images as images_module

PREPROCESSING = Preprocessing((120.0, 110.0, 100.0), (60.0, 61.0, 62.0))


@pytest.fixture
def model():
    network = vggfast.VGG("D", num_classes=4, width=0.1, hidden=16, pool_size=1, init="he").train()
    network.preprocessing = PREPROCESSING
    return network


@pytest.fixture
def photo():
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (81, 117, 3), np.uint8))


@pytest.mark.parametrize(
    ("flip", "grid", "crop"), [(True, 5, None), (False, 5, None), (True, 1, None), (True, 3, 45), (False, 2, 64)]
)
def test_multi_crop_is_its_loop(model, photo, flip, grid, crop):
    scales = (64, 71)
    expected = plain_multi_crop(model, photo, PREPROCESSING, scales, flip, grid, crop or 32)
    got = multi_crop(model, [photo, photo], scales, flip=flip, grid=grid, crop=crop)
    torch.testing.assert_close(got, torch.stack([expected, expected]), rtol=1e-5, atol=1e-6)


def test_multi_crop_at_the_images_own_size(model, photo):
    x = PREPROCESSING.tensor(np.asarray(photo, np.float32))[None]
    expected = plain_multi_crop(model, photo, PREPROCESSING, [min(photo.size)], True, 5, 32)
    torch.testing.assert_close(multi_crop(model, x, None)[0], expected, rtol=1e-5, atol=1e-6)


def test_both_is_the_mean_and_rescales_once(model, photo, monkeypatch):
    scales = (64, 71)
    expected = (dense(model, [photo], scales) + multi_crop(model, [photo], scales)) / 2
    calls = []
    rescale = images_module.rescale
    monkeypatch.setattr(images_module, "rescale", lambda *arguments: calls.append(arguments) or rescale(*arguments))
    torch.testing.assert_close(posteriors(model, [photo], "both", scales), expected, rtol=1e-5, atol=1e-6)
    assert len(calls) == len(scales)
    assert torch.equal(posteriors(model, [photo], "multi-crop", scales), multi_crop(model, [photo], scales))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"grid": 0}, "grid must be at least 1, got 0"),
        ({"crop": 31}, "crop must be 32 to 64, the smallest of scales, got 31"),
        ({"crop": 65}, "crop must be 32 to 64, the smallest of scales, got 65"),
        ({"crop": 31, "scales": None}, "crop must be at least 32, got 31"),
        ({"crop": 82, "scales": None}, r"crop must be at most 81 for images\[0\], of 81 x 117 pixels, got 82"),
        ({"scales": (31,)}, r"crop must be 32 to 31, .*, got 32|scales must be .*, got \[31\]"),
    ],
)
def test_crops_that_cannot_be(model, photo, arguments, message):
    with pytest.raises(ValueError, match=message):
        multi_crop(model, [photo], **{"scales": (64, 96), **arguments})


# ---- several networks ---------------------------------------------------------------------------------------------


def _sure_of(*labels, by=0.6):
    """Posteriors over four classes whose largest is at these labels."""
    rows = torch.full((len(labels), 4), (1 - by) / 3)
    rows[range(len(labels)), labels] = by
    return rows


def test_average_is_the_mean():
    a, b = torch.rand(5, 3), torch.rand(5, 3)
    torch.testing.assert_close(average([a, b]), (a + b) / 2)
    assert torch.equal(average([a]), a)


def test_the_majority_wins():
    nets = [_sure_of(0, 1, 2), _sure_of(3, 1, 0), _sure_of(3, 2, 0)]
    labels, confidence = vote(nets)
    assert labels.tolist() == [3, 1, 0]
    torch.testing.assert_close(confidence, average(nets)[range(3), labels])


def test_the_first_network_among_the_tied_decides():
    everyone_else = [_sure_of(2), _sure_of(3), _sure_of(1)]
    assert vote(everyone_else)[0].tolist() == [2]
    # 0 has one vote; 3 and 1 have two each, and the second network, for 3, comes first among them
    nets = [_sure_of(0), _sure_of(3), _sure_of(1), _sure_of(1), _sure_of(3)]
    assert vote(nets)[0].tolist() == [3]
    # sureness has no say
    assert vote([_sure_of(2, by=0.3), _sure_of(3, by=0.99)])[0].tolist() == [2]


def test_networks_must_agree_on_what_they_saw():
    for fuse in (average, vote):
        with pytest.raises(ValueError, match=r"shapes \[\(2, 3\), \(2, 4\)\]"):
            fuse([torch.zeros(2, 3), torch.zeros(2, 4)])
        with pytest.raises(ValueError, match="one or more"):
            fuse([])
