"""LPIPS: its definition in plain torch, lpips' signature and state_dict, torchmetrics' class."""

import copy
import inspect

import pytest
import torch
import torch.nn.functional as F

import vggfast
from tests.losses.conftest import CHANNELS, assert_near, network, plain_maps, value_and_gradient
from vggfast import pretrained
from vggfast.losses import LPIPS, LearnedPerceptualImagePatchSimilarity
from vggfast.losses.lpips import LAYERS


@pytest.fixture(scope="module")
def wide():
    """VGG-16 as wide as LPIPS wants it."""
    torch.manual_seed(1)
    return network(width=1.0)


@pytest.fixture
def pairs():
    """Two pairs of images in [-1, 1]."""
    return torch.rand(2, 3, 16, 24) * 2 - 1, torch.rand(2, 3, 16, 24) * 2 - 1


def plain(model, weights, spatial):
    """In the words of the paper's equation 1."""
    shift, scale = (torch.tensor(v).view(3, 1, 1) for v in ((-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)))

    def loss(x, y):
        ours, theirs = (plain_maps(model, (each - shift.to(x)) / scale.to(x), LAYERS) for each in (x, y))
        total = 0
        for name, weight in zip(LAYERS, weights, strict=True):
            a, b = (each / (each.pow(2).sum(1, keepdim=True).sqrt() + 1e-10) for each in (ours[name], theirs[name]))
            each = (weight.view(-1, 1, 1).to(x) * (a - b) ** 2).sum(1, keepdim=True)
            total = total + (F.interpolate(each, x.shape[2:], mode="bilinear") if spatial else each.mean((2, 3), True))
        return total

    return loss


@pytest.mark.parametrize("spatial", [False, True])
@pytest.mark.parametrize("calibrated", [True, False])
def test_values_and_gradients(wide, linear, pairs, spatial, calibrated):
    x, y = (each.double() for each in pairs)
    loss = LPIPS(net=wide, spatial=spatial, lpips=calibrated, model_path=linear)
    state = torch.load(linear)
    weights = [state[f"lin{i}.model.1.weight"] if calibrated else torch.ones(c) for i, c in enumerate(CHANNELS)]
    expected = value_and_gradient(plain(wide, weights, spatial), x, y)
    found = loss(*pairs)
    assert found.shape == ((2, 1, 16, 24) if spatial else (2, 1, 1, 1))
    assert_near([found.sum()], expected[:1], 1e-6)
    loss.double()
    assert_near(value_and_gradient(loss, x, y), expected, 1e-10)
    assert_near(value_and_gradient(loss.target(y), x), expected, 1e-10)
    assert_near([loss((x + 1) / 2, (y + 1) / 2, normalize=True)], [loss(x, y)], 1e-10)
    assert_near([loss.target((y + 1) / 2, normalize=True)(x)], [loss(x, y)], 1e-10)
    total, layers = loss(x, y, retPerLayer=True)
    assert len(layers) == 5
    torch.testing.assert_close(sum(layers), total)


def test_pixels_without_features_have_no_gradient(wide, linear):
    """lpips' is NaN, of the square root at 0."""
    dark = copy.deepcopy(wide)
    torch.nn.init.constant_(dark.features[2].bias, -1e6)
    x = torch.rand(1, 3, 16, 16)
    value, gradient = value_and_gradient(LPIPS(net=dark, model_path=linear), x, x.flip(3))
    assert value.isfinite()
    assert gradient.isfinite().all()


@pytest.mark.slow
def test_compiled_and_transformed(wide, linear, pairs):
    loss = LPIPS(net=wide, model_path=linear).double()
    x, y = (each[:1].double() for each in pairs)
    expected = value_and_gradient(loss, x, y)
    with torch.no_grad():
        assert_near([torch.compile(loss, backend="aot_eager", fullgraph=True)(x, y).sum()], expected[:1], 1e-10)
    gradient, value = torch.func.grad_and_value(lambda x: loss(x, y).sum())(x)
    assert_near((value, gradient), expected, 1e-10)


def test_one_image_for_many(wide, linear, pairs):
    x, y = pairs
    loss = LPIPS(net=wide, model_path=linear)
    torch.testing.assert_close(loss(x[:1], y), loss(x[[0, 0]], y))
    torch.testing.assert_close(loss.target(y[:1])(x), loss(x, y[[0, 0]]))


def test_the_state_dict_goes_through_a_file(wide, linear, pairs, tmp_path):
    loss = LPIPS(net=wide, model_path=linear)
    other = LPIPS(net=network(width=1.0), model_path=linear)
    torch.save(loss.state_dict(), tmp_path / "s.pth")
    other.load_state_dict(torch.load(tmp_path / "s.pth"))
    assert torch.equal(other(*pairs), loss(*pairs))
    assert not any(parameter.requires_grad for parameter in other.parameters())


def test_metric(wide, linear, pairs, monkeypatch, tmp_path):
    linear.rename(tmp_path / "lpips-vgg.pth")
    monkeypatch.setattr("vggfast.losses.lpips.fetched", lambda name: tmp_path / f"{name}.pth")
    x, y = ((each + 1) / 2 for each in pairs)
    scores = LPIPS(net=wide)(x, y, normalize=True).flatten()
    metric = LearnedPerceptualImagePatchSimilarity(wide, normalize=True)
    with pytest.raises(ValueError, match="update must be called before compute, got no images"):
        metric.compute()
    metric.update(x[:1], y[:1])
    torch.testing.assert_close(metric(x[1:], y[1:]), scores[1])
    for reduction, expected in {"mean": scores.mean(), "sum": scores.sum(), "none": scores, None: scores}.items():
        metric.reduction = reduction
        torch.testing.assert_close(metric.compute(), expected)
    assert value_and_gradient(metric, x, y)[1].abs().sum() > 0
    metric.reset()
    with pytest.raises(ValueError, match="update must be called"):
        metric.compute()
    with pytest.raises(ValueError, match="reduction must be one of 'mean', 'sum', 'none', None, got 'max'"):
        LearnedPerceptualImagePatchSimilarity(wide, "max")


# ---- where the weights come from -------------------------------------------------------------------------------------


def test_linear_weights_that_are_not_there(wide, tmp_path, monkeypatch):
    monkeypatch.setenv("VGGFAST_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="the command `vggfast weights get lpips-vgg` fetches it"):
        LPIPS(net=wide)
    torch.save({"lin0.model.1.weight": torch.rand(1, 64, 1, 1)}, tmp_path / "half.pth")
    with pytest.raises(
        ValueError, match=r"half\.pth must have the linear layers of LPIPS on VGG-16, .*got \[\(1, 64, 1, 1\)\]"
    ):
        LPIPS(net=wide, model_path=tmp_path / "half.pth")


def test_the_network_of_torchvision(wide, linear, pairs, monkeypatch):
    """Whose weights are those of lpips; the preprocessing is torchvision's, whatever else the loss knows."""

    class Weights:
        def get_state_dict(self, progress, check_hash):
            return {**wide.state_dict(), "classifier.6.weight": torch.zeros(1000, 1)}

    Weights.__name__ = "VGG16_Weights"
    monkeypatch.setattr(pretrained, "_member", lambda kind, member: Weights())
    expected = LPIPS(net=wide, model_path=linear)(*pairs)
    for net in ("vgg", "vgg16"):
        loss = LPIPS(net=net, model_path=linear)
        assert torch.equal(loss.scaling_layer.shift.flatten(), torch.tensor([-0.03, -0.088, -0.188]))
        assert torch.equal(loss(*pairs), expected)


def test_a_network_of_torchvision_that_is_not_to_be_had(linear, monkeypatch):
    def missing(kind, member):
        raise ImportError(f"weights {kind}.{member} come from the package torchvision, which cannot be imported")

    monkeypatch.setattr(pretrained, "_member", missing)
    with pytest.raises(ImportError, match="net 'vgg' is the network that LPIPS was fitted to, and weights VGG16_Weights"
                       r".IMAGENET1K_V1 come from .* give as net what `vggfast convert` makes of it"):  # fmt: skip
        LPIPS(model_path=linear)


def test_a_networks_own_preprocessing_is_kept(linear, pairs):
    model = network(vggfast.Preprocessing.caffe(), width=1.0)
    loss = LPIPS(net=model, model_path=linear)
    torch.testing.assert_close(
        loss.scaling_layer(pairs[0]),
        ((pairs[0] + 1) * 127.5 - torch.tensor([123.68, 116.779, 103.939]).view(3, 1, 1)).flip(1), rtol=1e-5, atol=1e-3,
    )  # fmt: skip
    model.preprocessing = None
    with pytest.raises(ValueError, match=r"net must have an attribute preprocessing, .*got none: for those of "
                       r"torchvision, net\.preprocessing = vggfast\.Preprocessing\.torchvision\(\)"):  # fmt: skip
        LPIPS(net=model, model_path=linear)


# ---- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("arguments", "message"), [
    ({"version": "0.0"}, "version must be '0.1', got '0.0': 0.0 did not scale its images"),
    ({"pretrained": False}, "pretrained must be True where lpips is, got False: give lpips=False or model_path=FILE"),
    ({"pnet_rand": True}, "pnet_rand must be False where net is none of 'vgg', 'vgg16', got net=vggfast.VGG"),
    ({"pnet_tune": True}, "pnet_tune must be False, got True: give net=MODEL, which the loss copies and freezes"),
    ({"net": network()}, r"net must have \(64, 128, 256, 512, 512\) channels at relu1_2, .*, got \(8, 16, 3"),
    ({"net": network(config="A")}, "layers must be among conv1_1, relu1_1, pool1, .*, got 'relu1_2'"),
])  # fmt: skip
def test_arguments_that_do_not_fit(wide, linear, arguments, message):
    with pytest.raises(ValueError, match=message):
        LPIPS(**{"net": wide, "model_path": linear, **arguments})


@pytest.mark.parametrize("net", ["alex", "squeeze", "vgg19"])
def test_networks_that_are_not_here(net, monkeypatch, tmp_path):
    """Said before any weights are asked for."""
    monkeypatch.setenv("VGGFAST_CACHE", str(tmp_path))
    allowed = f"must be 'vgg', 'vgg16', 'vgg16-conv', a file of vggfast's or a model, and there is no file '{net}'"
    with pytest.raises(FileNotFoundError, match=f"net {allowed}"):
        LPIPS(net=net)
    with pytest.raises(FileNotFoundError, match=f"net_type {allowed}"):
        LearnedPerceptualImagePatchSimilarity(net)
    with pytest.raises(
        TypeError, match="net must be 'vgg', 'vgg16', 'vgg16-conv', a file of vggfast's or a model, got 5"
    ):
        LPIPS(net=5)


def test_without_linear_weights_none_are_asked_for(wide, pairs, monkeypatch, tmp_path):
    monkeypatch.setenv("VGGFAST_CACHE", str(tmp_path))
    expected = LPIPS(net=wide, lpips=False)(*pairs)
    assert torch.equal(LPIPS(pretrained=False, net=wide, lpips=False)(*pairs), expected)
    with pytest.raises(TypeError, match="model_path must be a file with linear weights or None, got 5"):
        LPIPS(net=wide, model_path=5)


def test_narrower_images_are_computed_in_full(wide, linear, pairs):
    loss = LPIPS(net=wide, model_path=linear)
    narrow = [((each + 1) / 2).bfloat16() for each in pairs]
    assert torch.equal(loss(*narrow, normalize=True), loss(*(each.float() for each in narrow), normalize=True))


def test_images_that_do_not_fit(wide, linear, pairs):
    x, y = pairs
    loss = LPIPS(net=wide, model_path=linear)
    with pytest.raises(
        ValueError, match=r"in0 must be in \[-1, 1\], got values from .*: divide by 127.5 and subtract 1"
    ):
        loss((x + 1) * 127.5, y)
    with pytest.raises(ValueError, match=r"in1 must be in \[0, 1\], got values from -.*: add 1 and divide by 2"):
        loss((x + 1) / 2, y, normalize=True)
    with pytest.raises(
        ValueError, match=r"in1 must have the H and W of what it is compared with, \(16, 24\), got \(16, 16\)"
    ):
        loss(x, y[..., :16])
    with pytest.raises(ValueError, match=r"in1 must be given, or kept by target\(\) before, got neither"):
        loss(x)
    with pytest.raises(ValueError, match=r"in0 must have H and W of at least 16 for relu5_3, got \(2, 3, 15, 24\)"):
        loss(x[:, :, :15], y)


def test_the_signature_is_lpips(lpips_package):
    theirs = list(inspect.signature(lpips_package.LPIPS.__init__).parameters)
    assert list(inspect.signature(LPIPS.__init__).parameters) == [*theirs, "check_range"]
    forward = list(inspect.signature(lpips_package.LPIPS.forward).parameters)
    assert list(inspect.signature(LPIPS.forward).parameters) == forward
