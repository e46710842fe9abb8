"""Dense evaluation against its plain definition, and the metrics."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import vggfast
from vggfast.data import Preprocessing, rescale
from vggfast.evaluate import dense, errors

PREPROCESSING = Preprocessing((120.0, 110.0, 100.0), (60.0, 61.0, 62.0))


def _plain_dense(model, image, scales, flip):
    """The definition, in plain torch: explicit convolutions, one image, one scale at a time."""
    posteriors = []
    for scale in scales:
        pixels = np.asarray(rescale(image, scale), dtype=np.float32)
        x = torch.from_numpy((pixels - PREPROCESSING.mean) / PREPROCESSING.std).float().permute(2, 0, 1)[None]
        for view in (x, x.flip(3)) if flip else (x,):
            y = view
            for module in model.features:
                if isinstance(module, torch.nn.Conv2d):
                    y = F.conv2d(y, module.weight, module.bias, padding=module.padding)
                elif isinstance(module, torch.nn.ReLU):
                    y = F.relu(y)
                elif isinstance(module, torch.nn.MaxPool2d):
                    y = F.max_pool2d(y, 2)
                else:
                    y = F.local_response_norm(y, module.size, module.alpha, module.beta, module.k)
            for i, extent in ((0, model.arguments["pool_size"]), (3, 1), (6, 1)):
                layer = model.classifier[i]
                y = F.conv2d(y, layer.weight.reshape(len(layer.bias), -1, extent, extent), layer.bias)
                y = y if i == 6 else F.relu(y)
            posteriors.append(y.mean((2, 3)).softmax(1))
    return torch.cat(posteriors).mean(0)


@pytest.mark.parametrize("config", ["A", "A-LRN", "B", "C", "D", "E"])
@pytest.mark.parametrize("flip", [True, False])
def test_dense_is_its_definition(config, flip):
    torch.manual_seed(0)
    model = vggfast.VGG(config, num_classes=4, width=0.1, hidden=16, pool_size=2).eval()
    generator = np.random.default_rng(0)
    sizes = [(97, 131), (70, 70), (131, 97), (70, 70)]
    images = [Image.fromarray(generator.integers(0, 255, (h, w, 3), np.uint8)) for h, w in sizes]
    scales = (65, 97, 128)
    with torch.no_grad():
        wanted = torch.stack([_plain_dense(model, image, scales, flip) for image in images])
    for variant in (model, model.to_conv_head()):
        torch.testing.assert_close(
            dense(variant, images, scales, flip=flip, preprocessing=PREPROCESSING), wanted, rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("scales", [(), (31, 64)])
def test_scales_that_cannot_be(scales):
    model = vggfast.VGG("A", num_classes=4, width=0.1, hidden=16, pool_size=1)
    with pytest.raises(ValueError, match=r"scales is \[.*\]: one or more of at least 32"):
        dense(model, [Image.new("RGB", (40, 40))], scales, preprocessing=PREPROCESSING)


def test_errors_counts():
    scores = torch.tensor([[3.0, 2, 1, 0, -1, -2], [0, 1, 2, 3, 4, 5], [1, 2, 0, 0, 0, 0], [5, 4, 3, 2, 1, 0]])
    labels = torch.tensor([0, 0, 0, 4])
    assert errors(scores, labels) == {"top1": 75.0, "top5": 25.0}
    assert errors(scores, labels, ks=(2, 6)) == {"top2": 50.0, "top6": 0.0}


def test_ties_and_nan_go_against_the_network():
    assert errors(torch.zeros(1, 3), torch.tensor([0]))["top1"] == 100
    assert errors(torch.full((1, 3), float("nan")), torch.tensor([1]), ks=(1, 3)) == {"top1": 100.0, "top3": 100.0}


def test_no_images():
    with pytest.raises(ValueError, match="scores is empty"):
        errors(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long))
