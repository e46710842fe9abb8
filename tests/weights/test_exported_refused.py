"""What torch.export makes of networks that are no VGG's, or of other 8 bits: refused by the name of the node; and files
that are damaged."""

import io
import json
import pickle
import random
import zipfile

import pytest
import torch
from torch import nn

import vggfast
from tests.support.exported import Layer, Rounded, Vgg
from tests.weights.test_exported import in_floats, in_rows, saved
from vggfast.weights.formats import read

pytestmark = pytest.mark.usefixtures("one_thread")
PREPROCESSING = vggfast.Preprocessing.torchvision()
ALLOWED = "a layer reads uint8 with zero point 0, or int8 with -128"
EIGHT = "reads 8 bits, and its weight must be of 8 bits too: less a zero point, -128 to 127 of a scale for each output"


def rounds(number, *settings):
    """Another rounding in the place of one."""
    return lambda vgg: vgg.layers.__setitem__(vgg.of(Rounded)[number], Rounded(0.05, *settings))


def layer(number, **attributes):
    def change(vgg):
        found = vgg.layers[vgg.of(Layer)[number]]
        for name, value in attributes.items():
            setattr(found, name, value(found))

    return change


def insert(number, module, kind=Layer):
    return lambda vgg: vgg.layers.insert(vgg.of(kind)[number], module)


def as_floats(number, module):
    return lambda vgg: vgg.layers.__setitem__(vgg.of(Layer)[number], module)


class Twice(nn.Module):
    def forward(self, x):
        return x + x.relu()


REFUSED = {
    "a zero point": (rounds(1, 3, 0, 255, torch.uint8),
                     f"rounds to uint8 from 0 to 255 with zero point 3 what node .*, a max-pool, reads: {ALLOWED}"),
    "a reduced range": (rounds(1, 0, 0, 127, torch.uint8),
                        f"rounds to uint8 from 0 to 127 with zero point 0 what node .*, a max-pool, reads: {ALLOWED}"),
    "int8 around 0": (rounds(1, 0, -128, 127, torch.int8), f"to int8 from -128 to 127 with zero point 0.*{ALLOWED}"),
    "int16": (rounds(1, 0, 0, 255, torch.int16), "must round to uint8 or int8, got torch.int16"),
    "two roundings": (rounds(2, 0, 0, 255, torch.uint8), "between two layers there must be one rounding"),
    "a convolution of floats": (as_floats(2, nn.Conv2d(6, 13, 3, padding=1)), f"node conv2d_2 {EIGHT}"),
    "a first FC layer of floats": (as_floats(8, nn.Linear(104, 16)), f"node linear {EIGHT}"),
    "weights of 9 bits": (layer(3, whole=lambda each: (each.whole.int() + 300).to(torch.int16)),
                          "must read int8 or uint8"),
    "asymmetric weights": (layer(3, zero_point=lambda each: each.zero_point + 100), f"node conv2d_3 {EIGHT}"),
    "scales of inputs": (layer(3, axis=lambda each: 1), f"node conv2d_3 {EIGHT}"),
    "scales of float64": (layer(3, scale=lambda each: each.scale.double() * 1.1), "must have scales of torch.float32"),
    "scales of 0": (layer(3, scale=lambda each: each.scale * 0), "the scale of node .* must be positive and finite"),
    "batch norm": (insert(3, nn.BatchNorm2d(13).eval()), "a batch norm, reads: such a layer is computed in float32"),
    "an average": (insert(0, nn.AdaptiveAvgPool2d(4), nn.AdaptiveAvgPool2d), "an average pool, reads: such a layer"),
    "a sigmoid": (insert(1, nn.Sigmoid(), nn.ReLU), "node sigmoid is an aten.sigmoid.default, where .* has a ReLU"),
    "a branch": (insert(1, Twice(), nn.ReLU), "node add reads .*: a VGG is a chain"),
    "a dropout that drops": (insert(1, nn.Dropout(), nn.ReLU), "a dropout, must have train False, got True"),
    "strides": (as_floats(0, nn.Conv2d(3, 3, 3, 2, 1)), r"a 3x3 convolution, must have strides \[1, 1\], got \[2, 2\]"),
    "another pool": (lambda vgg: vgg.layers.__setitem__(vgg.of(nn.MaxPool2d)[0], nn.MaxPool2d(4)), "extents|strides"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(name):
    change, said = REFUSED[name]
    vgg = Vgg()
    change(vgg)
    if name == "a dropout that drops":
        vgg.layers[vgg.of(nn.Dropout)[0]].train()
    module = vgg.exported().module()
    with pytest.raises(ValueError, match=said) as caught:
        read(module, preprocessing=PREPROCESSING)
    assert str(caught.value).startswith("the module: ")
    assert "\n" not in str(caught.value)


def evaluated_without_statistics():
    layers = in_floats(True)
    for layer in layers.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean = layer.running_var = None
    return layers


ROWS = "a view, must make rows of .N, values., got"
NETWORKS = {
    "batch norm in training mode": (lambda: in_floats(True).train(), "node add_ changes a constant, .*evaluation mode"),
    "batch norm of the batch": (evaluated_without_statistics, "a batch norm, must have a running mean and variance"),
    "rows of two images": (lambda: in_rows(lambda x: x.view(-1, 208).view(-1, 104)), rf"{ROWS} \(-1, 208\)"),
    "rows of half images": (lambda: in_rows(lambda x: x.view(4, 52).view(-1, 104)), rf"{ROWS} \(4, 52\)"),
    "other axes": (lambda: in_rows(lambda x: x.view(2, 104, 1, 1).flatten(1)), rf"{ROWS} \(2, 104, 1, 1\)"),
    "one axis": (lambda: in_rows(lambda x: x.view(-1).reshape(2, 104)), rf"{ROWS} \(-1\)"),
}  # fmt: skip


@pytest.mark.parametrize("live", [True, False], ids=["live", "file"])
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_refused_by_name(tmp_path, name, live):
    network, said = NETWORKS[name]
    exported = torch.export.export(network(), (torch.randn(2, 3, 64, 64),))
    with pytest.raises(ValueError, match=said):
        read(exported if live else saved(exported, tmp_path / "m.pt2"), preprocessing=PREPROCESSING)


def test_operators_taken_apart():
    exported = torch.export.export(in_floats(False), (torch.randn(2, 3, 64, 64),)).run_decompositions()
    with pytest.raises(ValueError, match=r"is an aten\.convolution\.default: .* before run_decompositions\(\)"):
        read(exported, preprocessing=PREPROCESSING)


def test_other_modules():
    with pytest.raises(ValueError, match="the module must be a GraphModule"):
        read(vggfast.VGG("A", width=0.05), preprocessing=PREPROCESSING)
    module = Vgg().exported().module()
    module.register_forward_hook(lambda *args: None)
    with pytest.raises(ValueError, match="the module must have no hooks of its own"):
        read(module, preprocessing=PREPROCESSING)
    with pytest.raises(ValueError, match="does not say what pixels the network takes"):
        read(Vgg().exported().module())
    with pytest.raises(ValueError, match="format must be 'pt2' or None for a module, got 'onnx'"):
        read(Vgg().exported(), "onnx", preprocessing=PREPROCESSING)
    with pytest.raises(TypeError, match="path must be a path, an ExportedProgram or a GraphModule, got dict"):
        read({}, preprocessing=PREPROCESSING)


# ---- files -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def members():
    """Of a file, by their names without the root."""
    content = io.BytesIO()
    torch.export.save(Vgg().exported(), content)
    return of(content)


def of(file):
    with zipfile.ZipFile(file) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


def written(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"root/{name}", content)
    return path


def edited(name, change):
    """Of a JSON member."""

    def edit(members):
        said = json.loads(members[name])
        change(said)
        return {**members, name: json.dumps(said)}

    return edit


def weight(**changes):
    return edited(WEIGHTS, lambda said: said["config"]["layers.1.whole"].update(changes))


def meta(**changes):
    return edited(WEIGHTS, lambda said: said["config"]["layers.1.whole"]["tensor_meta"].update(changes))


WEIGHTS, MODEL = "data/weights/model_weights_config.json", "models/model.json"
READS = "is no torch.export file that can be read: "
DAMAGED = {
    "a pickle": (weight(use_pickle=True), f"{READS}layers.1.whole must lie as plain bytes, got a pickle, which is"),
    "a missing member": (weight(path_name="other"), READS),
    "another folder": (weight(path_name="../../models/model.json"), READS),
    "another dtype": (meta(dtype=10), f"{READS}layers.1.whole must be a dense tensor of numbers, got ScalarType 10"),
    "sparse": (meta(layout=1), f"{READS}layers.1.whole must be a dense tensor of numbers"),
    "larger": (meta(sizes=[{"as_int": n} for n in (3, 3, 3, 4)]), f"{READS}layers.1.whole of shape .* within its 81"),
    "spread": (meta(sizes=[{"as_int": 1 << 40}] * 4, strides=[{"as_int": 0}] * 4), f"{READS}layers.1.whole of shape"),
    "beyond": (meta(storage_offset={"as_int": 1}), f"{READS}layers.1.whole of shape .* must lie within its 81 values"),
    "below": (meta(storage_offset={"as_int": -1}), f"{READS}layers.1.whole of shape"),
    "no JSON": (lambda members: {**members, MODEL: b"{"}, READS),
    "no UTF-8": (lambda members: {**members, MODEL: b"\xff"}, READS),
    "nested": (lambda members: {**members, MODEL: b"[" * 100_000}, f"{READS}root/{MODEL} is nested too deeply"),
    "large": (lambda members: {**members, MODEL: b" " * (17 << 20)}, "must have at most 16 MiB, got 17|unpacks to"),
    "no graph": (lambda members: {**members, MODEL: b"{}"}, READS),
    "two graphs": (lambda members: {**members, f"more/{MODEL}": members[MODEL]}, "it must have one graph, .* got 2"),
    "big-endian": (lambda members: {**members, "byteorder": b"big"}, f"{READS}its numbers must be little-endian"),
    "a changed buffer": (edited(MODEL, lambda said: said["graph_module"]["signature"]["output_specs"].append(
        {"buffer_mutation": {"arg": {"name": "x"}, "buffer_name": "y"}})), "it must change nothing but give"),
    "two inputs": (edited(MODEL, lambda said: said["graph_module"]["signature"]["input_specs"].append(
        {"user_input": {"arg": {"as_tensor": {"name": "second"}}}})), "must have one input, images of 4 axes, got"),
    "an object": (edited(MODEL, lambda said: said["graph_module"]["signature"]["input_specs"].append(
        {"custom_obj": {}})), "its inputs must be tensors, got a custom_obj"),
}  # fmt: skip


def test_rows_that_are_another_axis(tmp_path):
    """As no exporter writes them."""

    def turned(said):
        [node] = [each for each in said["graph_module"]["graph"]["nodes"] if "sym_size" in each["target"]]
        node["inputs"][1]["arg"]["as_int"] = 2

    network = in_rows(lambda x: x.view(x.size(0), -1))
    n = {0: torch.export.Dim("n")}
    path = saved(torch.export.export(network, (torch.randn(2, 3, 64, 64),), dynamic_shapes=(n,)), tmp_path / "m.pt2")
    assert read(path, preprocessing=PREPROCESSING).part == "the whole network"
    with pytest.raises(ValueError, match=rf"{ROWS} \(sym_size"):
        read(written(path, edited(MODEL, turned)(of(path))), preprocessing=PREPROCESSING)


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_files(tmp_path, members, name):
    change, said = DAMAGED[name]
    path = written(tmp_path / "m.pt2", change(members))
    with pytest.raises(ValueError, match=said) as caught:
        read(path, preprocessing=PREPROCESSING)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_nothing_in_a_file_is_executed(tmp_path, members):
    """Where torch.export.load runs pickles."""

    class Bomb:
        def __reduce__(self):
            return open, (str(tmp_path / "made"), "w")

    bomb = pickle.dumps(Bomb())
    changed = {name: bomb if name.startswith(("data/weights/weight_", "data/sample")) else content
               for name, content in members.items()}  # fmt: skip
    with pytest.raises(ValueError, match=r"m\.pt2"):
        read(written(tmp_path / "m.pt2", weight(use_pickle=True)(changed)), preprocessing=PREPROCESSING)
    assert not (tmp_path / "made").exists()


def test_files_that_are_cut_off(tmp_path, members):
    content = written(tmp_path / "m.pt2", members).read_bytes()
    for cut in random.Random(0).sample(range(len(content)), 20):
        (tmp_path / "m.pt2").write_bytes(content[:cut])
        with pytest.raises(ValueError, match=r"m\.pt2"):
            read(tmp_path / "m.pt2", preprocessing=PREPROCESSING)
