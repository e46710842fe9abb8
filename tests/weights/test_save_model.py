"""save_model keeps all that a network computes with, or names what a file cannot hold."""

import pytest
import torch
from torch import nn

import vggfast
from vggfast.weights import load_model, save_model


def _network():
    torch.manual_seed(0)
    return vggfast.VGG11(num_classes=5, width=0.125, hidden=32, pool_size=2, batch_norm=True).eval()


def every(kind, **settings):
    def change(model):
        for module in model.modules():
            if isinstance(module, kind):
                for name, value in settings.items():
                    setattr(module, name, value)

    return change


def put(path, layer):
    def change(model):
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, layer)

    return change


def transpose(model, state, prefix, local):
    state["classifier.3.weight"] = state["classifier.3.weight"].t()


def of_class(kind, path=""):
    return lambda model: setattr(model.get_submodule(path), "__class__", kind)


def dtype(kind, path=""):
    return lambda model: model.get_submodule(path).to(kind)


def weight(make):
    """Another weight of classifier.3 in its place, made of its values."""
    return lambda model: setattr(
        model.classifier[3], "weight", nn.Parameter(make(model.classifier[3].weight.detach()), requires_grad=False)
    )


class Stateful(nn.Dropout):
    def get_extra_state(self):
        return {"step": 3}

    def set_extra_state(self, state):
        pass


class Renaming(vggfast.VGG11):
    def state_dict(self, *args, **kwargs):
        return {f"net.{name}": tensor for name, tensor in super().state_dict(*args, **kwargs).items()}


class Doubling(vggfast.VGG11):
    def state_dict(self, *args, **kwargs):
        return {name: tensor * 2 for name, tensor in super().state_dict(*args, **kwargs).items()}


class Subclass(vggfast.VGG11):
    pass


class Scaled(torch.Tensor):
    pass


AGAIN = "arguments of the model must build it again, .*"
REFUSED = {
    "average pools": (put("features.3", nn.AvgPool2d(2)), r"features\.3 must be MaxPool2x2, got AvgPool2d"),
    "LeakyReLU": (put("features.2", nn.LeakyReLU(0.2)), r"features\.2 must be ReLU, got LeakyReLU"),
    "sigmoid at the end": (lambda m: m.classifier.append(nn.Sigmoid()), r"there must be no classifier\.7"),
    "AdaptiveMaxPool2d": (put("avgpool", nn.AdaptiveMaxPool2d(2)), "avgpool must be AdaptiveAvgPool2d, got Adaptive"),
    "another average": (put("avgpool", nn.AdaptiveAvgPool2d(3)), r"output_size of avgpool must be \(2, 2\), got 3"),
    "eps": (every(nn.BatchNorm2d, eps=0.1), r"eps of features\.1 must be 1e-05, got 0\.1"),
    "momentum": (every(nn.BatchNorm2d, momentum=None), r"momentum of features\.1 must be 0\.1, got None"),
    "statistics of the batch": (every(nn.BatchNorm2d, track_running_stats=False), "track_running_stats of features"),
    "no statistics": (put("features.1.running_mean", None), r"features\.1\.running_mean differ"),
    "no scale": (put("features.1", nn.BatchNorm2d(8, affine=False)), r"features\.1\.bias, features\.1\.weight differ"),
    "no bias": (put("features.0.bias", None), r"features\.0\.bias differ"),
    "padding mode": (every(nn.Conv2d, padding_mode="reflect"), r"padding_mode of features\.0 must be 'zeros', got"),
    "ceil mode": (every(nn.MaxPool2d, ceil_mode=True), r"ceil_mode of features\.3 must be False, got True"),
    "rate of one dropout": (put("classifier.2.p", 0.1), r"p of classifier\.2 must be 0\.5, got 0\.1"),
    "a buffer more": (lambda m: m.register_buffer("temperature", torch.ones(1)), "temperature differ"),
    "a parameter more": (put("temperature", nn.Parameter(torch.ones(1))), "temperature differ"),
    "a state that is no tensor": (of_class(Stateful, "classifier.2"), r"classifier\.2\._extra_state must be a tensor"),
    "other names": (of_class(Renaming), r"classifier\.0\.bias, .* differ"),
    "other values": (of_class(Doubling), r"features\.0\.weight must be the layer's own tensor in state_dict\(\)"),
    "a transposed view": (lambda m: m.register_state_dict_post_hook(transpose), r"classifier\.3\.weight must be the"),
    "tied layers": (lambda m: put("features.15", m.features[11])(m), r"features\.15\.weight must have memory of its"),
    "float64": (dtype(torch.float64), r"features\.0\.weight must be torch\.float32 or .*, got torch\.float64"),
    "float64 in one layer": (dtype(torch.float64, "classifier.3"), r"classifier\.3\.weight must be .*, got torch\.fl"),
    "complex": (weight(lambda t: t.to(torch.complex64)), r"classifier\.3\.weight must be .*, got torch\.complex64"),
    "integers": (weight(lambda t: t.to(torch.int8)), r"classifier\.3\.weight must be .*, got torch\.int8"),
    "sparse": (weight(lambda t: t.to_sparse()), r"classifier\.3\.weight must be a strided tensor, got .*sparse_coo"),
    "of a subclass": (weight(lambda t: t.as_subclass(Scaled)), r"classifier\.3\.weight must be a strided .* Scaled"),
    "without values": (dtype("meta", "classifier.3"), r"classifier\.3\.weight must have values"),
    "arguments of another": (lambda m: m.arguments.update(config="Z"), AGAIN + "'Z'"),
    "more arguments": (lambda m: m.arguments.update(extra=1), AGAIN + "'extra': 1"),
    "no number": (lambda m: m.arguments.update(pool_size="2"), AGAIN + "'2'"),
    "a tensor of arguments": (lambda m: m.arguments.update(dropout=torch.tensor(0.5)), "must build it again"),
}  # fmt: skip
KEPT = {
    "as built": lambda m: None,
    "not in place": every(nn.ReLU, inplace=False),
    "float16": dtype(torch.float16),
    "bfloat16": dtype(torch.bfloat16),
    "channels_last": lambda m: m.to(memory_format=torch.channels_last),
    "frozen": lambda m: m.requires_grad_(False),
    "a subclass": of_class(Subclass),
    "another size of the same": put("avgpool", nn.AdaptiveAvgPool2d(2)),
    "one value for all": put("features.0.bias", nn.Parameter(torch.ones(1).expand(8))),
    "training": lambda m: m.train(),
    "torch's own layers": put("features.3", nn.MaxPool2d((2, 2))),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_file_cannot_hold_is_named(name, tmp_path):
    change, message = REFUSED[name]
    model = _network()
    change(model)
    with pytest.raises(ValueError, match=message) as caught:
        save_model(model, tmp_path / "m.safetensors")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", KEPT)
def test_what_a_file_holds_comes_back(name, tmp_path):
    model = _network()
    KEPT[name](model)
    save_model(model, tmp_path / "m.safetensors")
    loaded, _ = load_model(tmp_path / "m.safetensors")
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded(x), model.float().eval()(x))


@pytest.mark.parametrize(("extra", "error", "message"), [
    ({"picture": torch.ones(1)}, ValueError, "extra must be of JSON's types.*Tensor"),
    ({1: "cat"}, ValueError, "keys must be strings, got 1"),
    ({"preprocessing": {"mean": [1, 2, 3]}}, ValueError, "extra's preprocessing a Preprocessing's: 'std'"),
    ({"preprocessing": vggfast.Preprocessing()}, ValueError, "extra's preprocessing a Preprocessing's"),
    (["cat"], TypeError, "extra must be a mapping, got list"),
])  # fmt: skip
def test_what_else_cannot_be_kept_is_named(extra, error, message, tmp_path):
    with pytest.raises(error, match=message):
        save_model(_network(), tmp_path / "m.safetensors", extra)


@pytest.mark.parametrize("name", ["m.pth", "m", "m.safetensors.bak"])
def test_a_name_by_which_it_would_not_be_read_again(name, tmp_path):
    with pytest.raises(ValueError, match=rf"path must end in \.safetensors, got .*{name}"):
        save_model(_network(), tmp_path / name)
