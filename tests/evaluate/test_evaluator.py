"""Dense evaluation against its plain definition; what may be handed in, and what may not."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vggfast
from tests.support.comparisons import relative_error
from tests.support.plain_evaluation import plain_dense, plain_scores
from vggfast.data import Preprocessing, rescale
from vggfast.evaluate import Evaluator, dense, multi_crop, posteriors, score_maps
from vggfast.features import extract
from vggfast.weights import load_model, save_model

PREPROCESSING = Preprocessing((120.0, 110.0, 100.0), (60.0, 61.0, 62.0))
CONFIGS = ("A", "A-LRN", "B", "C", "D", "E")


def _network(config="A", pool_size=2, **arguments):
    settings = {"num_classes": 4, "width": 0.1, "hidden": 16, "init": "he", **arguments}
    return vggfast.VGG(config, pool_size=pool_size, **settings).eval()


def _photos(*sizes):
    generator = np.random.default_rng(0)
    return [Image.fromarray(generator.integers(0, 255, (h, w, 3), np.uint8)) for h, w in sizes]


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("flip", [True, False])
def test_dense_is_its_definition(config, flip):
    model = _network(config)
    images = _photos((97, 131), (70, 70), (131, 97), (70, 70))
    scales = (65, 97, 128)
    expected = torch.stack([plain_dense(model, image, PREPROCESSING, scales, flip) for image in images])
    for variant in (model, model.to_conv_head()):
        got = dense(variant, images, scales, flip=flip, preprocessing=PREPROCESSING)
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS)
def test_dense_is_its_definition_at_the_papers_sizes(config):
    """A head of 7x7 as the paper has, sizes of 224 to 640, odd ones included."""
    model = _network(config, pool_size=7, num_classes=10, width=0.125, hidden=64)
    images = _photos((224, 301), (640, 487))
    scales = (224, 255, 351, 481)
    expected = torch.stack([plain_dense(model, image, PREPROCESSING, scales, True) for image in images])
    got = dense(model, images, scales, preprocessing=PREPROCESSING)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    as_they_are = torch.stack([plain_dense(model, image, PREPROCESSING, None, True) for image in images])
    got = dense(model, images, None, preprocessing=PREPROCESSING)
    torch.testing.assert_close(got, as_they_are, rtol=1e-5, atol=1e-6)


def test_sum_is_the_sum_over_the_map():
    model = _network("C", batch_norm=True)
    (image,) = _photos((131, 97))
    expected = plain_dense(model, image, PREPROCESSING, (80,), True, pool="sum")
    got = dense(model, [image], (80,), pool="sum", preprocessing=PREPROCESSING)[0]
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    assert (got - dense(model, [image], (80,), preprocessing=PREPROCESSING)[0]).abs().max() > 1e-3


@pytest.mark.parametrize("flip", [True, False])
def test_score_maps_are_the_places_scores(flip):
    model = _network()
    (image,) = _photos((131, 97))
    (found,) = score_maps(model, [image], 96, flip=flip, preprocessing=PREPROCESSING)
    small = rescale(image, 96)
    assert found.size == small.size[::-1] == (130, 96)
    assert (found.stride, found.window) == (32, 64)
    x = PREPROCESSING.tensor(np.asarray(small, np.float32))[None]
    expected = plain_scores(model, x)
    if flip:
        expected = (expected + plain_scores(model, x.flip(3)).flip(3)) / 2
    assert found.scores.shape == (4, 3, 2)
    assert relative_error(found.scores, expected[0]) < 1e-5


def test_images_of_all_kinds_agree(tmp_path):
    model = _network()
    images = _photos((97, 131), (64, 80))
    paths = []
    for number, image in enumerate(images):
        paths.append(tmp_path / f"{number}.png")
        image.save(paths[-1])
    expected = dense(model, images, (64, 96), preprocessing=PREPROCESSING)
    model.preprocessing = PREPROCESSING
    for given in (paths, list(map(str, paths)), [images[0], paths[1]]):
        assert torch.equal(dense(model, given, (64, 96)), expected)


def test_tensors_agree_with_pictures():
    model = _network()
    images = _photos((97, 131), (97, 131))
    x = torch.stack([PREPROCESSING.tensor(np.asarray(image, np.float32)) for image in images])
    assert torch.equal(dense(model, x, None), dense(model, images, None, preprocessing=PREPROCESSING))
    assert torch.equal(dense(model, x.double(), (97,)), dense(model, x, None))
    rescaled = torch.nn.functional.interpolate(x, size=(64, 86), mode="bilinear", antialias=True)
    torch.testing.assert_close(dense(model, x, (64,)), dense(model, rescaled, None), rtol=1e-5, atol=1e-6)
    # PIL rounds to whole pixels, half a unit of 60 at most
    pictures = dense(model, images, (64,), preprocessing=PREPROCESSING)
    torch.testing.assert_close(dense(model, x, (64,)), pictures, rtol=0.05, atol=0.01)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "I;16"])
def test_pictures_of_other_modes_are_taken_as_files_are(mode, tmp_path):
    model = _network()
    (image,) = _photos((70, 70))
    given = image.convert("L").convert("I;16") if mode == "I;16" else image.convert(mode)
    if mode == "RGBA":
        given.putalpha(100)
    given.save(tmp_path / "image.png")
    expected = dense(model, [tmp_path / "image.png"], None, preprocessing=PREPROCESSING)
    assert torch.equal(dense(model, [given], None, preprocessing=PREPROCESSING), expected)


def test_the_model_stays_as_it_is():
    model = _network("A", batch_norm=True).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    dense(model, torch.randn(2, 3, 70, 70), None)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_single_is_dense_at_one_scale():
    model = _network()
    model.preprocessing = PREPROCESSING
    images = _photos((97, 131))
    assert torch.equal(posteriors(model, images, "single", (96,)), dense(model, images, (96,)))
    assert torch.equal(posteriors(model, images, "dense", (64, 96)), dense(model, images, (64, 96)))


def test_an_evaluator_packs_its_network_once(monkeypatch):
    packed = []
    engine = vggfast.evaluate.evaluator.Trunk
    monkeypatch.setattr("vggfast.evaluate.evaluator.Trunk", lambda *arguments: packed.append(1) or engine(*arguments))
    model = _network()
    evaluator = Evaluator(model, PREPROCESSING)
    images = _photos((97, 131), (64, 80), (70, 70))
    whole = evaluator.dense(images, (64,))
    apart = torch.cat([evaluator.dense([image], (64,)) for image in images])
    x = PREPROCESSING.tensor(np.asarray(images[1], np.float32))[None]  # normalised: not to be done again
    torch.testing.assert_close(evaluator.dense(x, None), whole[1:2], rtol=1e-5, atol=1e-6)
    assert packed == [1]
    torch.testing.assert_close(apart, whole, rtol=1e-5, atol=1e-6)


# ---- what cannot be -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scales", [(), (31, 64)])
def test_scales_that_cannot_be(scales):
    with pytest.raises(ValueError, match=r"scales must be one or more of at least 32, got \[.*\]"):
        dense(_network(pool_size=1), [Image.new("RGB", (40, 40))], scales, preprocessing=PREPROCESSING)


@pytest.mark.parametrize(
    ("images", "arguments", "message"),
    [
        ([], {"preprocessing": PREPROCESSING}, "images must have at least one image, got none"),
        (torch.zeros(0, 3, 64, 64), {}, "images must have at least one image, got none"),
        ([Image.new("RGB", (99, 99))], {}, "preprocessing is None.*Preprocessing.torchvision"),
        (torch.zeros(1, 3, 64, 64), {"preprocessing": PREPROCESSING}, "preprocessing is given, and images is a tensor"),
        (torch.zeros(1, 4, 64, 64), {}, r"images must be \(N, 3, H, W\) .*, got shape \(1, 4, 64, 64\)"),
        (
            torch.zeros(1, 3, 64, 64, dtype=torch.uint8),
            {},
            "images must be .* of a floating dtype, .*, got shape .* and dtype torch.uint8",
        ),
        (
            torch.zeros(1, 3, 63, 80),
            {"scales": None},
            r"images\[0\] must have at least 64 pixels along each side, got 63 x 80",
        ),
        (torch.zeros(1, 3, 64, 80), {"pool": "max"}, "pool must be 'mean' or 'sum', got 'max'"),
        (
            torch.zeros(1, 3, 64, 80),
            {"memory": 4096},
            r"memory must be at least \d+ bytes for images\[0\], of 64 x 80 pixels, got 4096",
        ),
        (
            [Image.new("F", (64, 64))],
            {"preprocessing": PREPROCESSING},
            r"images\[0\]: its pixels must be of 8 or 16 bits, got mode F",
        ),
        (["missing.png"], {"preprocessing": PREPROCESSING}, "missing.png: no such image file"),
    ],
)
def test_arguments_that_cannot_be(images, arguments, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        dense(_network(), images, **{"scales": (64,), **arguments})


def test_one_image_or_scale_is_no_sequence():
    with pytest.raises(TypeError, match=r"images\[1\] must be a PIL image or the path of one, got Tensor; tensors "):
        dense(_network(), ["a.png", torch.zeros(3, 64, 64)])
    for run in (dense, multi_crop):
        with pytest.raises(TypeError, match=r"scales must be a sequence, such as \[256\], got 256"):
            run(_network(), torch.zeros(1, 3, 64, 64), 256)
    with pytest.raises(TypeError, match=r"images must be a sequence, such as \[image\], got one PosixPath"):
        dense(_network(), Path("a.png"), preprocessing=PREPROCESSING)


@pytest.mark.parametrize(("arguments", "text"), [
    ({"memory": "1GB"}, "memory must be a whole number, got str '1GB'"),
    ({"scales": (64.0,)}, "scales must be a whole number, got 64.0"),
    ({"scales": "64"}, r"scales must be a sequence, such as \['64'\], got str '64'"),
    ({"grid": 2.5}, "grid must be a whole number, got 2.5"),
    ({"crop": "64"}, "crop must be a whole number, got str '64'"),
    ({"images": {"a": 1}}, "images must be a sequence of pictures, got dict"),
    ({"images": None}, "images must be a sequence of pictures, got NoneType"),
])  # fmt: skip
def test_arguments_of_other_kinds(arguments, text):
    with pytest.raises(TypeError, match=text):
        multi_crop(_network(), **{"images": torch.zeros(1, 3, 64, 64), "scales": (64,), **arguments})


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16, "meta"])
def test_torchs_defaults_change_nothing(default, tmp_path):
    model, x = _network(), torch.rand(1, 3, 64, 70)
    save_model(model, tmp_path / "m.safetensors")
    black, prepared = Image.new("RGB", (70, 64)), {"preprocessing": PREPROCESSING}
    calls = [
        lambda: dense(model, x, (64,)), lambda: multi_crop(model, x, (64,)), lambda: score_maps(model, x, 64)[0].scores,
        lambda: torch.from_numpy(extract(model, [black], ("pool5",), (64,), **prepared)),
        lambda: load_model(tmp_path / "m.safetensors")[0].features[0].weight.detach(),
    ]  # fmt: skip
    expected = [call() for call in calls]
    before = torch.get_default_dtype()
    try:
        torch.set_default_device("meta") if default == "meta" else torch.set_default_dtype(default)
        found = [call() for call in calls]
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(before)
    assert all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_picture_too_small_has_no_score_map():
    with pytest.raises(ValueError, match=r"images\[0\] must have at least 64 pixels along each side, got 63 x 80"):
        score_maps(_network(), torch.zeros(1, 3, 63, 80), None)


def test_protocols_that_cannot_be():
    x = torch.zeros(1, 3, 64, 64)
    with pytest.raises(
        ValueError, match="protocol must be one of 'single', 'dense', 'multi-crop', 'both', got 'triple'"
    ):
        posteriors(_network(), x, "triple", (64,))
    with pytest.raises(ValueError, match=r"scales must be one scale for the protocol 'single', got \[64, 96\]"):
        posteriors(_network(), x, "single", (64, 96))


def test_networks_that_cannot_be():
    with pytest.raises(ValueError, match="model must have a head"):
        Evaluator(vggfast.VGG("A", width=0.1, head="none"))
    model = _network()
    model.features[0] = torch.nn.Conv2d(3, 6, 5, padding=2)
    with pytest.raises(TypeError, match=r"features\.0 is Conv2d.*: a convolution must be 3x3 or 1x1"):
        Evaluator(model)
    model = _network()
    model.features[2].ceil_mode = True
    with pytest.raises(ValueError, match="ceil_mode"):
        Evaluator(model)
