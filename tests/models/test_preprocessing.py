"""What a network takes for a picture: order, range, mean, deviation; of one picture and of a training batch."""

import numpy as np
import pytest
import torch
from PIL import Image

from vggfast import Preprocessing
from vggfast.data import CentreCrop
from vggfast.data.transforms import Geometry, crop_pictures

KINDS = {
    "paper": Preprocessing(),
    "torchvision": Preprocessing.torchvision(),
    "caffe": Preprocessing.caffe(),
    "all at once": Preprocessing((0.1, 0.2, 0.3), (0.5, 0.6, 0.7), "BGR", 1.0),
}


def _definition(pixels, preprocessing):
    values = pixels.astype(np.float64) * preprocessing.top / 255
    values = values[..., ::-1] if preprocessing.order == "BGR" else values
    return torch.from_numpy((values - preprocessing.mean) / preprocessing.std).permute(2, 0, 1).float()


@pytest.mark.parametrize("preprocessing", KINDS.values(), ids=KINDS)
def test_pixels_become_what_the_network_was_trained_on(preprocessing):
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    expected = _definition(pixels, preprocessing)
    torch.testing.assert_close(preprocessing.tensor(pixels), expected, rtol=1e-5, atol=1e-5)
    whole = Geometry((32, 32), (0, 0), False, np.zeros(3))
    batch = crop_pictures([pixels], [whole], CentreCrop(32, 32, preprocessing))
    torch.testing.assert_close(batch[0], expected, rtol=1e-5, atol=1e-4)
    assert batch.is_contiguous(memory_format=torch.channels_last)


def test_it_travels_as_a_dictionary():
    for preprocessing in KINDS.values():
        assert Preprocessing.from_dict(preprocessing.as_dict()) == preprocessing
    assert Preprocessing.from_dict({"mean": [1, 2, 3], "std": [4, 5, 6]}) == Preprocessing((1, 2, 3), (4, 5, 6))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"mean": (1.0,)}, r"mean must have three numbers, one a channel, got \(1.0,\)"),
        ({"std": (1.0, 0.0, 1.0)}, r"std and top must be greater than 0, got \(1.0, 0.0, 1.0\) and 255.0"),
        ({"top": 0.0}, r"std and top must be greater than 0, got \(1.0, 1.0, 1.0\) and 0.0"),
        ({"order": "GBR"}, r"order must be one of 'RGB', 'BGR', got 'GBR'"),
    ],
)
def test_what_cannot_be(arguments, text):
    with pytest.raises(ValueError, match=text):
        Preprocessing(**arguments)


@pytest.mark.parametrize("preprocessing", KINDS.values(), ids=KINDS)
def test_a_picture_becomes_an_input_whatever_it_comes_as(preprocessing):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    expected = preprocessing.tensor(pixels)[None]
    planes = torch.from_numpy(pixels).permute(2, 0, 1)
    for images in (pixels, Image.fromarray(pixels), planes, planes[None], planes.double() / 255):
        torch.testing.assert_close(preprocessing(images).float(), expected, rtol=1e-5, atol=1e-4)
    assert preprocessing(planes.expand(4, -1, -1, -1)).shape == (4, 3, 5, 7)
    assert preprocessing(planes.double()).dtype == torch.float64
    x = torch.rand(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(preprocessing, x)


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (torch.zeros(2, 4, 4), ValueError, r"images must be \(N, 3, H, W\) or \(3, H, W\), got \(2, 4, 4\)"),
        (torch.zeros(3, 4, 4, dtype=torch.int64), ValueError, "of 0 to 1, got torch.int64"),
        (np.zeros((4, 4, 3)), ValueError, r"\(H, W, 3\) of uint8, got \(4, 4, 3\) of float64"),
        ("a.jpg", TypeError, "a tensor, an array or a picture of PIL's, got str"),
    ],
)
def test_what_is_no_picture(images, error, message):
    with pytest.raises(error, match=message):
        Preprocessing()(images)
