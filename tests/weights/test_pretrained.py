"""What `weights=` and ``vggfast convert`` take: each wrapping gives the network's tensors, or an error names it."""

import argparse
import datetime
import enum
import json
import pathlib
import pickle
import threading

import numpy as np
import pytest
import torch
from torch import nn

import vggfast
from tests.support.exported import Vgg
from vggfast.io import METADATA, write_safetensors
from vggfast.weights import read_state_dict, save_model
from vggfast.weights.convert import write
from vggfast.weights.formats import Found, read

SIZES = {"width": 0.125, "hidden": 32, "pool_size": 2}


def _state(build=vggfast.vgg11, **arguments):
    torch.manual_seed(0)
    return build(num_classes=7, **SIZES, **arguments).state_dict()


SD = _state()
TRUNK = {name: tensor for name, tensor in SD.items() if name.startswith("features")}
ADAM = {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]}


def _prefixed(prefix, state=SD):
    return {prefix + name: tensor for name, tensor in state.items()}


def _within(part):
    return {name.replace("features.", f"features.{part}."): tensor for name, tensor in SD.items()}


def _averaged():
    model = vggfast.VGG11(num_classes=7, **SIZES)
    model.load_state_dict(SD)
    return torch.optim.swa_utils.AveragedModel(model).state_dict()


# By what people call it: the checkpoint, and the key where it needs one.
WRAPPINGS = {
    "as it is": (SD, None),
    **{prefix: (_prefixed(prefix), None) for prefix in (
        "module.", "model.", "_orig_mod.", "net.", "network.", "backbone.", "encoder.", "teacher.", "module.module.",
        "_orig_mod.module.", "model.vgg.", "_fsdp_wrapped_module.")},
    **{f"features.{part}": (_within(part), None) for part in ("module", "_orig_mod", "_checkpoint_wrapped_module")},
    **{key: ({key: SD, "epoch": 3, "best": torch.tensor(0.5)}, None) for key in (
        "state_dict", "model", "model_ema", "ema", "net", "network", "model_state_dict", "params", "module")},
    "nested": ({"model": {"state_dict": _prefixed("module.")}}, None),
    "with arguments": ({"model": SD, "args": argparse.Namespace(lr=0.1, out=pathlib.Path("runs"))}, None),
    "with NumPy's values": ({"model": SD, "best": np.float64(0.5), "step": np.int64(3), "lrs": np.ones(3)}, None),
    "with an optimiser": ({"model": SD, "optimizer": ADAM, "optimizer_by_name": SD, "scaler": {}}, None),
    "of Lightning": ({"state_dict": _prefixed("model."), "pytorch-lightning_version": "2.1", "loops": {"fit": {}},
                      "optimizer_states": [ADAM], "hyper_parameters": {"lr": 0.1}}, None),
    "of mmpretrain": ({"meta": {"epoch": 1, "mean": torch.ones(3)}, "state_dict": _prefixed("backbone.")}, None),
    "of NumPy": ({name: tensor.numpy() for name, tensor in SD.items()}, None),
    "averaged": (_averaged(), None),
    "of timm, the average": ({"state_dict": _prefixed("x."), "state_dict_ema": SD, "arch": "vgg11"}, "state_dict_ema"),
    "two networks": ({**_prefixed("teacher."), **_prefixed("student.", _state(init_weights=False))}, "teacher"),
    "a loss beside": ({"state_dict": {**_prefixed("model."), "loss.weight": torch.ones(7)}}, "state_dict.model"),
    "one network of two": ({"state_dict": {**_prefixed("module.a."), **_prefixed("module.b.")}}, "module.a"),
    "with other values": ({"model": SD, "date": datetime.datetime.now(), "layers": frozenset({3})}, None),
    "with the dense head's shapes": (_state(head="conv"), None),
}  # fmt: skip


@pytest.mark.parametrize("name", WRAPPINGS)
def test_wrappings_are_taken_off(name, tmp_path):
    checkpoint, key = WRAPPINGS[name]
    torch.save(checkpoint, tmp_path / "m.pth")
    for model in (
        vggfast.vgg11(weights=checkpoint, key=key, **SIZES),
        vggfast.vgg11(weights=str(tmp_path / "m.pth"), key=key, **SIZES),
        read(tmp_path / "m.pth", key=key).model,
    ):
        found = model.state_dict()
        assert found.keys() == SD.keys()
        assert all(torch.equal(found[name], SD[name]) for name in SD)


@pytest.mark.parametrize("prefix", ["module.", "model.features.module."])
def test_names_in_safetensors_are_unwrapped(tmp_path, prefix):
    from safetensors.torch import save_file

    save_file(_prefixed(prefix.removesuffix("features.module."), _within("module")), tmp_path / "m.safetensors")
    found = read_state_dict(tmp_path / "m.safetensors")
    assert all(torch.equal(found[name], SD[name]) for name in SD)
    assert found.keys() == SD.keys()
    assert torch.equal(read(tmp_path / "m.safetensors").model.features[0].weight, SD["features.0.weight"])


@pytest.mark.parametrize(("build", "positions"), [(vggfast.vgg11, (0, 3, 6, 8, 11, 13, 16, 18)),
                                                  (vggfast.vgg11_bn, (0, 4, 8, 11, 15, 18, 22, 25))])  # fmt: skip
def test_convolutions_without_biases(tmp_path, build, positions):
    state = _state(build)
    for position in positions:
        del state[f"features.{position}.bias"]
    torch.save(state, tmp_path / "m.pth")
    for model in (build(weights=state, **SIZES), read(tmp_path / "m.pth").model):
        found = model.state_dict()
        assert all(torch.equal(found[name], state[name]) for name in state)
        assert not any(found[f"features.{position}.bias"].any() for position in positions)
    state["features.0.bias"] = torch.ones(8)
    with pytest.raises(ValueError, match=rf"missing: features\.{positions[1]}\.bias, .* and 3 more"):
        build(weights=state, **SIZES)


def test_batch_norm_that_counts_no_batches():
    state = {name: t for name, t in _state(vggfast.vgg11_bn).items() if not name.endswith("num_batches_tracked")}
    assert torch.equal(vggfast.vgg11_bn(weights=state, **SIZES).features[1].weight, state["features.1.weight"])


@pytest.mark.parametrize("state", [TRUNK, {name[9:]: t for name, t in TRUNK.items()}, _prefixed("vgg.", TRUNK)])
def test_convolutions_alone(state):
    model = vggfast.vgg11(weights=state, head="none", width=0.125)
    assert torch.equal(model.features[3].weight, SD["features.3.weight"])
    with pytest.raises(ValueError, match=r"weights must have .* vgg11: missing: classifier.* \(head='none' takes"):
        vggfast.vgg11(weights=state, **SIZES)


def test_fc_layers_are_left_out_with_a_word():
    with pytest.warns(UserWarning, match=r"weights: the FC layers are left out, .* \(head='none'\)"):
        model = vggfast.vgg11(weights=SD, head="none", width=0.125)
    assert torch.equal(model.features[0].weight, SD["features.0.weight"])


def test_the_dense_head_takes_the_linear_ones_weights():
    dense, x = vggfast.vgg11(weights=SD, head="conv", **SIZES).eval(), torch.rand(1, 3, 64, 64)
    assert torch.equal(dense.classifier[0].weight.flatten(), SD["classifier.0.weight"].flatten())
    assert torch.allclose(dense(x), vggfast.vgg11(weights=SD, **SIZES).eval()(x), atol=1e-5)


def test_the_scales_of_a_quantised_file_are_kept(tmp_path):
    """So that the engine computes as of the file's own model; a part of it says that it has none."""
    quantised = read(Vgg().exported().module(), preprocessing=vggfast.Preprocessing.torchvision()).model
    sizes = {name: quantised.arguments[name] for name in ("width", "hidden", "pool_size")}
    whole, trunk, x = tmp_path / "m.safetensors", tmp_path / "t.safetensors", torch.randn(2, 3, 64, 64)
    save_model(quantised, whole)
    maps = read(whole, features_only=True).model
    save_model(maps, trunk)
    with pytest.warns(UserWarning, match="the FC layers are left out"):
        without_head = vggfast.vgg11(weights=whole, head="none", **sizes)
    for model, expected in (
        (vggfast.vgg11(weights=whole, **sizes), quantised),
        (vggfast.vgg11(weights=whole, head="conv", **sizes), quantised),
        (without_head, maps),
        (vggfast.vgg11(weights=trunk, head="none", **sizes), maps),
    ):
        engines = [vggfast.Engine(each.eval(), dtype="int8", size=64) for each in (model, expected)]
        assert torch.equal(*(engine(x) for engine in engines))
    said = r"calibration must be .*, got None, and the model has no quantisation of its own, as no part of one has"
    with pytest.raises(ValueError, match=said):
        vggfast.Engine(model.features, dtype="int8")
    assert vggfast.vgg11(weights=SD, **SIZES).quantisation is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn])
def test_other_floating_dtypes(dtype):
    model = vggfast.vgg11(weights={name: tensor.to(dtype) for name, tensor in SD.items()}, **SIZES)
    assert model.features[0].weight.dtype == torch.float32
    assert torch.equal(model.features[0].weight, SD["features.0.weight"].to(dtype).float())


def _with(value, name="classifier.3.weight"):
    return {**SD, name: value(SD[name])}


class Scaled(torch.Tensor):
    pass


@pytest.mark.parametrize(("state", "message"), [
    ({"epoch": 3, "optimizer": ADAM}, "weights holds no state_dict: .* got epoch, optimizer"),
    ({}, "weights holds no state_dict: .* got nothing"),
    ({"model": SD, "model_ema": SD}, "weights holds several state_dicts, model, model_ema: key, or"),
    ({"encoder": SD, "momentum_encoder": SD}, "weights holds several state_dicts, encoder, momentum_encoder: key, or"),
    ({**_prefixed("teacher."), **_prefixed("student.")}, r"left over: teacher\.features.*key='teacher' takes"),
    # What stands before it in the sequence is not known.
    (_prefixed("1."), r"left over: 1\.features\.0\.weight.*\(key='1' takes what is behind"),
    ({"module.features.0.bias": torch.ones(8), **SD}, r"left over: module\.features\.0\.bias"),
    ({name[11:]: t for name, t in SD.items() if name not in TRUNK}, r"missing: features\.0\.weight.*left over: 0\.wei"),
    (_state(vggfast.vgg11_bn), r"must have the tensors of vgg11: .*left over: features\.1\.weight"),
    (_with(lambda t: t.tolist()), r"weights: classifier\.3\.weight must be a tensor, got list"),
    (_with(lambda t: None), r"weights: classifier\.3\.weight must be a tensor, got None"),
    (_with(lambda t: np.array([object()])), r"weights: classifier\.3\.weight must be a tensor, got ndarray"),
    (_with(lambda t: t.to_sparse()), r"weights: classifier\.3\.weight must be a plain tensor, .*sparse_coo"),
    (_with(lambda t: t.to("meta")), r"weights: classifier\.3\.weight must have values"),
    (_with(lambda t: t.as_subclass(Scaled)), r"weights: classifier\.3\.weight must be a plain tensor, got a Scaled"),
    (_with(lambda t: t.int()), r"classifier\.3\.weight must have a floating-point dtype, got torch\.int32"),
    (_with(lambda t: t[1:]), r"vgg11: classifier\.3\.weight must have shape \(32, 32\), got \(31, 32\)"),
    (_with(lambda t: t / 0), r"weights: 1024 of the 1024 values of classifier\.3\.weight are not finite"),
    (_with(lambda t: t[0, 0], "classifier.6.weight"), r"classifier\.6\.weight must have shape \(1000, 32\).* \(\)"),
    ({3: torch.ones(1), **SD}, "weights must have names of tensors, got 3"),
])  # fmt: skip
def test_what_is_no_such_network_is_named(state, message):
    with pytest.raises(ValueError, match=message) as caught:
        vggfast.vgg11(weights=state, **SIZES)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("content", "message"), [
    ([SD], "holds no state_dict: it must be a mapping from names to tensors, got list"),
    ({"model": SD, "ema": SD}, "holds several state_dicts, model, ema: key, or convert's --key, says which"),
    ({"model": nn.ReLU()}, r"it holds an object of torch\.nn\.modules\.activation\.ReLU, whose code would run"),
    (_with(lambda t: 3), r"classifier\.3\.weight must be a tensor, got int"),
])  # fmt: skip
def test_files_of_no_such_network_are_named(tmp_path, content, message):
    torch.save(content, tmp_path / "m.pth")
    for reader in (lambda path: vggfast.vgg11(weights=path), read):
        with pytest.raises(ValueError, match=rf"m\.pth.* {message}"):
            reader(tmp_path / "m.pth")


@pytest.mark.filterwarnings("ignore")
def test_a_program_of_torchscript_is_named(tmp_path):
    torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)).save(str(tmp_path / "m.pt"))
    with pytest.raises(ValueError, match=r"m\.pt .*it holds a program of TorchScript"):
        read_state_dict(tmp_path / "m.pt")


def test_keys_that_are_not_there_are_named(tmp_path):
    with pytest.raises(ValueError, match="key must be one of model, ema in weights, got 'average'"):
        vggfast.vgg11(weights={"model": SD, "ema": SD}, key="average")
    with pytest.raises(ValueError, match=r"key must be a prefix of names in weights \(features.*got 'teacher'"):
        vggfast.vgg11(weights=SD, key="teacher")
    path = tmp_path / "m.safetensors"
    vggfast.weights.save_model(vggfast.VGG11(**SIZES), path)
    with pytest.raises(ValueError, match=r"key must be left out for .*m\.safetensors, whose format is ours, got 'ema'"):
        read(path, key="ema")


def test_any_number_of_threads_may_load(tmp_path):
    torch.save({"model": SD, "args": argparse.Namespace()}, tmp_path / "m.pth")
    found = []
    threads = [threading.Thread(target=lambda: found.append(read_state_dict(tmp_path / "m.pth"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert argparse.Namespace not in torch.serialization.get_safe_globals()


# ---- torchvision's forms ---------------------------------------------------------------------------------------------


class VGG11_Weights(enum.Enum):  # noqa: N801
    IMAGENET1K_V1 = "of 2014"
    DEFAULT = IMAGENET1K_V1

    def get_state_dict(self, **arguments):
        if self.value == "absent":
            raise OSError("no network")
        return SD


class VGG19_Weights(enum.Enum):  # noqa: N801
    DEFAULT = "of another"


@pytest.fixture
def enums(torchvision, monkeypatch):
    for kind in (VGG11_Weights, VGG19_Weights):
        monkeypatch.setattr(torchvision.models, kind.__name__, kind)


@pytest.mark.parametrize("arguments", [
    {"weights": VGG11_Weights.DEFAULT}, {"weights": "DEFAULT"}, {"weights": "IMAGENET1K_V1"},
    {"weights": "VGG11_Weights.DEFAULT"}, {"weights": True}, {"pretrained": True},
])  # fmt: skip
def test_torchvisions_forms(enums, arguments):
    model = vggfast.vgg11(**arguments, **SIZES)
    assert torch.equal(model.features[0].weight, SD["features.0.weight"])
    if "weights" in arguments:
        assert torch.equal(vggfast.vgg11(arguments["weights"], False, **SIZES).state_dict()["features.0.weight"],
                           SD["features.0.weight"])  # fmt: skip


@pytest.mark.parametrize("arguments", [{"weights": None}, {"weights": False}, {"pretrained": False}, {}])
def test_forms_of_no_weights(arguments):
    torch.manual_seed(0)
    first = vggfast.vgg11(num_classes=7, **arguments, **SIZES).features[0].weight
    assert torch.equal(first, SD["features.0.weight"])


def test_a_file_of_an_enums_name_is_the_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(SD, "DEFAULT")
    assert vggfast.vgg11(weights="DEFAULT", **SIZES).classifier[6].out_features == 7


@pytest.mark.parametrize(("arguments", "error", "message"), [
    ({"weights": VGG19_Weights.DEFAULT}, ValueError, "weights of vgg11 must be of VGG11_Weights, got VGG19_W"),
    ({"weights": "VGG19_Weights.DEFAULT"}, ValueError, "weights of vgg11 must be of VGG11_Weights, got VGG19_Weights"),
    ({"weights": "IMAGENET1K_V7"}, ValueError, "weights must be one of IMAGENET1K_V1.* VGG11_Weights.IMAGENET1K_V7"),
    ({"weights": "VGG99_Weights.DEFAULT"}, ValueError, "weights must be an enum of torchvision's, got VGG99_Weights"),
    ({"weights": True, "pretrained": True}, ValueError, "pretrained must be left out where weights are given"),
    ({"pretrained": "imagenet"}, TypeError, "pretrained must be True or False, got 'imagenet'"),
    ({"weights": "imagenet"}, FileNotFoundError, "imagenet: no such weight file; weights must be a path, a state_dict"),
    ({"weights": 3}, TypeError, "weights must be a path, .* got int"),
    ({"weights": nn.ReLU()}, TypeError, "weights must be a path, .* got ReLU"),
    ({"weights": VGG11_Weights.DEFAULT, "num_classes": 9}, ValueError,
     "num_classes must be 7, as in VGG11_Weights.IMAGENET1K_V1, got 9"),
])  # fmt: skip
def test_forms_that_are_refused(enums, arguments, error, message):
    with pytest.raises(error, match=message):
        vggfast.vgg11(**arguments, **SIZES)


def test_weights_that_cannot_be_downloaded(monkeypatch):
    monkeypatch.setattr(VGG11_Weights.DEFAULT, "_value_", "absent")
    with pytest.raises(OSError, match=r"VGG11_Weights.IMAGENET1K_V1 could not be downloaded: no network"):
        vggfast.vgg11(weights=VGG11_Weights.DEFAULT)


@pytest.mark.parametrize("error", [RuntimeError("PytorchStreamReader"), EOFError("Ran out"), pickle.UnpicklingError()])
def test_what_a_download_left_broken_is_named(monkeypatch, error):
    def read(self, **arguments):
        raise error

    monkeypatch.setattr(VGG11_Weights, "get_state_dict", read)
    with pytest.raises(ValueError, match=r"VGG11_Weights.IMAGENET1K_V1 cannot be read: remove its file from .*checkpo"):
        vggfast.vgg11(weights=VGG11_Weights.DEFAULT)


# ---- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("as_file", [False, True])
@pytest.mark.parametrize(("build", "name", "change", "message"), [
    (vggfast.vgg11, "features.3.weight", lambda t: t / 0, "are not finite"),
    (vggfast.vgg11_bn, "features.1.running_var", lambda t: -t, "are negative, as no variance is"),
])  # fmt: skip
def test_values_that_are_not_finite(tmp_path, as_file, build, name, change, message):
    weights = _state(build)
    weights[name] = change(weights[name])
    if as_file:
        torch.save(weights, tmp_path / "m.pth")
    given = tmp_path / "m.pth" if as_file else weights
    with pytest.raises(ValueError, match=rf"{given if as_file else 'weights'}: .* of {name} {message}"):
        build(weights=given, **SIZES)
    taken = build(weights=given, allow_non_finite=True, **SIZES)
    assert torch.equal(taken.state_dict()[name].isnan(), weights[name].isnan())


def test_values_that_the_network_does_not_take_may_be_anything(tmp_path):
    """As the FC layers of VGG16_Weights.IMAGENET1K_FEATURES, which are NaN."""
    torch.save({**SD, "classifier.3.weight": SD["classifier.3.weight"] / 0}, tmp_path / "m.pth")
    with pytest.warns(UserWarning, match="the FC layers are left out"):
        assert vggfast.vgg11(weights=tmp_path / "m.pth", head="none", **SIZES).features[0].weight.isfinite().all()


def test_values_too_large_for_float32():
    wide = {name: tensor.double() for name, tensor in SD.items()}
    with pytest.raises(ValueError, match=r"weights: features\.0\.bias must be finite in torch\.float32.* too large"):
        vggfast.vgg11(weights={**wide, "features.0.bias": wide["features.0.bias"] + 1e300}, **SIZES)


@pytest.mark.parametrize("to", ["ours", "torchvision"])
def test_the_preprocessing_of_a_file_is_the_networks(tmp_path, to):
    model = vggfast.VGG11(num_classes=7, **SIZES)
    model.preprocessing = vggfast.Preprocessing((0.5, 0.4, 0.3), (0.229, 0.224, 0.225), top=1.0)
    write(Found(model, "ours", "", ""), tmp_path / "m.safetensors", to)
    assert vggfast.vgg11(weights=tmp_path / "m.safetensors", **SIZES).preprocessing == model.preprocessing


def test_preprocessing_that_is_damaged_is_named(tmp_path):
    metadata = {METADATA: json.dumps({"extra": {"preprocessing": {"mean": 3}}})}
    write_safetensors(tmp_path / "m.safetensors", SD, metadata)
    with pytest.raises(ValueError, match=r"m\.safetensors: its preprocessing must be"):
        vggfast.vgg11(weights=tmp_path / "m.safetensors", **SIZES)


def test_an_enums_name_without_torchvision(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torchvision.models", None)
    with pytest.raises(ImportError, match=r"weights VGG11_Weights.DEFAULT come from the package torchvision"):
        vggfast.vgg11(weights="DEFAULT")


def test_only_two_arguments_go_by_their_places():
    with pytest.raises(TypeError, match="vgg11 takes weights and progress without their names, got 3 arguments"):
        vggfast.vgg11(None, True, 10)
