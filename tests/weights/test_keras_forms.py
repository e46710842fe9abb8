"""Keras' files of unusual forms: models within by other nodes, weights that say no more than their layers' classes."""

import numpy as np
import pytest
import torch

from tests.support.foreign import keras_tensors, network
from tests.support.keras_models import by_layer, functional, layer, layers_of, write_keras
from vggfast.weights.formats import read
from vggfast.weights.formats._keras_graph import in_order

pytest.importorskip("h5py")


@pytest.fixture(scope="module")
def model():
    return network()


@pytest.fixture
def tensors(model):
    return keras_tensors(model)


def test_a_model_within_by_its_second_node(tmp_path, tensors, model):
    """Keras 2 counts the node by which a model was made, and leaves it out of the file."""
    layers = layers_of(tensors)
    at = next(i for i, each in enumerate(layers) if each["config"]["name"] == "block5_pool") + 1
    within = functional(layers[:at], name="vgg", version=2)
    whole = functional([within, *layers[at:]], name="outer", version=2)
    whole["config"]["layers"][2]["inbound_nodes"] = [[["vgg", 1, 0, {}]]]
    write_keras(tmp_path / "m.keras", whole, by_layer(tensors))
    found = read(tmp_path / "m.keras")
    assert found.part == "the whole network"
    for name, tensor in model.state_dict().items():
        assert torch.equal(found.model.state_dict()[name], tensor), name


def test_many_outputs_take_no_time():
    """A config whose outputs are gone through for each layer would take minutes."""
    whole = functional([layer("Dropout", f"d{i}") for i in range(5000)])
    whole["config"]["output_layers"] = [["nowhere", 0, 0]] * 400_000
    *_, last = in_order(whole)
    assert (last.name, last.kind) == ("d4999", "read by nothing")


def test_weights_alone_of_a_network_that_prepares_its_images(tmp_path, tensors):
    import h5py

    with h5py.File(tmp_path / "m.weights.h5", "w") as file:
        for name, values in by_layer(tensors).items():
            group = file.create_group(f"layers/{name}/vars")
            for i, value in enumerate(values):
                group[str(i)] = np.asarray(value)
        file.create_group("layers/rescaling/vars")
    notes = read(tmp_path / "m.weights.h5").notes
    assert "its layer rescaling prepares the images, and the file does not say how: give --preprocessing" in notes
