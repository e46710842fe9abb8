"""Arguments of other kinds than an Extractor takes are named."""

import pytest
import torch

import vggfast
from vggfast.features import extract

PREPROCESSING = vggfast.Preprocessing.caffe()


@pytest.mark.parametrize(("arguments", "text"), [
    ({"taps": "pool5"}, r"taps must be a sequence, such as \['pool5'\], got str 'pool5'"),
    ({"scales": 64}, r"scales must be a sequence, such as \[64\], got 64"),
    ({"scales": (64.0,)}, "scales must be a whole number, got 64.0"),
    ({"batch_size": "8"}, "batch_size must be a whole number, got str '8'"),
    ({"images": "photo.jpg"}, r"images must be a sequence, such as \[image\], got one str"),
    ({"images": None}, "images must be a sequence of pictures, got NoneType"),
    ({"images": torch.zeros(1, 3, 64, 64)}, r"images\[0\] must be a PIL image or the path of one, got Tensor"),
])  # fmt: skip
def test_arguments_of_other_kinds(arguments, text):
    model = vggfast.VGG11(num_classes=3, width=0.125, hidden=8, pool_size=1)
    with pytest.raises(TypeError, match=text):
        extract(model, **{"images": [], "scales": (64,), "preprocessing": PREPROCESSING, **arguments})
