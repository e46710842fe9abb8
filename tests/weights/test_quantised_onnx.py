"""ONNX files of 8 bits (QDQ): what they say is computed, with their own whole numbers and scales."""

import json

import numpy as np
import pytest
import torch

import vggfast

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnxruntime.quantization import QuantType  # noqa: E402

from tests.support.comparisons import relative_error  # noqa: E402
from tests.support.foreign import network  # noqa: E402
from tests.support.onnx_graphs import by_onnxruntime, images  # noqa: E402
from tests.support.onnx_quantised import QdqGraph, exactly, read_quantised  # noqa: E402
from tests.support.quantised import outputs  # noqa: E402
from vggfast.cli import main  # noqa: E402
from vggfast.engine.int8 import with_scales  # noqa: E402
from vggfast.graph import whole  # noqa: E402
from vggfast.graph.layers import Quantised  # noqa: E402
from vggfast.io import WeightFile, write_safetensors  # noqa: E402
from vggfast.quantisation import Rounding, integers  # noqa: E402
from vggfast.weights import load_model, read_state_dict, save_model, state_dict_of  # noqa: E402
from vggfast.weights.formats import read  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")
make_node = onnx.helper.make_node


def engine_of(model, **options):
    return vggfast.Engine(model, dtype="int8", size=64, **options)


def excluded(*names):
    return {"nodes_to_exclude": list(names)}


def weights_of_uint8(graph):
    """Whose zero point is 128: the same whole numbers less that."""
    for name in [each.name for each in graph.graph.initializer if each.name.endswith("weight_quantized")]:
        graph.set_array(name, (graph.array(name).astype(np.int16) + 128).astype(np.uint8))
        zero = name.replace("quantized", "zero_point")
        graph.set_array(zero, np.full_like(graph.array(zero), 128, np.uint8))


def weights_transposed(graph):
    """Of FC layers, behind a Transpose, as exporters write them."""
    for number in range(3):
        node = graph.nodes[graph.find("Gemm", number)]
        at = graph.giving(node.input[1])
        graph.nodes.insert(at + 1, make_node("Transpose", [node.input[1]], [f"turned{number}"], perm=[1, 0]))
        node = graph.nodes[graph.find("Gemm", number)]
        node.input[1] = f"turned{number}"
        graph.set(graph.find("Gemm", number), transB=0)


def weights_lying_otherwise(graph):
    """Of FC layers as (in, out), with a scale for each place of the last axis."""
    for number in range(3):
        at = graph.find("Gemm", number)
        name = graph.nodes[at].input[1].replace("DequantizeLinear_Output", "quantized")
        graph.set_array(name, np.ascontiguousarray(graph.array(name).T))
        graph.set(graph.reading(name), axis=1)
        graph.set(at, transB=0)


def identities(graph):
    """Where values are rounded, and on a weight."""
    graph.insert(graph.find("MaxPool"), "Identity")
    graph.insert(graph.find("MaxPool", 1), "Dropout")
    node = graph.nodes[graph.find("Conv", 1)]
    graph.nodes.insert(graph.find("Conv"), make_node("Identity", [node.input[1]], ["same"]))
    graph.nodes[graph.find("Conv", 1)].input[1] = "same"


def unrounded_output(graph):
    """As where the quantiser is told to leave it."""
    graph.remove(len(graph.nodes) - 1)
    graph.remove(len(graph.nodes) - 1)
    graph.nodes[-1].output[0] = graph.graph.output[0].name


def nothing(graph):
    pass


FORMS = {
    "uint8": (nothing, {}, {}),
    "int8": (nothing, {}, {"activation_type": QuantType.QInt8}),
    "a scale a tensor": (nothing, {}, {"per_channel": False}),
    "weights as floats": (nothing, {}, {"extra_options": {"AddQDQPairToWeight": True}}),
    "weights of uint8": (weights_of_uint8, {}, {}),
    "weights transposed": (weights_transposed, {}, {}),
    "weights lying otherwise": (weights_lying_otherwise, {}, {}),
    "identities": (identities, {}, {}),
    "output as it is": (unrounded_output, {}, {}),
    "floats at the ends": (nothing, {}, excluded("features.0", "features.1", "classifier.6")),
    "FC layers in floats": (nothing, {}, excluded("classifier.3", "classifier.6")),
    "B": (nothing, {"config": "B"}, {}),
    "E of one channel": (nothing, {"config": "E", "in_channels": 1}, {}),
    "no head": (nothing, {"head": "none"}, {}),
}  # fmt: skip


def made(tmp_path, change, arguments, options):
    graph = QdqGraph(tmp_path / "m.onnx", options=options, **arguments)
    change(graph)
    graph.drop_unused()
    graph.save()
    return graph


@pytest.fixture
def plain_sums():
    vggfast.set_exact(True)
    yield
    vggfast.set_exact(False)


@pytest.mark.usefixtures("plain_sums")
@pytest.mark.parametrize("name", FORMS)
def test_the_same_as_by_onnxruntime(tmp_path, name):
    """A value near the middle of two steps may go either way: neither side sums exactly. So both are compared with
    float64, and ours may have at most twice as many other steps as onnxruntime, and those of one image. The first
    layer sums plainly here: Winograd's sums, taken for one channel, would change more steps behind it."""
    torch.manual_seed(0)
    graph = made(tmp_path, *FORMS[name])
    model = read_quantised(graph.path).model
    x = images((24, model.arguments["in_channels"], 64, 64), 9)
    expected, theirs, ours = (
        exactly(graph.graph, x),
        by_onnxruntime(graph.path, x),
        engine_of(model)(torch.from_numpy(x)),
    )
    output = model.quantisation.output
    step = output.scale if output else np.abs(expected).max() / 100
    their_share, our_share = (float((np.abs(y - expected) > step / 2).mean()) for y in (theirs, ours.numpy()))
    assert our_share <= 2 * their_share + 1.01 / len(x)  # all the values of one image, whose steps go together
    assert np.abs(ours.numpy() - expected).max() < 12 * step


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    """That nobody changes."""
    return QdqGraph(tmp_path_factory.mktemp("qdq") / "m.onnx", width=0.05)


def test_whole_numbers_and_scales_are_those_of_the_file(graph):
    model = read_quantised(graph.path).model
    found = model.quantisation
    assert len(found.layers) == 11
    for path, scales in found.layers.items():
        weight, scale, bias = (
            graph.array(f"{path}.{kind}") for kind in ("weight_quantized", "weight_scale", "bias_quantized")
        )
        layer = model.get_submodule(path)
        assert np.array_equal(integers(path, layer.weight, scales.weight), weight)
        assert np.array_equal(scales.weight, scale)
        assert np.array_equal(
            layer.bias.detach(), bias.astype(np.float32) * graph.array(f"{path}.bias_quantized_scale")
        )
    assert found.layers["features.0"].source is None
    assert found.layers["features.3"].source == graph.array("features.1.output_scale")
    assert found.layers["classifier.6"].source == graph.array("classifier.4.output_scale")
    for rounding, name in ((found.input, "images"), (found.output, "scores")):
        assert rounding.scale == graph.array(f"{name}_scale")
        assert rounding.zero_point == graph.array(f"{name}_zero_point")


@pytest.mark.parametrize("head", ["linear", "none"])
def test_every_bit_is_a_plain_twins(tmp_path, head):
    """Behind the first layer, which is of float32."""
    model = read_quantised(made(tmp_path, nothing, {"head": head}, {}).path).model
    engine, x = engine_of(model), torch.from_numpy(images((3, 3, 64, 64)))
    layers = [*with_scales(whole(model), model.quantisation).trunk_layers()]
    assert [isinstance(layer, Quantised) for layer, _ in layers if hasattr(layer, "weight")].count(False) == 1
    first = engine.features(x, ["relu1_1"])["relu1_1"]
    twin = [*outputs([layer for layer, _ in layers[2:]], first)]
    taps = [name for _, name in layers[2:]]
    found = engine.features(x, taps[:-1])
    assert all(torch.equal(found[tap], y) for tap, y in zip(taps, twin, strict=False) if tap in found)
    last = engine.features(x)
    assert torch.equal(last, model.quantisation.output(twin[-1]) if head == "none" else twin[-1])


def test_the_command(tmp_path, graph, capsys):
    ours, again = tmp_path / "m.safetensors", tmp_path / "n.safetensors"
    assert main(["convert", str(graph.path), str(ours), "--preprocessing", "caffe"]) == 0
    said = "it has weights of 8 bits in 11 layers; 10 layers read 8 bits; input and output rounded to 8 bits"
    assert said in capsys.readouterr().out
    tensors = read_state_dict(ours)
    assert {str(tensors[f"{path}.weight"].dtype) for path in ("features.0", "classifier.6")} == {"torch.int8"}
    x = torch.from_numpy(images((2, 3, 64, 64)))
    expected = engine_of(read_quantised(graph.path).model)(x)
    model, _ = load_model(ours)
    assert torch.equal(engine_of(model)(x), expected)
    assert main(["convert", str(ours), str(again)]) == 0
    assert ours.read_bytes() == again.read_bytes()
    capsys.readouterr()
    assert main(["convert", str(ours), str(tmp_path / "m.pth")]) == 0
    assert "its 8 bits have no place in it: weights are written as float32, and nothing is" in capsys.readouterr().out
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in state_dict_of(ours).items())
    with torch.no_grad():
        assert relative_error(vggfast.Engine(model)(x), model(x)) < 1e-5  # float32, which rounds nothing


def test_convolutions_alone(tmp_path, graph):
    """Their output is what the first FC layer reads of it."""
    path = graph.path
    model, whole_model = read_quantised(path, features_only=True).model, read_quantised(path).model
    x = torch.from_numpy(images((2, 3, 64, 64)))
    rounding = Rounding(whole_model.quantisation.layers["classifier.0"].source)
    assert torch.equal(engine_of(model)(x), rounding(engine_of(whole_model).features(x)))
    save_model(whole_model, tmp_path / "m.safetensors")
    again = read(tmp_path / "m.safetensors", features_only=True).model
    assert torch.equal(engine_of(again)(x), engine_of(model)(x))


def test_a_dense_head(graph):
    """Of the same scales, on one window the same."""
    model = read_quantised(graph.path).model
    x = torch.from_numpy(images((2, 3, 64, 64)))
    assert torch.equal(engine_of(model.to_conv_head())(x), engine_of(model)(x))


def test_calibration_takes_the_place_of_the_scales(graph):
    model = read_quantised(graph.path).model
    x = torch.from_numpy(images((4, 3, 64, 64)))
    engine = engine_of(model, calibration=x)
    assert engine_of(model).error is None
    assert engine.error.output < 0.1
    assert not torch.equal(engine(x), engine_of(model)(x))


def test_a_changed_model(tmp_path, graph):
    model = read_quantised(graph.path).model
    with torch.no_grad():
        model.classifier[3].weight[2, 3] += 1e-3
    said = r"classifier\.3\.weight must hold whole multiples of its scales, -128 to 127 of them"
    with pytest.raises(ValueError, match=said):
        engine_of(model)
    with pytest.raises(ValueError, match=said):
        save_model(model, tmp_path / "m.safetensors")
    model.classifier[6] = torch.nn.Linear(16, 7)
    model.classifier[3] = torch.nn.Linear(16, 16)
    model.quantisation.layers.pop("classifier.3")
    with pytest.raises(ValueError, match=r"classifier\.6\.weight must have 5 outputs, as there are scales, got 7"):
        engine_of(model)
    model.classifier = model.classifier[:4]
    with pytest.raises(ValueError, match=r"scales of classifier\.6, which the model does not have"):
        engine_of(model)
    model.quantisation = {}
    with pytest.raises(TypeError, match="quantisation of the model must be a Quantisation, got dict"):
        engine_of(model)
    model.quantisation = None
    with pytest.raises(ValueError, match="calibration must be images"):
        engine_of(model)


def test_fc_layers_of_8_bits_alone(tmp_path):
    """Which belong to no convolutions that are known."""
    graph = made(tmp_path, nothing, {}, {})
    for node in [each for each in graph.nodes if each.name.startswith(("images", "features"))]:
        graph.nodes.remove(node)
    graph.nodes[graph.find("Flatten")].input[0] = "images"
    graph.declare("N", 26, 2, 2)
    graph.drop_unused()
    features = tmp_path / "f.safetensors"
    save_model(network("A", width=0.05, head="none"), features)
    with pytest.raises(ValueError, match=r"m\.onnx has FC layers of 8 bits alone: a quantised network must have its"):
        read(graph.save(), features=features)


def test_fc_layers_of_floats_on_convolutions_of_8_bits(tmp_path, graph):
    """The convolutions keep their scales, and the first FC layer reads what they give as it is."""
    fcs, donor = network("A", width=0.05), read_quantised(graph.path).model
    torch.save({name: each for name, each in fcs.state_dict().items() if "classifier" in name}, tmp_path / "m.pth")
    save_model(donor, tmp_path / "f.safetensors")
    found = read(tmp_path / "m.pth", features=tmp_path / "f.safetensors")
    assert [note for note in found.notes if "8 bits" in note] == [
        "it has weights of 8 bits in 8 layers; 7 layers read 8 bits; input rounded to 8 bits: "
        "vggfast.Engine(model, dtype='int8') runs it"
    ]
    x = torch.from_numpy(images((2, 3, 64, 64)))
    with torch.no_grad():
        expected = fcs.classifier(engine_of(donor).features(x).flatten(1))
    assert relative_error(engine_of(found.model)(x), expected) < 1e-5


def change(**changes):
    """Of what the metadata say, or, by a path, of a tensor."""

    def changed(tensors, said):
        for name, value in changes.items():
            said[name] = value
        return tensors, said

    return changed


def tensor(name, made):
    return lambda tensors, said: ({**tensors, name: made(tensors[name])}, said)


END = {"scale": 0.1, "zero_point": 3, "largest": 255}
DAMAGED = {
    "no mapping": (lambda tensors, said: (tensors, [1]), "its quantisation must have sources, input and output, got"),
    "more": (change(other=1), "its quantisation must have sources, input and output, got"),
    "sources": (change(sources=[1, 2]), "sources of its quantisation must be a mapping"),
    "another layer": (change(sources={"features.1": 1.0}), r"features\.1\.weight must be int8, got None"),
    "a layer too few": (change(sources={"features.0": None}), r"left over: classifier\.0\.weight_scale, .* and 6 more"),
    "no source": (change(sources={"features.0": "x"}), r"source of features\.0 must be positive and finite, .*got 'x'"),
    "a source below 0": (change(sources={"features.0": -1.0}), r"source of features\.0 must be positive and finite"),
    "an end": (change(input=3), "input of its quantisation must have scale, zero_point and largest, got 3"),
    "a scale": (change(input={**END, "scale": 0}), "scale must be positive and finite, at least 1.18e-38, got 0"),
    "a zero point": (change(input={**END, "zero_point": 256}), "zero_point must be a whole number from 0 to 255, got"),
    "a largest": (change(output={**END, "largest": 2.5}), "largest must be a whole number from 0 to 255, got 2.5"),
    "floats": (tensor("features.3.weight", torch.Tensor.float), r"features\.3\.weight must be int8, got torch.float32"),
    "fewer scales": (tensor("features.3.weight_scale", lambda t: t[1:].clone()),
                     r"features\.3\.weight_scale must be float32 of shape \(6,\), got torch.float32 of shape \(5,\)"),
    "a scale of 0": (tensor("features.3.weight_scale", lambda t: t * 0), r"features\.3\.weight_scale must be positive"),
    "nan": (tensor("features.3.weight_scale", lambda t: t * torch.nan), r"features\.3\.weight_scale"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_files_of_ours(tmp_path, graph, name):
    path = tmp_path / "m.safetensors"
    save_model(read_quantised(graph.path).model, path)
    file = WeightFile(path)
    break_it, said = DAMAGED[name]
    tensors, quantisation = break_it(file.tensors(), file.arguments["quantisation"])
    metadata = {"vggfast": json.dumps({**file.arguments, "quantisation": quantisation})}
    write_safetensors(path, {key: each.clone() for key, each in tensors.items()}, metadata)
    for load in (load_model, read) if name == "a layer too few" else (load_model, read, state_dict_of):
        with pytest.raises(ValueError, match=said) as caught:
            load(path)
        assert str(path) in str(caught.value)
