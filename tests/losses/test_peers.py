"""The numbers of lpips 0.1.4, torchmetrics 1.9.0 and piq 0.8.0, where they are installed, on pairs of real photos."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torch import nn

import vggfast
from tests.losses.conftest import assert_near, network, value_and_gradient
from vggfast.losses import LPIPS, LearnedPerceptualImagePatchSimilarity, Perceptual, Style
from vggfast.weights import load_model
from vggfast.weights.fetch import place_of
from vggfast.weights.formats.torchvision import fold

_ENDS = (4, 9, 16, 23, 30)  # of the parts of features that the peers make


@pytest.fixture(scope="module")
def pairs(shared_data):
    """Photos and what a blur makes of them, in [0, 1]."""
    pictures = []
    with tarfile.open(shared_data / "caltech-101.tar") as archive:
        for member in [each for each in archive.getmembers() if each.name.endswith(".jpg")][::3000]:
            with Image.open(io.BytesIO(archive.extractfile(member).read())) as image:
                pictures.append(image.convert("RGB").resize((48, 32)))
    blurred = [picture.filter(ImageFilter.GaussianBlur(1.5)) for picture in pictures]
    return tuple(
        torch.stack([torch.from_numpy(np.asarray(each, np.float32) / 255).permute(2, 0, 1) for each in group])
        for group in (pictures, blurred)
    )


@pytest.fixture(scope="module")
def model():
    """The published convolutions, where they were fetched, as a network of torchvision's preprocessing."""
    path = place_of("vgg16-conv")
    if not path.is_file():
        torch.manual_seed(1)
        return network(width=1.0)
    found, _ = load_model(path)
    found.features[0].weight.data = fold(found.features[0].weight.data, found.preprocessing)[0]
    found.preprocessing = vggfast.Preprocessing.torchvision()
    return found


@pytest.fixture(scope="module")
def theirs(lpips_package, model):
    """lpips' loss with these convolutions, and its own linear layers."""
    loss = lpips_package.LPIPS(net="vgg", pnet_rand=True, verbose=False)
    for begin, end, part in zip((0, *_ENDS), _ENDS, list(loss.net.children())[:5], strict=False):
        part.load_state_dict(nn.Sequential(*list(model.features)[begin:end]).state_dict(), strict=False)
        for i, layer in zip(range(begin, end), part, strict=True):
            layer.load_state_dict(model.features[i].state_dict())
    return loss


@pytest.fixture
def ours(theirs, model, lpips_package, tmp_path, monkeypatch):
    path = tmp_path / "lpips-vgg.pth"
    torch.save({key: each for key, each in theirs.state_dict().items() if key.startswith("lin")}, path)
    monkeypatch.setattr("vggfast.losses.lpips.fetched", lambda name: path)
    return LPIPS(net=model)


def test_weights_of_theirs(theirs, lpips_package, pairs):
    """A loss of theirs becomes one of ours by its state_dict alone."""
    linear = Path(lpips_package.__file__).parent / "weights" / "v0.1" / "vgg.pth"
    ours = LPIPS(net="vgg", pnet_rand=True, model_path=linear)
    ours.load_state_dict(theirs.state_dict())
    x, y = (2 * each - 1 for each in pairs)
    with torch.no_grad():
        torch.testing.assert_close(ours(x, y), theirs(x, y), rtol=1e-5, atol=0)


@pytest.mark.parametrize("spatial", [False, True])
@pytest.mark.parametrize("normalize", [False, True])
def test_lpips(theirs, ours, pairs, spatial, normalize, monkeypatch):
    x, y = pairs if normalize else (each * 2 - 1 for each in pairs)
    monkeypatch.setattr(theirs, "spatial", spatial)
    ours.spatial = spatial
    most = 3e-6 if spatial else 1e-6
    assert (ours(x, y, normalize=normalize) - theirs(x, y, normalize=normalize)).abs().max() <= most


def test_gradients_of_lpips(theirs, ours, pairs):
    """In float64: photos have areas of one colour, where pools meet ties, among which float32's rounding chooses."""
    x, y = (each.double() * 2 - 1 for each in pairs)
    expected = value_and_gradient(theirs.double(), x, y)
    theirs.float()
    assert_near(value_and_gradient(ours.double(), x, y), expected, 1e-10)


def test_state_dicts_are_lpips(theirs, ours):
    state = theirs.state_dict()
    assert list(ours.state_dict()) == list(state)
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, state[name])
    ours.load_state_dict(state)


def test_torchmetrics(theirs, ours, model, pairs):
    pytest.importorskip("torchmetrics", reason="torchmetrics is not installed")
    from torchmetrics.functional.image import lpips as functional
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity as Theirs

    network = functional._NoTrainLpips(net="vgg", pnet_rand=True)
    network.load_state_dict(theirs.state_dict(), strict=False)
    for reduction in ("mean", "none"):
        metric = Theirs.__new__(Theirs)  # whose constructor would download the network
        super(Theirs, metric).__init__()
        metric.net, metric.reduction, metric.normalize = network, reduction, True
        metric.add_state("all_scores", default=[], dist_reduce_fx=None)
        mine = LearnedPerceptualImagePatchSimilarity(model, reduction, True)
        for each in (metric, mine):
            each.update(*(images[:1] for images in pairs))
        assert (mine(pairs[0][1:], pairs[1][1:]) - metric(pairs[0][1:], pairs[1][1:])).abs().max() <= 1e-6
        assert (mine.compute() - metric.compute()).abs().max() <= 1e-6


def test_piq(ours, model, pairs, torchvision):
    """Its means over channels are sums, and its Gram matrices are not divided: other weights give the same."""
    piq = pytest.importorskip("piq", reason="piq is not installed")
    x, y = pairs
    options = {"feature_extractor": model.features, "layers": ["3", "15"], "weights": [1.0, 0.5]}
    content = Perceptual({"relu1_2": 64.0, "relu3_3": 0.5 * 256}, model, "l2")
    assert_near([content(x, y)], [piq.ContentLoss(**options)(x, y)], 1e-6)
    style = Style({"relu1_2": (32 * 48.0) ** 2, "relu3_3": 0.5 * (8 * 12) ** 2}, model)
    assert_near([style(x, y)], [piq.StyleLoss(**options)(x, y)], 1e-6)
    theirs = piq.ContentLoss(
        model.features,
        [str(end - 1) for end in _ENDS],
        [lin.model[1].weight for lin in ours.lins],
        normalize_features=True,
    )
    assert (ours(x, y, normalize=True).mean() - theirs(x, y)).abs() <= 1e-6
