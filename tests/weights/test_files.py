"""Weight files: what they hold, how they are written, what is refused."""

import json

import pytest
import torch

import vggfast
from vggfast.io import WeightFile, sha256, write_atomically
from vggfast.weights import load_model, read_state_dict, save_model
from vggfast.weights.files import model_of


def _small(**changes):
    return vggfast.VGG("A", **{"num_classes": 3, "width": 0.1, "hidden": 8, "pool_size": 1, **changes})


@pytest.mark.parametrize("head", ["linear", "conv", "none"])
def test_round_trip(tmp_path, head):
    model = _small(head=head)
    save_model(model, tmp_path / "m.safetensors", {"classes": ["a", "b", "c"]})
    loaded, extra = load_model(tmp_path / "m.safetensors")
    assert extra == {"classes": ["a", "b", "c"]}
    assert not loaded.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name])


def test_a_file_is_loaded_with_all_that_it_says(tmp_path):
    model = _small()
    model.classes, model.preprocessing = ["a", "b", "c"], vggfast.Preprocessing.caffe()
    save_model(model, tmp_path / "ours.safetensors")
    found = vggfast.load(tmp_path / "ours.safetensors")
    assert (found.classes, found.preprocessing, found.training) == (model.classes, model.preprocessing, False)
    assert found.to_conv_head().classes == model.classes
    save_model(found, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "ours.safetensors").read_bytes()
    torch.save(model.state_dict(), tmp_path / "theirs.pth")
    theirs = vggfast.load(tmp_path / "theirs.pth", preprocessing=vggfast.Preprocessing())
    assert (theirs.classes, theirs.preprocessing) == (None, vggfast.Preprocessing())
    assert vggfast.load(tmp_path / "theirs.pth").preprocessing == vggfast.Preprocessing.torchvision()
    found.classes = ["a", "b"]
    with pytest.raises(ValueError, match="classes of the model must be None or 3 names, one an output, got 2"):
        save_model(found, tmp_path / "again.safetensors")
    with pytest.raises(FileNotFoundError, match=r"none\.pth"):
        vggfast.load(tmp_path / "none.pth")


def test_pth_of_a_state_dict(tmp_path):
    model = _small()
    torch.save(model.state_dict(), tmp_path / "m.pth")
    assert torch.equal(read_state_dict(tmp_path / "m.pth")["features.0.weight"], model.features[0].weight)
    with pytest.raises(ValueError, match="weights but not the network's arguments"):
        load_model(tmp_path / "m.pth")


def test_vgg16_takes_a_file_and_its_number_of_classes(tmp_path):
    with torch.device("meta"):
        expected = vggfast.VGG11(num_classes=7, init=None).state_dict()
    state = {name: torch.full(tensor.shape, 0.5, dtype=torch.float32) for name, tensor in expected.items()}
    torch.save(state, tmp_path / "m.pth")
    model = vggfast.vgg11(weights=tmp_path / "m.pth")
    assert model.classifier[6].weight.shape == (7, 4096)
    assert model.features[0].weight.flatten()[0] == 0.5


def test_nothing_in_a_file_is_executed(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (print, ("executed",))

    torch.save({"x": Bomb()}, tmp_path / "m.pth")
    with pytest.raises(ValueError, match=r"m\.pth is not a weight file that can be read"):
        read_state_dict(tmp_path / "m.pth")


@pytest.mark.parametrize("name", ["m.pth", "m.safetensors"])
def test_garbage_is_named(tmp_path, name):
    (tmp_path / name).write_bytes(b"garbage" * 100)
    with pytest.raises(ValueError, match=f"{name} is not a weight file that can be read"):
        read_state_dict(tmp_path / name)


def test_tensors_of_any_dtype_and_shape(tmp_path):
    """As the library of the format reads them."""
    from safetensors.torch import load_file, save_file

    generator = torch.Generator().manual_seed(0)
    dtypes = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.int64, torch.bool)
    tensors = {
        f"{dtype} {shape}": torch.rand(shape, generator=generator).mul(99).to(dtype)
        for dtype in dtypes
        for shape in ((), (0, 3), (3,), (2, 5, 7))
    }
    save_file(tensors, tmp_path / "m.safetensors")
    found, expected = read_state_dict(tmp_path / "m.safetensors"), load_file(tmp_path / "m.safetensors")
    assert found.keys() == expected.keys() == tensors.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
        assert torch.equal(found[name].double(), tensor.double())


def test_tensors_at_any_place(tmp_path):
    header = b'{"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}'
    for padding in range(4):
        content = header + b" " * padding + torch.tensor([1.5, -2]).numpy().tobytes()
        path = tmp_path / f"{padding}.safetensors"
        path.write_bytes((len(header) + padding).to_bytes(8, "little") + content)
        found = read_state_dict(path)["w"]
        assert found.tolist() == [1.5, -2]
        found.zero_()
        assert path.read_bytes()[8:] == content


@pytest.mark.parametrize(
    ("header", "content", "message"),
    [
        ('{"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}', b"1234567", "w is cut off"),
        ('{"w": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}', b"12345678", r"w has 8 bytes, .*\[3\]"),
        ('{"w": {"dtype": "F31", "shape": [2], "data_offsets": [0, 8]}}', b"12345678", "dtype of w must be .*'F31'"),
        ('{"w": {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}}', b"12345678", "data_offsets of w must be"),
        ('{"w": {"dtype": "F32", "shape": [2]}}', b"12345678", "data_offsets"),
        ('{"w": 3}', b"", "w must have dtype, shape and data_offsets, got 3"),
        ("[]", b"", "its header must be a JSON object, got a list"),
        ('{"w": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}', b"12345678", "w must begin at byte"),
        ('{"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}', b"12345678", "4 bytes that are no tensor's"),
        (
            '{"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, '
            '"v": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}',
            b"1234",
            "v must begin at byte .*, where the one before it ends",
        ),
        ('{"w": {"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]}}', b"1234", "shape of w must be integers"),
        ('{"w": {"dtype": "F32", "shape": [true], "data_offsets": [0, 4]}}', b"1234", "shape of w must be integers"),
        ('{"w": 1, "w": 1}', b"", "its header has w twice"),
        ("[" * 100_000, b"", "nested too deeply"),
        ('{"__metadata__": {"a": 1}}', b"", "its metadata must be a JSON object of texts"),
        ("{", b"", "double quotes"),
    ],
)
def test_damaged_headers_are_named(tmp_path, header, content, message):
    path = tmp_path / "m.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode() + content)
    with pytest.raises(ValueError, match=rf"m\.safetensors is not a weight file that can be read: .*{message}"):
        read_state_dict(path)


@pytest.mark.parametrize("name", ["m.pth", "m.safetensors"])
def test_files_that_end_too_soon_are_named(tmp_path, name):
    state = {"w": torch.rand(100)}
    if name == "m.pth":
        torch.save(state, tmp_path / name)
    else:
        save_model(_small(), tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    for length in (0, 1, 7, 8, 9, len(whole) // 2, len(whole) - 1):
        (tmp_path / name).write_bytes(whole[:length])
        with pytest.raises(ValueError, match=f"{name} (is not a weight file that can be read|.* is empty)"):
            read_state_dict(tmp_path / name)


def test_torch_files_before_zip(tmp_path):
    torch.save({"w": torch.arange(5.0)}, tmp_path / "m.pth", _use_new_zipfile_serialization=False)
    assert read_state_dict(tmp_path / "m.pth")["w"].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("name", ["m.pth", "m.safetensors"])
def test_an_opened_file_stays_the_one_that_it_was(tmp_path, name):
    """What replaces it, as we do, by another file of the same name is not mixed with it."""
    model = _small()
    content = {"model": model.state_dict(), "arguments": dict(model.arguments)}

    def save(path):
        torch.save(content, path) if name == "m.pth" else save_model(model, path)

    save(tmp_path / name)
    file, digest = WeightFile(tmp_path / name), sha256(tmp_path / name)
    write_atomically(tmp_path / name, lambda temporary: temporary.write_bytes(b"something else"))
    loaded, _ = model_of(file)
    assert torch.equal(loaded.features[0].weight, model.features[0].weight)
    assert file.sha256 == digest
    empty, _ = model_of(file, empty=True)
    assert {each.device.type for each in empty.state_dict().values()} == {"meta"}


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.pth: no such weight file"):
        vggfast.vgg16(weights=tmp_path / "nothing.pth")


def test_weights_of_another_network(tmp_path):
    model = _small()
    save_model(model, tmp_path / "m.safetensors")
    from safetensors.torch import load_file, save_file

    other = json.dumps({**model.arguments, "config": "B"})
    save_file(load_file(tmp_path / "m.safetensors"), tmp_path / "b.safetensors", {"vggfast": other})
    message = r"b\.safetensors does not hold the network that it names .*missing: features\.2\.weight, .*left over: "
    with pytest.raises(ValueError, match=message) as caught:
        load_model(tmp_path / "b.safetensors")
    assert "\n" not in str(caught.value)


def test_a_network_of_other_sizes_takes_no_memory(tmp_path):
    from safetensors.torch import load_file, save_file

    model = _small()
    save_model(model, tmp_path / "m.safetensors")
    arguments = json.dumps({**model.arguments, "hidden": 1 << 30})
    save_file(load_file(tmp_path / "m.safetensors"), tmp_path / "b.safetensors", {"vggfast": arguments})
    with pytest.raises(ValueError, match=r"b\.safetensors .*: classifier\.0\.\w+ must have shape \(1073741824"):
        load_model(tmp_path / "b.safetensors")


def test_arguments_that_are_none_of_a_network(tmp_path):
    from safetensors.torch import save_file

    for text in ("[1]", '"A"', '{"extra": 3, "config": "A"}', '{"extra": "none", "config": "A"}'):
        save_file({"w": torch.zeros(1)}, tmp_path / "m.safetensors", {"vggfast": text})
        with pytest.raises(ValueError, match=r"m\.safetensors does not hold the network that it names"):
            load_model(tmp_path / "m.safetensors")


@pytest.mark.parametrize("kind", ["save_model", "torch.save"])
def test_full_disk(tmp_path, small_disk, kind):
    path = small_disk / "m.safetensors"
    write = {
        "save_model": lambda: save_model(_small(hidden=2048), path),
        "torch.save": lambda: write_atomically(path, lambda temporary: torch.save(torch.zeros(1 << 22), temporary)),
    }[kind]
    with pytest.raises(OSError, match=r"m\.safetensors could not be written"):
        write()
    assert list(small_disk.iterdir()) == []


def test_a_fine_tuned_last_layer_is_saved_with_its_classes(tmp_path):
    model = _small(num_classes=10)
    model.classifier[6] = torch.nn.Linear(8, 3)
    save_model(model, tmp_path / "m.safetensors")
    assert load_model(tmp_path / "m.safetensors")[0].arguments["num_classes"] == 3
    model.features[0] = torch.nn.Conv2d(3, 99, 3)
    with pytest.raises(ValueError, match=r"no longer the network that its arguments name \(features\.0\.bias"):
        save_model(model, tmp_path / "n.safetensors")
    assert not (tmp_path / "n.safetensors").exists()
