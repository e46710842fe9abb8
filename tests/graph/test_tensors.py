"""Tensors of a network that nobody can compute with: each reader names the layer."""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import vggfast
from tests.graph.networks import network
from tests.graph.test_readers import READERS, X

pytestmark = pytest.mark.usefixtures("one_thread")


def test_tensors_without_values_are_named(tmp_path):
    for reader in ("Engine", "Evaluator", "Extractor", "save_model", "onnx"):
        model = network()
        model.classifier[3].to("meta")
        with torch.no_grad(), pytest.raises((TypeError, ValueError), match=r"classifier\.3.* must"):
            list(READERS[reader](model, torch.rand(1, 3, X, X), tmp_path))


def test_a_fake_network_is_named():
    with FakeTensorMode():
        model = network()
    with pytest.raises(TypeError, match=r"features\.0 must have tensors with values, got torch\.FakeTensor of shape"):
        vggfast.Engine(model)


@pytest.mark.parametrize("path", ["features.3", "classifier.3"])
@pytest.mark.parametrize("reader", ["Engine", "Evaluator", "Extractor", "save_model", "onnx"])
def test_tensors_whose_memory_was_freed_are_named(reader, path, tmp_path):
    """As FSDP frees them between two calls."""
    model = network()
    model.get_submodule(path).weight.data.untyped_storage().resize_(0)
    with torch.no_grad(), pytest.raises(ValueError, match=rf"{path}.* must have \d+ bytes of memory .*, got 0: freed"):
        list(READERS[reader](model, torch.rand(1, 3, X, X), tmp_path))


def _of_shape(path, name, *shape):
    return lambda model: setattr(model.get_submodule(path), name, nn.Parameter(torch.ones(shape)))


@pytest.mark.parametrize(("change", "text"), [
    (_of_shape("features.4", "weight", 1), r"features\.4 is Conv3x3.*: its weight must have 4 axes, got \(1,\)"),
    (_of_shape("features.1", "weight", 1), r"features\.1 is BatchNorm2d.*: its weight must have shape \(8,\), got"),
    (_of_shape("features.0", "bias", 1), r"features\.0 is Conv3x3.*: its bias must have shape \(8,\), got \(1,\)"),
    (_of_shape("classifier.3", "bias", 2, 32), r"classifier\.3 .*: its bias must have shape \(32,\), got \(2, 32\)"),
    (_of_shape("classifier.3", "weight", 32), r"classifier\.3 .*: its weight must have 2 axes, got \(32,\)"),
    (lambda m: setattr(m.features[4], "weight", None), r"features\.4 .*: its weight must have 4 axes, got None"),
    (lambda m: delattr(m.classifier[3], "weight"), r"classifier\.3 .*: it must have weight, which was deleted"),
])  # fmt: skip
@pytest.mark.parametrize("reader", ["Engine", "Evaluator", "Extractor", "onnx"])
def test_tensors_of_other_shapes_are_named(reader, change, text, tmp_path):
    model = network(batch_norm=True)
    change(model)
    with torch.no_grad(), pytest.raises(TypeError, match=text):
        list(READERS[reader](model, torch.rand(1, 3, X, X), tmp_path))


@pytest.mark.parametrize("kind", [torch.nn.Parameter(torch.zeros(4, 3, 3, 3).to_sparse()), "subclass"])
def test_weights_that_are_no_plain_tensors(kind):
    conv = nn.Conv2d(3, 4, 3, padding=1)
    if kind == "subclass":
        kind = nn.Parameter(conv.weight.detach().as_subclass(type("Scaled", (torch.Tensor,), {})))
    conv.weight = kind
    with pytest.raises(TypeError, match=r"model\.0 is Conv2d.*: weight must be a strided tensor, got "):
        vggfast.graph.whole(nn.Sequential(conv))
