"""Small networks made, run and saved by the frameworks themselves: the same outputs after conversion."""

import importlib.util

import numpy as np
import pytest
import torch

import vggfast
from tests.support.comparisons import relative_error
from tests.support.foreign import network, slim_tensors, write_slim
from vggfast.models import CONFIGURATIONS
from vggfast.weights.formats import read

PIXELS = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)


def ours(path, **settings):
    """Our scores of the picture, by the preprocessing that the converted network has."""
    model = read(path, **settings).model
    return model(model.preprocessing.tensor(PIXELS)[None])


def widths(config):
    return [item if item == "M" else max(1, round(item * 0.1)) for item in CONFIGURATIONS[config]]


def randomise(model):
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2)
        elif tensor.is_floating_point():
            tensor.normal_(0, (2 / tensor[0].numel()) ** 0.5 if tensor.dim() > 1 else 0.1)
    return model.eval()


def as_torchvision(pixels):
    """torchvision's own transform, in plain torch: 0 to 1, less the mean, over the deviation."""
    mean, std = (torch.tensor(v)[:, None, None] for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    return ((torch.from_numpy(pixels).permute(2, 0, 1).float() / 255 - mean) / std)[None]


def small_torchvision(torchvision, config, batch_norm):
    with torch.device("meta"):
        model = torchvision.models.VGG(torchvision.models.vgg.make_layers(widths(config), batch_norm))
    head = vggfast.VGG(config, num_classes=5, width=0.1, hidden=16, pool_size=2)
    model.avgpool, model.classifier = torch.nn.AdaptiveAvgPool2d(2), torch.nn.Sequential(
        torch.nn.Linear(head.classifier[0].in_features, 16), torch.nn.ReLU(True), torch.nn.Dropout(),
        torch.nn.Linear(16, 16), torch.nn.ReLU(True), torch.nn.Dropout(), torch.nn.Linear(16, 5),
    )  # fmt: skip
    model.features.to_empty(device="cpu")
    return randomise(model)


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("config", ["A", "B", "D", "E"])
def test_torchvision(tmp_path, torchvision, config, batch_norm):
    theirs = small_torchvision(torchvision, config, batch_norm)
    torch.save(theirs.state_dict(), tmp_path / "m.pth")
    assert relative_error(ours(tmp_path / "m.pth"), theirs(as_torchvision(PIXELS))) < 1e-5


@pytest.mark.filterwarnings("ignore:You are using the legacy")
@pytest.mark.parametrize("side", [64, 128])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_torchs_onnx_exporter(tmp_path, torchvision, batch_norm, side):
    pytest.importorskip("onnx")
    theirs = small_torchvision(torchvision, "B", batch_norm)
    torch.onnx.export(theirs, (torch.randn(1, 3, side, side),), str(tmp_path / "m.onnx"), dynamo=False)
    got = ours(tmp_path / "m.onnx", preprocessing=vggfast.Preprocessing.torchvision())
    assert relative_error(got, theirs(as_torchvision(PIXELS))) < 1e-5


@pytest.mark.parametrize("batch_norm", [False, True])
def test_timm(tmp_path, torchvision, batch_norm):
    vgg = pytest.importorskip("timm.models.vgg")
    with torch.device("meta"):
        theirs = vgg.VGG(widths("D"), 5, norm_layer=torch.nn.BatchNorm2d if batch_norm else None)
    theirs.features.to_empty(device="cpu")
    theirs.pre_logits = vgg.ConvMlp(theirs.num_features, 16, 2)
    theirs.head = vgg.ClassifierHead(16, 5)
    randomise(theirs)
    torch.save(theirs.state_dict(), tmp_path / "m.pth")
    assert relative_error(ours(tmp_path / "m.pth"), theirs(as_torchvision(PIXELS))) < 1e-5


@pytest.fixture(scope="module")
def keras():
    """keras on tensorflow; asked for by name, as importing it takes seconds."""
    for package in ("tensorflow", "keras"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    return importlib.import_module("keras")


def small_keras(keras, config, top=True):
    """keras.applications' network, layer for layer, with fewer channels."""
    layers, stage, place = [keras.Input((64, 64, 3))], 1, 1
    for item in widths(config):
        if item == "M":
            layers.append(keras.layers.MaxPooling2D(2, name=f"block{stage}_pool"))
            stage, place = stage + 1, 1
        else:
            name = f"block{stage}_conv{place}"
            layers.append(keras.layers.Conv2D(item, 3, activation="relu", padding="same", name=name))
            place += 1
    if top:
        layers += [
            keras.layers.Flatten(name="flatten"), keras.layers.Dense(16, activation="relu", name="fc1"),
            keras.layers.Dense(16, activation="relu", name="fc2"), keras.layers.Dense(5, name="predictions"),
        ]  # fmt: skip
    model = keras.Sequential(layers)
    for weight in model.weights:
        if len(weight.shape) == 1:
            weight.assign(0.1 * np.random.default_rng(1).standard_normal(weight.shape))
    return model


@pytest.mark.parametrize("name", ["m.keras", "m.h5", "m.weights.h5"])
@pytest.mark.parametrize(("config", "top"), [("D", True), ("E", False)])
def test_keras(tmp_path, keras, name, config, top):
    theirs = small_keras(keras, config, top)
    (theirs.save_weights if "weights" in name else theirs.save)(tmp_path / name)
    pixels = keras.applications.vgg16.preprocess_input(PIXELS[None].astype(np.float32))
    expected = theirs.predict(pixels, verbose=0)
    got = ours(tmp_path / name)
    assert relative_error(got if top else got.permute(0, 2, 3, 1), expected) < 1e-5


def test_names_are_keras_applications_own(keras):
    """Those of the real VGG16 and VGG19, whose layers the small ones of these tests are named after."""
    for build, config in ((keras.applications.VGG16, "D"), (keras.applications.VGG19, "E")):
        real = build(weights=None, include_top=False, input_shape=(32, 32, 3))
        named = [layer.name for layer in real.layers if layer.weights]
        small = [layer.name for layer in small_keras(keras, config, top=False).layers if layer.weights]
        assert named == small


@pytest.mark.parametrize("version", [1, 2])
def test_tf_slim_checkpoints_of_a_training(tmp_path, version):
    """With the optimiser's state, the step and the mean that such files have; by prefix, index or file."""
    pytest.importorskip("tensorflow")
    model = network("E")
    tensors = slim_tensors(model, "vgg_19")
    extra = {f"{name}/Momentum": np.zeros_like(value) for name, value in tensors.items()}
    extra |= {"global_step": np.array(7), "vgg_19/mean_rgb": np.array([1, 2, 3], np.float32)}
    write_slim(tmp_path / "m.ckpt", tensors | extra, version)
    for path in (tmp_path / "m.ckpt", tmp_path / "m.ckpt.index"):
        if version == 2 or path.suffix != ".index":
            found = read(path)
            assert (found.format, found.origin) == ("tf-slim", "the file")
            assert found.model.preprocessing.mean == (1, 2, 3)
            for name, tensor in model.state_dict().items():
                assert torch.equal(found.model.state_dict()[name], tensor)
