"""Keras' operators ahead of the first convolution, as preprocess_input leaves them in a model."""

import numpy as np
import pytest
import torch

import vggfast
from tests.support.comparisons import relative_error
from tests.support.foreign import keras_tensors, network
from tests.support.keras_models import by_layer, functional, layers_of, write_h5, write_keras
from vggfast.weights.formats import read

pytest.importorskip("h5py")
PIXELS = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
MEAN = [-103.939, -116.779, -123.68]
OPERATORS = "keras.src.ops.numpy"


def tensor(name):
    return {"class_name": "__keras_tensor__", "config": {"dtype": "float32", "keras_history": [name, 0, 0]}}


def constant(value, kind="__numpy__"):
    return {"class_name": kind, "config": {"value": value, "dtype": "float32"}}


def operator(kind, name, *args, module=OPERATORS, **config):
    """As `.keras` has it; `.h5` leaves the module out."""
    made = {"class_name": kind, "name": name, "config": {"name": name, **config},
            "inbound_nodes": [{"args": list(args), "kwargs": {}}]}  # fmt: skip
    return made | ({"module": module} if module else {})


def reversal(read="functional_input", name="stack", channels=(2, 1, 0), module=OPERATORS):
    ellipsis = {"class_name": "__ellipsis__", "config": {}}
    items = [operator("GetItem", f"{name}_{i}", tensor(read), [ellipsis, i], module=module) for i in channels]
    return [*items, operator("Stack", name, [tensor(each["name"]) for each in items], module=module, axis=-1)]


def on(kind, value, read="functional_input", first=True, **more):
    args = [tensor(read), value]
    return operator(kind, kind.lower(), *(args if first else args[::-1]), **more)


@pytest.fixture(scope="module")
def model():
    return network()


def written(folder, model, operators, suffix=".keras"):
    """A model with these behind its input, and the last of them before its layers."""
    tensors = keras_tensors(model)
    whole = functional(layers_of(tensors))
    layers = whole["config"]["layers"]
    layers[1]["inbound_nodes"][0]["args"] = [tensor(operators[-1]["name"])]
    layers[1:1] = operators
    path = folder / f"m{suffix}"
    (write_keras if suffix == ".keras" else write_h5)(path, whole, by_layer(tensors))
    return path


READ = {
    "to 0 to 1": ([on("TrueDivide", 255)], vggfast.Preprocessing(std=(255,) * 3, mean=(0,) * 3)),
    "a factor ahead": ([on("Multiply", 0.5, first=False)], vggfast.Preprocessing(std=(2,) * 3, mean=(0,) * 3)),
    "less a mean": ([on("Subtract", constant([1.0, 2, 3]))], vggfast.Preprocessing((1, 2, 3))),
    "as Caffe's": ([*reversal(), on("Add", constant([[[MEAN]]], "__tensor__"), "stack")],
                   vggfast.Preprocessing.caffe()),
    "reversed behind": ([on("Subtract", constant([1.0, 2, 3])), *reversal("subtract")],
                        vggfast.Preprocessing((3, 2, 1), order="BGR")),
    "reversed twice": ([*reversal(), *reversal("stack", "again"), on("Divide", 2.0, "again")],
                       vggfast.Preprocessing((0,) * 3, (2,) * 3)),
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_operators_become_preprocessing(tmp_path, model, name):
    operators, preprocessing = READ[name]
    found = read(written(tmp_path, model, operators))
    assert found.origin.startswith("the file (layer ")
    assert found.model.preprocessing.order == preprocessing.order
    scores = found.model(found.model.preprocessing.tensor(PIXELS)[None])
    assert relative_error(scores, model(preprocessing.tensor(PIXELS)[None])) < 1e-5


def test_h5_files_leave_the_module_out(tmp_path, model):
    operators = [*reversal(module=None), on("Add", constant(MEAN), "stack", module=None)]
    found = read(written(tmp_path, model, operators, ".h5")).model
    assert found.preprocessing.order == "BGR"
    assert torch.allclose(torch.tensor(found.preprocessing.mean), -torch.tensor(MEAN))


REFUSED = {
    "less than zero": ([on("Multiply", -1.0)], "multiply must have scales greater than 0"),
    "a number less the image": ([on("Subtract", 1.0, first=False)], "subtract is a Subtract with"),
    "a number by the image": ([on("Divide", 1.0, first=False)], "divide is a Divide with"),
    "by zero": ([on("TrueDivide", 0.0)], "truedivide is a TrueDivide with"),
    "whole numbers, which wrap around": ([on("Subtract", 127)], "subtract is a Subtract with 127"),
    "along the rows": ([on("Add", constant([[[1.0]], [[2.0]], [[3.0]]]))], "add must have .* along the channels"),
    "an operator of somebody's own": ([on("Add", 1.0, module="mine")], "add is an Add of another package with 1.0"),
    "another operator": ([on("Power", 2.0)], "power is a Power with 2.0"),
    "other orders": (reversal(channels=(0, 2, 1)), "input is read by stack_0, stack_2, stack_1"),
    "a channel of what else is read": ([*reversal()[:2], operator("GetItem", "stack_0", tensor("stack"), [0]),
                                        reversal()[3]], "input is read by stack_2, stack_1"),
    "two channels": (reversal(channels=(2, 1)), "input is read by stack_2, stack_1"),
}  # fmt: skip


@pytest.mark.parametrize(("operators", "message"), REFUSED.values(), ids=REFUSED)
def test_other_operators_are_named(tmp_path, model, operators, message):
    with pytest.raises(ValueError, match=rf"m\.keras: layer .*{message}"):
        read(written(tmp_path, model, operators))
