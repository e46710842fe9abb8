"""Perceptual: the numbers of plain torch, gradients for images alone, kept targets, errors."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import vggfast
from tests.losses.conftest import assert_near, network, plain_maps, scaled, value_and_gradient
from vggfast.losses import Perceptual
from vggfast.weights import save_model

LAYERS = {"relu1_2": 0.5, "conv2_2": 2.0, "pool3": 1.0, "relu4_3": 0.25}
CRITERIA = {"l1": F.l1_loss, "l2": F.mse_loss, "own": lambda a, b: (a - b).pow(4).mean()}


def plain(model, layers, criterion, preprocessing=None):
    def loss(x, y):
        ours, theirs = (plain_maps(model, scaled(each, preprocessing), layers) for each in (x, y))
        return sum(weight * criterion(ours[name], theirs[name]) for name, weight in layers.items())

    return loss


@pytest.mark.parametrize("preprocessing", [vggfast.Preprocessing.torchvision(), vggfast.Preprocessing.caffe()])
@pytest.mark.parametrize("criterion", CRITERIA)
def test_values_and_gradients(images, criterion, preprocessing):
    x, y = (each.double() for each in images)
    model = network(preprocessing)
    loss = Perceptual(LAYERS, model, CRITERIA[criterion] if criterion == "own" else criterion)
    expected = value_and_gradient(plain(model, LAYERS, CRITERIA[criterion], preprocessing), x, y)
    found = value_and_gradient(loss, x.float(), y.float())
    assert found[0].dtype == torch.float32
    compared = 1 if criterion == "l1" else 2  # rounding decides the sign of a difference near 0
    assert_near(found[:compared], expected[:compared], 1e-5)
    # The scales of `double()` are those of float32.
    assert_near(value_and_gradient(loss.double(), x, y), expected, 1e-6)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_without_preprocessing_float64_is_exact(model, images, memory_format):
    x, y = (each.double().contiguous(memory_format=memory_format) for each in images)
    loss = Perceptual(LAYERS, model.double(), "l2", normalize=False)

    def expected(x, y):
        ours, theirs = (plain_maps(model, each, LAYERS) for each in (x, y))
        return sum(weight * F.mse_loss(ours[name], theirs[name]) for name, weight in LAYERS.items())

    assert_near(value_and_gradient(loss, x, y), value_and_gradient(expected, x, y), 1e-12)


def test_batch_norm_and_the_networks_of_torchvision(images, torchvision):
    vgg = torchvision.models.vgg
    with torch.device("meta"):
        theirs = vgg.vgg11_bn(init_weights=False)
    theirs.features = vgg.make_layers([8, "M", 16], batch_norm=True).eval()
    theirs.features[1].running_mean.normal_(0, 0.1)
    layers = {"relu1_1": 1.0, "relu2_1": 1.0}
    expected = plain(theirs, layers, F.l1_loss)(*(each.double() for each in images))
    for model in (theirs, theirs.train()):
        assert_near([Perceptual(layers, model)(*images)], [expected], 1e-5)


def test_files_and_names(model, images, tmp_path, monkeypatch):
    expected = Perceptual(LAYERS, model)(*images)
    save_model(model, tmp_path / "m.safetensors")
    assert torch.equal(Perceptual(LAYERS, tmp_path / "m.safetensors")(*images), expected)
    monkeypatch.setenv("VGGFAST_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"vgg16-conv\.safetensors: no such weight file; the command "
                       "`vggfast weights get vgg16-conv` fetches it"):  # fmt: skip
        Perceptual()
    (tmp_path / "m.safetensors").rename(tmp_path / "vgg16-conv.safetensors")
    assert torch.equal(Perceptual(LAYERS, "vgg16")(*images), expected)


def test_a_target_is_kept(model, images):
    x, y = images
    loss = Perceptual(LAYERS, model)
    expected = value_and_gradient(loss, x, y)
    assert loss.target(y) is loss
    for found, right in zip(value_and_gradient(loss, x), expected, strict=True):
        assert torch.equal(found, right)
    with torch.inference_mode():
        loss.target(y.clone())
    assert torch.equal(value_and_gradient(loss, x)[1], expected[1])
    assert torch.equal(pickle.loads(pickle.dumps(loss))(x), expected[0])
    assert torch.equal(copy.deepcopy(loss)(x), expected[0])
    assert_near([loss.double()(x.double())], [expected[0]], 1e-5)
    with pytest.raises(
        ValueError, match=r"y must have the H and W of what it is compared with, \(32, 32\), got \(32, 40\)"
    ):
        loss(x[..., :32].double())
    loss.load_state_dict(loss.state_dict())
    with pytest.raises(ValueError, match=r"y must be given, or kept by target\(\) before, got neither"):
        loss(x.double())


@pytest.mark.parametrize("part", ["net", "net.slice2", "net.slice1.0", "scaling_layer"])
def test_weights_of_a_part_forget_the_target(model, images, part):
    x, y = images
    loss = Perceptual(LAYERS, model).target(y)
    loss = pickle.loads(pickle.dumps(copy.deepcopy(loss)))
    other = copy.deepcopy(loss)
    module = other.get_submodule(part)
    module.load_state_dict(module.state_dict())
    with pytest.raises(ValueError, match=r"y must be given, or kept by target\(\) before, got neither"):
        other(x)
    assert loss(x) > 0
    assert other.target(y)(x) == loss(x)


def test_one_image_for_many(model, images):
    x, y = images
    loss = Perceptual(LAYERS, model)
    expected = loss(x, y[:1].expand(2, -1, -1, -1))
    torch.testing.assert_close(loss(x, y[:1]), expected)
    torch.testing.assert_close(loss.target(y[:1])(x), expected)
    with pytest.raises(
        ValueError, match="y must have the N of what it is compared with, 2, or N = 1 in one of both, got 3"
    ):
        loss(x, y[[0, 1, 0]])


def test_gray_images_count_for_all_channels(model, images):
    gray = images[0][:, :1]
    loss = Perceptual(LAYERS, model)
    assert torch.equal(loss(gray, images[1]), loss(gray.expand(-1, 3, -1, -1), images[1]))


def test_the_network_is_frozen_and_the_graph_keeps_no_maps(model, images):
    loss = Perceptual({"relu3_3": 1.0}, model).target(images[1])
    loss.train()
    assert not any(parameter.requires_grad for parameter in loss.parameters())
    assert [name for name in loss.state_dict() if "weight" in name][-1] == "net.slice1.14.weight"
    saved = []
    parameters = {parameter.data_ptr() for parameter in loss.parameters()}

    def note(tensor):
        if tensor.is_floating_point() and tensor.data_ptr() not in parameters:
            saved.append(tuple(tensor.shape))
        return tensor

    x = images[0].requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        value = loss(x)
    assert set(saved) <= {(1, 3, 1, 1), (2, 32, 8, 10)}  # the scale, and the maps that are compared
    value.backward()
    assert x.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in loss.parameters())


def test_the_model_is_copied(model, images):
    loss = Perceptual(LAYERS, model)
    before = loss(*images)
    random = torch.get_rng_state()
    Perceptual(LAYERS, model)
    assert torch.equal(torch.get_rng_state(), random)
    nn.init.zeros_(model.features[0].weight)
    assert model.features[0].weight.requires_grad
    assert torch.equal(loss(*images), before)


def test_second_order(model, images):
    x, y = (each.double()[:1] for each in images)
    direction = torch.randn_like(x)
    model.double()

    def product(loss):
        variable = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(variable, y), variable, create_graph=True)
        return torch.autograd.grad((gradient * direction).sum(), variable)

    expected = product(plain(model, LAYERS, F.mse_loss))
    assert_near(product(Perceptual(LAYERS, model, "l2")), expected, 1e-6)


def test_autocast(model, images):
    loss = Perceptual(LAYERS, model)
    expected = loss(*images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss(images[0].bfloat16(), images[1])
    assert found.dtype == torch.float32
    assert_near([found], [expected], 0.05)
    narrow = Perceptual(LAYERS, model.bfloat16())(*(each.bfloat16() for each in images))
    assert narrow.dtype == torch.float32
    assert_near([narrow], [expected], 0.05)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrower_images_are_computed_in_the_dtype_of_the_loss(model, images, normalize, dtype):
    x, y = (each.to(dtype) for each in images)
    loss = Perceptual(LAYERS, model, normalize=normalize)
    for kind in (torch.float32, torch.float64):
        loss.to(kind)
        expected = value_and_gradient(loss, x.to(kind), y.to(kind))
        found = value_and_gradient(loss, x, y)
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1].to(dtype))


@pytest.mark.slow
def test_compiled(model, images):
    loss = Perceptual(LAYERS, model).target(images[1])
    expected = value_and_gradient(loss, images[0])
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    assert_near(value_and_gradient(compiled, images[0]), expected, 1e-6)


# ---- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("change", "message"), [
    (lambda x: x * 255, r"x must be in \[0, 1\], got values from 0.* to 25.*: divide by 255"),
    (lambda x: x * 2 - 1, r"x must be in \[0, 1\], got values from -.* to .*: add 1 and divide by 2"),
    (lambda x: x * 300 - 30, r"x must be in \[0, 1\], got values from -.* to 2.*: divide by 255"),
    (lambda x: (x - 0.45) / 0.22, r"x must be in \[0, 1\], got values from -2.* to 2.*: they look normalised"),
    (lambda x: x * 3.6, r"x must be in \[0, 1\], got values from .* to 3.*: clamp it, or give check_range=False"),
    (lambda x: (x * 255).byte(), "x must have a floating-point dtype, got torch.uint8: convert it, and divide by 255"),
    (lambda x: x[0], r"x must have shape \(N, 3, H, W\), got \(3, 32, 40\)"),
    (lambda x: x[:, :2], r"x must have shape \(N, 3, H, W\), got \(2, 2, 32, 40\)"),
    (lambda x: x[..., :7], r"x must have H and W of at least 8 for relu4_3, got \(2, 3, 32, 7\)"),
    (lambda x: x.double(), r"x must have a dtype that the loss', torch.float32, holds, got torch.float64: loss.to"),
    (lambda x: x.to("meta"), r"x must be on the device of the loss, cpu, got meta: loss.to\(x\)"),
    (lambda x: x.numpy(), "x must be a tensor, got numpy.ndarray"),
])  # fmt: skip
def test_images_that_do_not_fit(model, images, change, message):
    x, y = images
    loss = Perceptual(LAYERS, model)
    with pytest.raises((TypeError, ValueError), match=message):
        loss(change(x), y)
    with pytest.raises((TypeError, ValueError), match=message.replace("x must", "y must", 1)):
        loss.target(change(x))


def test_ranges_that_pass(model, images):
    x, y = images
    loss = Perceptual(LAYERS, model)
    loss(x * 1.9 - 0.45, y)  # as an optimiser leaves them
    assert loss(torch.full_like(x, torch.nan), y).isnan()
    assert Perceptual(LAYERS, model, check_range=False)(x * 255, y) > 0


@pytest.mark.parametrize(("arguments", "message"), [
    ({"layers": {"relu6_1": 1.0}}, "layers must be among conv1_1, relu1_1, .*pool5, got 'relu6_1'"),
    ({"layers": {}}, "layers must have at least one layer, got none"),
    ({"layers": ["relu3_3"]}, r"layers must map layers to weights, such as {'relu3_3': 1.0}, got list"),
    ({"layers": {"relu3_3": "1"}}, r"layers\['relu3_3'\] must be a number, got str '1'"),
    ({"layers": {"relu3_3": float("nan")}}, r"layers\['relu3_3'\] must be finite, got nan"),
    ({"criterion": "l3"}, "criterion must be 'l1', 'l2' or a function of two maps, got 'l3'"),
    ({"criterion": 2}, "criterion must be 'l1', 'l2' or a function of two maps, got 2"),
    ({"criterion": torch.nn.L1Loss}, "criterion must be a function of two maps, got the class L1Loss: give"),
    ({"normalize": "yes"}, "normalize must be True or False, got str 'yes'"),
    ({"net": 16}, "net must be 'vgg16', 'vgg16-conv', a file of vggfast's or a model, got 16"),
    ({"net": "vgg"}, "net must be 'vgg16', 'vgg16-conv', a file of vggfast's or a model, and there is no file 'vgg'"),
    ({"net": nn.Sequential(nn.Conv2d(3, 4, 3, padding=1))}, "net must have an attribute preprocessing"),
    ({"net": nn.Sequential(nn.MaxPool2d(2, 2)), "layers": {"pool1": 1.0}, "normalize": False},
     "layers must be behind a convolution, got 'pool1'"),
    ({"net": network(in_channels=1)}, "net must take 3 channels where normalize is True, got 1"),
    ({"net": nn.Linear(3, 3), "normalize": False}, "model must be a VGG of vggfast or torchvision, or"),
])  # fmt: skip
def test_arguments_that_do_not_fit(model, arguments, message):
    with pytest.raises((TypeError, ValueError, FileNotFoundError), match=message):
        Perceptual(**{"net": model, **arguments})


@pytest.mark.parametrize("layers", [{"relu3_3": 1.0}, LAYERS])
@pytest.mark.parametrize(("criterion", "what"), [
    (nn.L1Loss(reduction="none"), r"torch.Tensor of shape \(2, \d+, \d+, \d+\)"),
    (lambda a, b: (a - b).square().mean((1, 2, 3)), r"torch.Tensor of shape \(2,\)"),
    (lambda a, b: 3.0, r"3\.0"),
])  # fmt: skip
def test_a_criterion_returns_a_scalar(model, images, layers, criterion, what):
    loss = Perceptual(layers, model, criterion)
    with pytest.raises(TypeError, match=f"criterion must return a scalar tensor of two maps, as a mean is, got {what}"):
        loss(*images)


def test_other_channels_without_preprocessing():
    loss = Perceptual({"relu1_1": 1.0}, network(in_channels=1), normalize=False)
    assert loss(torch.rand(1, 1, 8, 8) * 99, torch.rand(1, 1, 8, 8)) > 0
