"""What a run starts from: the first weights, which of them are trained, and on what pixels."""

import contextlib
import copy
from pathlib import Path

import pytest
import torch

from tests.training.test_train_step import _small
from tests.training.test_trainer import _config
from vggfast import VGG, Preprocessing
from vggfast.runs.config import TrainConfig
from vggfast.tasks import build_trainer
from vggfast.training.build import build_optimiser, named_layers, start_from
from vggfast.weights import load_model, save_model

pytestmark = pytest.mark.usefixtures("one_thread")


def test_deeper_nets_start_from_a(tmp_path):
    a, d = _small("A"), _small("D")
    before = copy.deepcopy(d)
    save_model(a, tmp_path / "a.safetensors")
    start_from(d, tmp_path / "a.safetensors", "ends")
    ours, theirs = named_layers(d), named_layers(a)
    assert [name for name in ours if name not in theirs] == ["conv1_2", "conv2_2", "conv3_3", "conv4_3", "conv5_3"]
    assert list(theirs)[-3:] == ["fc1", "fc2", "fc3"]
    taken = {"conv1_1", "conv2_1", "conv3_1", "conv3_2", "fc1", "fc2", "fc3"}
    for name, layer in ours.items():
        source = theirs[name] if name in taken else named_layers(before)[name]
        assert torch.equal(layer.weight, source.weight), name


def test_a_start_that_does_not_fit(tmp_path):
    save_model(_small("A", hidden=9), tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"fc1\.weight must have shape \(8, 51\), got \(9, 51\)"):
        start_from(_small("B"), tmp_path / "a.safetensors", "ends")
    with pytest.raises(ValueError, match=r"a\.safetensors, whose features\.2\.weight must have shape .*, got None"):
        start_from(_small("D", hidden=9), tmp_path / "a.safetensors", "all")


def test_a_second_scale_starts_from_the_whole_net(photos, tmp_path):
    build_trainer(_config(photos, steps=2), tmp_path / "first").run()
    start = tmp_path / "first" / "model.safetensors"
    trainer = build_trainer(_config(photos, init_from=str(start), init_layers="all"), tmp_path / "second")
    donor = load_model(start)[0].state_dict()
    assert all(torch.equal(value, donor[name]) for name, value in trainer.model.state_dict().items())


def _published(tmp_path, preprocessing=None, **arguments):
    """A file of convolutions alone, as `vggfast weights get` writes it."""
    model = VGG("A", width=0.1, head="none", **arguments)
    model.preprocessing = preprocessing
    save_model(model, tmp_path / "published.safetensors")
    return str(tmp_path / "published.safetensors"), model


@pytest.mark.parametrize("batch_norm", [False, True])
def test_fc_layers_alone_on_published_convolutions(photos, tmp_path, batch_norm):
    start, donor = _published(tmp_path, Preprocessing.caffe(), batch_norm=batch_norm)
    changes = {"init_from": start, "init_layers": "features", "train_layers": "fc", "preprocessing": "caffe"}
    trainer = build_trainer(_config(photos, steps=2, width=0.1, batch_norm=batch_norm, **changes), tmp_path / "run")
    first = copy.deepcopy(trainer.model.classifier.state_dict())
    assert trainer.run()
    trained = load_model(tmp_path / "run" / "model.safetensors")[0]
    assert all(torch.equal(t, donor.features.state_dict()[name]) for name, t in trained.features.state_dict().items())
    assert not any(torch.equal(t, first[name]) for name, t in trained.classifier.state_dict().items())
    assert trained.preprocessing == Preprocessing.caffe()


@pytest.mark.parametrize(
    ("theirs", "ours", "fits"),
    [
        (Preprocessing.caffe(), "caffe", True),
        (Preprocessing.caffe(), "measured", False),
        (Preprocessing.caffe(), "torchvision", False),
        (Preprocessing.torchvision(), "measured", False),
        (Preprocessing((1.0, 2.0, 3.0)), "measured", True),
        (Preprocessing((1.0, 2.0, 3.0)), "caffe", False),
        (None, "caffe", True),
    ],
)
def test_a_network_starts_only_from_one_that_saw_the_same_pixels(tmp_path, theirs, ours, fits):
    start, _ = _published(tmp_path, theirs)
    message = f"must be trained on this run's preprocessing, '{ours}', got"
    expected = contextlib.nullcontext() if fits else pytest.raises(ValueError, match=message)
    with expected:
        start_from(_small("A"), Path(start), "features", ours)


def test_only_weights_decay():
    model = _small("A", batch_norm=True)
    groups = build_optimiser(TrainConfig(decay_all=False), model).param_groups
    assert [group["weight_decay"] for group in groups] == [5e-4, 0.0]
    assert all(p.dim() > 1 for p in groups[0]["params"])
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
