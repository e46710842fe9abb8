"""Style and ContentStyle: the numbers of plain torch, by the definitions of their papers."""

import pytest
import torch
import torch.nn.functional as F

from tests.losses.conftest import assert_near, plain_maps, scaled, value_and_gradient
from vggfast.losses import ContentStyle, Style, gram_matrix

LAYERS = {"relu1_1": 0.5, "relu2_1": 2.0, "conv3_2": 1.0}


def plain_style(model, layers):
    """Gatys et al.'s E, times 4, of images of one size."""

    def loss(x, y):
        total = 0
        for name, weight in layers.items():
            ours, theirs = (plain_maps(model, scaled(each), layers)[name].flatten(2) for each in (x, y))
            _, channels, places = ours.shape
            difference = torch.einsum("nip,njp->nij", ours, ours) - torch.einsum("nip,njp->nij", theirs, theirs)
            total = total + 4 * weight * (difference**2).sum((1, 2)).mean() / (4 * channels**2 * places**2)
        return total

    return loss


def test_gram_matrix():
    maps = torch.randn(2, 3, 4, 5)
    grams = gram_matrix(maps)
    assert grams.shape == (2, 3, 3)
    torch.testing.assert_close(grams[1, 0, 2], (maps[1, 0] * maps[1, 2]).sum() / 60)
    assert gram_matrix((maps * 1e3).half()).isfinite().all()


def test_style(model, images):
    x, y = (each.double() for each in images)
    loss = Style(LAYERS, model)
    expected = value_and_gradient(plain_style(model, LAYERS), x, y)
    assert_near(value_and_gradient(loss, x.float(), y.float()), expected, 1e-5)
    assert_near(value_and_gradient(loss.double(), x, y), expected, 1e-6)
    found = value_and_gradient(loss.target(y), x)
    assert_near(found, expected, 1e-6)


def test_a_style_may_have_another_size(model, images):
    x, _ = images
    loss = Style(LAYERS, model).target(torch.rand(1, 3, 16, 24))
    assert loss(x) > 0
    assert loss(torch.rand(1, 3, 16, 24)) > 0
    with pytest.raises(
        ValueError, match="y must have the N of what it is compared with, 2, or N = 1 in one of both, got 3"
    ):
        loss(x, torch.rand(3, 3, 16, 24))


def test_the_default_layers(model, images):
    loss = Style(net=model)
    assert loss.layers == {"relu1_1": 0.2, "relu2_1": 0.2, "relu3_1": 0.2, "relu4_1": 0.2, "relu5_1": 0.2}
    assert loss(*images) > 0


def test_content_and_style(model, images):
    x, content = (each.double() for each in images)
    style = torch.rand(1, 3, 32, 40, dtype=torch.float64)
    contents = {"relu2_2": 3.0}
    loss = ContentStyle(contents, LAYERS, model, content_weight=2.0, style_weight=5.0, tv_weight=7.0).double()

    def expected(x):
        ours, theirs = (plain_maps(model, scaled(each), contents)["relu2_2"] for each in (x, content))
        variation = (x[:, :, 1:] - x[:, :, :-1]).abs().mean() + (x[..., 1:] - x[..., :-1]).abs().mean()
        style_term = plain_style(model, LAYERS)(x, style.expand(2, -1, -1, -1))
        return 2 * 3 * F.mse_loss(ours, theirs) + 5 * style_term + 7 * variation

    assert_near(value_and_gradient(loss.target(content, style), x), value_and_gradient(expected, x), 1e-6)
    terms = loss.terms(x)
    assert set(terms) == {"content", "style", "variation"}
    torch.testing.assert_close(2 * terms["content"] + 5 * terms["style"] + 7 * terms["variation"], loss(x))


@pytest.mark.parametrize("size", [(1, 40), (32, 1), (1, 1)])
def test_variation_of_images_one_pixel_high_or_wide(model, size):
    """Which have no neighbours there."""
    x = torch.rand(2, 3, *size)
    loss = ContentStyle({"relu1_1": 1.0}, {"relu1_1": 1.0}, model, tv_weight=1.0).target(x, x)
    along = 3 if size[0] == 1 else 2
    expected = x.diff(dim=along).abs().mean() if max(size) > 1 else torch.tensor(0.0)
    assert torch.equal(loss.terms(x)["variation"], expected)
    assert torch.equal(loss(x), expected)
    loss.tv_weight = 0.0
    value, gradient = value_and_gradient(loss, x)
    assert value == 0
    assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_terms_of_narrower_images_are_those_of_the_loss_dtype(model, images, dtype):
    x = images[0].to(dtype)
    loss = ContentStyle({"relu1_1": 1.0}, {"relu1_1": 1.0}, model)
    for kind in (torch.float32, torch.float64):
        loss.to(kind).target(images[1].to(kind), images[1].to(kind))
        expected = loss.terms(x.to(kind))
        for name, term in loss.terms(x).items():
            assert term.dtype == kind
            assert torch.equal(term, expected[name])


@pytest.mark.parametrize(("arguments", "message"), [
    ({"content_layers": {}}, "content_layers must have at least one layer, got none"),
    ({"style_layers": ["relu1_1"]}, "style_layers must map layers to weights, such as"),
    ({"style_weight": -1}, "style_weight must be at least 0 and finite, got -1"),
    ({"style_weight": "much"}, "style_weight must be a number, got str 'much'"),
])  # fmt: skip
def test_arguments_that_do_not_fit(model, arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        ContentStyle(net=model, **arguments)


def test_targets_that_do_not_fit(model, images):
    x, _ = images
    loss = ContentStyle(net=model)
    with pytest.raises(ValueError, match=r"content must be given, or kept by target\(\) before, got neither"):
        loss(x)
    with pytest.raises(ValueError, match=r"style must be in \[0, 1\], got values from .* divide by 255"):
        loss.target(x, x * 255)
    loss.target(x[..., :32], x)
    with pytest.raises(ValueError, match=r"content must have the H and W of what it is compared with, \(32, 40\), got"):
        loss(x)
