"""Networks that predict boxes: dense boxes, and both protocols of their evaluation."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from vggfast import VGG, Preprocessing
from vggfast.data import ImageSet
from vggfast.evaluate import ScoreMap
from vggfast.localisation import centre_boxes, corner_form, dense_boxes, evaluate, merge
from vggfast.localisation.data import with_boxes
from vggfast.localisation.evaluation import Error, is_right, place_boxes

pytestmark = pytest.mark.usefixtures("one_thread")
PLAIN = Preprocessing((100.0, 110.0, 120.0), (60.0, 60.0, 60.0))


def _network(outputs, pool_size=1, **options):
    model = VGG("A", outputs, width=0.1, hidden=16, pool_size=pool_size, **options).eval()
    model.preprocessing = PLAIN
    return model


# ---- dense boxes --------------------------------------------------------------------------------------------------


def _without_reach(model):
    """The network with the centre of each 3x3 filter alone: what a place of its map sees is its own square."""
    for layer in model.features:
        if isinstance(layer, nn.Conv2d):
            with torch.no_grad():
                centre = layer.weight[:, :, 1:2, 1:2].clone()
                layer.weight.zero_()
                layer.weight[:, :, 1:2, 1:2] = 3 * centre
    return model


@pytest.mark.parametrize("pool_size", [1, 2])
def test_a_place_has_the_box_of_the_crop_that_it_sees(pool_size):
    model, crop = _without_reach(_network(8, pool_size)), 32 * pool_size
    height, width = crop + 70, crop + 35
    x = torch.randn(2, 3, height, width)
    with torch.no_grad():
        scores = model.to_conv_head().score_map(x)
        boxes = torch.stack([place_boxes(ScoreMap(each, (height, width), 32, crop)) for each in scores])
        assert boxes.shape == (2, 3 * 2, 2, 4)
        for place, (i, j) in enumerate((i, j) for i in range(3) for j in range(2)):
            alone = corner_form(model(x[:, :, 32 * i : 32 * i + crop, 32 * j : 32 * j + crop]).reshape(2, 2, 4))
            pixels = crop * alone + torch.tensor([32 * j, 32 * i] * 2)
            torch.testing.assert_close(
                boxes[:, place], (pixels / torch.tensor([width, height] * 2)).double(), atol=1e-5, rtol=1e-5
            )


def _images(sizes, classes=3, boxes=None):
    """Random pictures; labels 0, 1, 2, 0 ..."""
    generator = np.random.default_rng(1)
    pictures = [Image.fromarray(generator.integers(0, 256, (h, w, 3), np.uint8)) for w, h in sizes]
    labels = np.arange(len(sizes)) % classes
    images = ImageSet("made", [f"class {i}" for i in range(classes)], labels, range(len(sizes)), pictures.__getitem__)
    return with_boxes(images, boxes or (lambda index: [[0.25, 0.25, 0.75, 0.75]]))


def _rescaled(picture, network):
    pixels = np.asarray(picture, np.float32)
    return network.preprocessing.tensor(pixels)[None]


@pytest.mark.parametrize("predict", ["box", "boxes"])
def test_dense_boxes_are_those_of_the_loop(predict):
    """Every place of every scale by hand, from the definition."""
    classes, scales = 3, (64, 40)
    images = _images([(80, 64), (64, 64), (70, 96), (80, 64)])
    model = _without_reach(_network(4 * classes if predict == "boxes" else 4))
    namer = _without_reach(_network(classes))
    namer.preprocessing = Preprocessing((90.0, 90.0, 90.0), (30.0, 30.0, 30.0), order="BGR")
    found = dense_boxes(model, namer, images, scales, top=2)
    assert found.boxes.shape == (4, 2, 4)
    for n in range(len(images)):
        posteriors, boxes, scores = 0, [], []
        for scale in scales:
            w, h = images.image(n).size
            w, h = (max(scale, round(e * scale / min(w, h))) for e in (w, h))
            small = images.image(n).resize((w, h), Image.Resampling.BILINEAR)
            seen, named = _rescaled(small, model), _rescaled(small, namer)
            with torch.no_grad():
                for x in (named, named.flip(3)):
                    posteriors = posteriors + namer.to_conv_head()(x).softmax(1)[0] / (2 * len(scales))
                for i in range(h // 32):
                    for j in range(w // 32):
                        part = np.s_[:, :, 32 * i : 32 * i + 32, 32 * j : 32 * j + 32]
                        box = corner_form(model(seen[part]).reshape(-1, 4)) * 32 + torch.tensor([32 * j, 32 * i] * 2)
                        boxes.append(box / torch.tensor([w, h] * 2))
                        scores.append(namer(named[part]).softmax(1)[0])
        values, labels = posteriors.topk(2)
        assert found.classes[n].tolist() == labels.tolist()
        torch.testing.assert_close(torch.from_numpy(found.posteriors[n]).float(), values)
        for k, label in enumerate(labels.tolist()):
            own = torch.stack([box[label if predict == "boxes" else 0] for box in boxes])
            merged, totals = merge(own, torch.stack(scores)[:, label])
            assert totals[0] == totals.max()
            torch.testing.assert_close(torch.from_numpy(found.boxes[n, k]), merged[0], atol=1e-5, rtol=1e-5)


def test_centre_boxes_are_in_the_picture():
    images, model = _images([(80, 64), (64, 64), (70, 96)]), _network(12)
    found = centre_boxes(model, images, 48, batch_size=2)
    for n, label in enumerate(images.labels):
        w, h = images.image(n).size
        w, h = (max(48, round(e * 48 / min(w, h))) for e in (w, h))
        left, top = (w - 32) // 2, (h - 32) // 2
        small = images.image(n).resize((w, h), Image.Resampling.BILINEAR).crop((left, top, left + 32, top + 32))
        with torch.no_grad():
            box = corner_form(model(_rescaled(small, model)).reshape(3, 4)[label])
        expected = (box * 32 + torch.tensor([left, top] * 2)) / torch.tensor([w, h] * 2)
        # The native crop resamples as PIL does, to a rounding of its pixels.
        torch.testing.assert_close(torch.from_numpy(found[n]).float(), expected, atol=2e-3, rtol=0)


# ---- protocols ----------------------------------------------------------------------------------------------------


def _says(outputs, pool_size=1):
    """A network that gives the same outputs for every picture."""
    model = _network(len(outputs), pool_size)
    with torch.no_grad():
        model.classifier[6].weight.zero_()
        model.classifier[6].bias.copy_(torch.tensor(outputs))
    return model


def test_both_protocols_on_a_case_with_known_errors():
    """Six 32x32 pictures of classes 0 ... 5. The boxes: right for 0 to 3, but class 3 is not among the five."""
    truth = {0: [[0.0, 0.0, 0.5, 1.0]], 1: [[0.0, 0.0, 1.0, 1.0], [0.5, 0.5, 1.0, 1.0]],
             2: [[0.0, 0.0, 0.6, 1.0]], 3: [[0.5, 0.5, 1.0, 1.0]], 4: [[0.0, 0.0, 0.5, 0.5]],
             5: [[0.0, 0.0, 1.0, 0.5]]}  # fmt: skip
    images = _images([(32, 32)] * 6, 6, truth.__getitem__)
    boxer = _says([*(0.25, 0.5, 0.5, 1.0),  # exact
                   *(0.75, 0.75, 0.5, 0.5),  # exact, of the second true box
                   *(0.0, 0.5, 0.8, 1.0),  # reaches out of the picture; cut off, its IoU is 0.4 / 0.6
                   *(0.75, 0.75, 0.5, 0.5),
                   *(0.25, 0.5, 0.5, 1.0),  # IoU of exactly 0.5, which is not enough
                   *(0.75, 0.25, 0.5, 0.5)])  # fmt: skip
    namer = _says([5.0, 4.0, 3.0, -9.0, 2.0, 1.0])
    done = []
    found = evaluate(
        boxer,
        images,
        scale=32,
        classifier=namer,
        mean_box=np.array([0.0, 0.0, 0.5, 1.0]),
        progress=lambda done_, total, text: done.append((done_, total)),
    )
    assert (found.n, found.threshold) == (6, 0.5)
    assert found.true_class == Error(2, 6)
    assert found.full == Error(3, 6)
    assert found.classes == Error(1, 6)
    assert found.true_class_mean_box == Error(4, 6)  # right for 0, and 2: 0.5 / 0.6
    assert found.full_mean_box == Error(4, 6)
    assert done == [(0, 12), (6, 12), (12, 12)]
    strict = evaluate(boxer, images, scale=32, threshold=0.7)
    assert strict.true_class == Error(3, 6)
    assert (strict.full, strict.true_class_mean_box) == (None, None)


def test_a_box_wants_its_own_class_and_its_own_image():
    images = _images([(8, 8)] * 2, 3)
    exact, wrong = [0.25, 0.25, 0.75, 0.75], [0.0, 0.0, 0.1, 0.1]
    classes = np.array([[1, 0], [1, 2]])
    assert is_right(images, classes, np.array([[wrong, exact], [exact, wrong]]), 0.5).tolist() == [True, True]
    assert is_right(images, classes, np.array([[exact, wrong], [wrong, exact]]), 0.5).tolist() == [False, False]


def test_an_error_has_wilsons_interval():
    error = Error(20, 100)
    assert error.percent == 20
    z, p, n = 1.959964, 0.2, 100
    centre, half = (
        (p + z * z / (2 * n)) / (1 + z * z / n),
        z / (1 + z * z / n) * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5,
    )
    assert error.interval() == pytest.approx((100 * (centre - half), 100 * (centre + half)), abs=1e-4)


def test_what_does_not_fit_is_named():
    images, boxer, namer = _images([(64, 64)] * 2), _network(12), _network(3)
    with pytest.raises(ValueError, match=r"threshold must be at least 0 and less than 1, got 1.0"):
        evaluate(boxer, images, scale=64, threshold=1.0)
    with pytest.raises(
        ValueError, match=r"model must be a network that predicts boxes, 4 or 12 outputs .*, got 3 outputs"
    ):
        evaluate(namer, images, scale=64)
    with pytest.raises(ValueError, match=r"classifier must have 3 classes, .*, got 12"):
        evaluate(boxer, images, scale=64, classifier=boxer)
    with pytest.raises(ValueError, match=r"a head of 32 pixels, got 3, .* and 64"):
        evaluate(boxer, images, scale=64, classifier=_network(3, pool_size=2))
    with pytest.raises(ValueError, match=r"scales must be one or more of at least 32, got \[64, 16\]"):
        dense_boxes(boxer, namer, images, (64, 16), top=2)
    with pytest.raises(ValueError, match=r"top must be 1 to 3, the number of classes, got 5"):
        dense_boxes(boxer, namer, images, (64,))
    boxer.preprocessing = None
    with pytest.raises(ValueError, match=r"model must be .*, got 12 outputs and the preprocessing None"):
        evaluate(boxer, images, scale=64)
