"""Weights that are not what was written, or that no network can compute with: refused, with the file and the tensor."""

import copyreg
import io
import json
import pickle
import random
import struct
import zipfile
from collections import OrderedDict

import pytest
import torch
from torch import nn

import vggfast
from tests.support import foreign
from vggfast.cli import main
from vggfast.io import WeightFile, write_safetensors
from vggfast.weights import load_model, read_state_dict, save_model
from vggfast.weights.formats import read
from vggfast.weights.formats.torchvision import write as write_torchvision


def _network(**changes):
    return foreign.network(**{"width": 0.05, "hidden": 8, "pool_size": 1, "num_classes": 5, **changes})


# ---- checksums -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("writer", [save_model, write_torchvision])
def test_a_changed_bit_is_found(tmp_path, writer):
    """Of each tensor, and of the metadata."""
    path = tmp_path / "m.safetensors"
    writer(_network(), path)
    whole = path.read_bytes()
    file = WeightFile(path)
    for entry in file._entries.values():
        changed = bytearray(whole)
        changed[random.Random(entry.begin).randrange(entry.begin, entry.end)] ^= 1
        path.write_bytes(changed)
        with pytest.raises(ValueError, match=rf"m\.safetensors is not a weight .* {entry.name} is damaged"):
            read(path)
    path.write_bytes(whole.replace(b"0.485", b"0.585"))
    with pytest.raises(ValueError, match="its metadata are damaged"):
        read(path)


def test_files_are_equal_for_equal_networks_and_read_by_the_format_s_library(tmp_path):
    from safetensors.torch import load_file

    tensors = {f"{dtype}": torch.arange(3).to(dtype) for dtype in (torch.float64, torch.bfloat16, torch.bool)}
    for name in "ab":
        write_safetensors(tmp_path / name, {**tensors, "empty": torch.empty(0, 3), "one": torch.tensor(2)}, {"x": "y"})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    found = load_file(tmp_path / "a")
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    assert (found["empty"].shape, found["one"].item()) == ((0, 3), 2)


def test_files_without_checksums_are_read(tmp_path):
    from safetensors.torch import save_file

    model = _network()
    metadata = {"vggfast": json.dumps({**model.arguments, "extra": {"preprocessing": model.preprocessing.as_dict()}})}
    save_file(model.state_dict(), tmp_path / "m.safetensors", metadata)
    loaded, _ = load_model(tmp_path / "m.safetensors")
    assert torch.equal(loaded.features[0].weight, model.features[0].weight)


def test_a_changed_bit_in_a_pth_file_is_found(tmp_path):
    """Which torch.load takes."""
    path = tmp_path / "m.pth"
    state = _network().state_dict()
    torch.save(state, path)
    place = path.read_bytes().index(state["features.3.weight"].numpy().tobytes())
    changed = bytearray(path.read_bytes())
    changed[place + 100] ^= 1
    path.write_bytes(changed)
    assert not torch.equal(torch.load(path)["features.3.weight"], state["features.3.weight"])
    with pytest.raises(ValueError, match=r"m\.pth is not .* its record m/data/\d+ is damaged"):
        read_state_dict(path)


def test_pth_files_without_checksums_are_read(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"w": torch.arange(3.0)}, tmp_path / "m.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    assert read_state_dict(tmp_path / "m.pth")["w"].tolist() == [0, 1, 2]


# ---- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["ours", *foreign.KINDS])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(tmp_path, kind, value):
    model = _network()
    with torch.no_grad():
        model.features[8].weight[0, :, 1] = value
    if kind == "ours":
        path = tmp_path / "m.safetensors"
        save_model(model, path)
    else:
        name, tensors, writer, package = foreign.KINDS[kind]
        pytest.importorskip(package)
        path = tmp_path / name
        writer(path, tensors(model))
    number, size = model.features[8].weight[0, :, 1].numel(), model.features[8].weight.numel()
    with pytest.raises(ValueError, match=rf"{path.name}: {number} of the {size} values of \S.* are not finite"):
        read(path)
    found = read(path, allow_non_finite=True, preprocessing=vggfast.Preprocessing.caffe())
    assert not found.model.features[8].weight.isfinite().all()
    arguments = ["convert", str(path), str(tmp_path / "out.onnx"), "--preprocessing", "caffe"]
    assert main(arguments) == 1
    assert main([*arguments, "--allow-non-finite"]) == 0


@pytest.mark.parametrize("name", ["m.pth", "m.safetensors"])
def test_weights_arguments_that_are_not_finite(tmp_path, name):
    state = {"features.0.weight": torch.tensor([1.0, float("nan")])}
    torch.save(state, tmp_path / name) if name == "m.pth" else write_safetensors(tmp_path / name, state, {})
    with pytest.raises(ValueError, match=rf"{name}: 1 of the 2 values of features\.0\.weight is not finite"):
        read_state_dict(tmp_path / name)
    assert read_state_dict(tmp_path / name, allow_non_finite=True)["features.0.weight"].isnan().any()


def test_large_sums_are_finite(tmp_path):
    """Whose sum overflows, as that of half precision does."""
    state = {
        "a": torch.full((9,), 3e38),
        "b": torch.full((9,), 6e4, dtype=torch.half),
        "c": torch.ones(3, dtype=torch.int8),
    }
    torch.save(state, tmp_path / "m.pth")
    assert read_state_dict(tmp_path / "m.pth").keys() == state.keys()


def test_negative_variances(tmp_path):
    model = _network(batch_norm=True)
    model.features[1].running_var[0] = -1
    save_model(model, tmp_path / "m.safetensors")
    with pytest.raises(ValueError, match=r"1 of the \d values of features\.1\.running_var is negative, as no variance"):
        load_model(tmp_path / "m.safetensors")
    assert load_model(tmp_path / "m.safetensors", allow_non_finite=True)[0].features[1].running_var[0] == -1


# ---- what files ask for ----------------------------------------------------------------------------------------------


def _pth(path, pickled, **records):
    """An archive as torch's, of a pickle and storages."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m/data.pkl", pickled)
        for key, content in records.items():
            archive.writestr(f"m/data/{key}", content)


def _tensor(storage=("storage", "FloatStorage", "0", "cpu", 4), offset=0, size=(4,), stride=(1,)):
    """The pickle of {"w": tensor}, written by hand: torch's own is of sane tensors alone."""

    class Pickler(pickle._Pickler):
        def persistent_id(self, value):
            return storage_id if value is mark else None

        def save_global(self, value, name=None):
            self.write(pickle.GLOBAL + f"{value.module}\n{value.name}\n".encode())

    class Global:
        def __init__(self, module, name):
            self.module, self.name = module, name

        def __reduce__(self):
            return "global"

        def __call__(self):
            pass

    class Made:
        def __reduce__(self):
            return Global("torch._utils", "_rebuild_tensor_v2"), (mark, offset, size, stride, False, {})

    mark = object()
    storage_id = tuple(Global("torch", item) if str(item).endswith("Storage") else item for item in storage)
    out = io.BytesIO()
    Pickler(out, 2).dump({"w": Made()})
    return out.getvalue()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"storage": ("storage", "FloatStorage", "0", "cpu", 1 << 40)}, "declares 1099511627776 values"),
        ({"storage": ("storage", "FloatStorage", "0", "cpu", -1)}, "declares -1 values"),
        ({"storage": ("storage", "FloatStorage", "9", "cpu", 4)}, "its record data/9 is missing"),
        ({"storage": ("module", "FloatStorage", "0", "cpu", 4)}, "refers to what is no storage"),
        ({"storage": ("storage",)}, "refers to what is no storage"),
        ({"size": (5,)}, "reaches past the 4 values"),
        ({"offset": 1}, "reaches past the 4 values"),
        ({"stride": (2,)}, "reaches past the 4 values"),
        ({"stride": (-1,)}, "negative size"),
        ({"size": (1 << 40,), "stride": (0,)}, "larger together than a file of its size may hold"),
        ({"size": (1 << 62, 1 << 62), "stride": (0, 0)}, "larger together"),
        ({"size": (4, 4), "stride": (1,)}, "a tensor of 2 axes has 1 strides"),
    ],
)
def test_tensors_that_their_storage_does_not_hold(tmp_path, changes, said):
    _pth(tmp_path / "m.pth", _tensor(**changes), **{"0": struct.pack("<4f", 1, 2, 3, 4)})
    with pytest.raises(ValueError, match=rf"m\.pth is not a weight file that can be read: .*{said}"):
        read_state_dict(tmp_path / "m.pth")
    _pth(tmp_path / "m.pth", _tensor(), **{"0": struct.pack("<4f", 1, 2, 3, 4)})
    assert read_state_dict(tmp_path / "m.pth")["w"].tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("pickled", "said"),
    [
        (b"\x80\x02cbuiltins\nbytearray\n\x8a\x05\0\0\0\0\x10\x85R.", "its pickle is broken"),
        (b"\x80\x02ctorch\nFloatStorage\n\x8a\x05\0\0\0\0\x10\x85R.", "its pickle is broken"),
        (b"\x80\x02ctorch._utils\n_rebuild_meta_tensor_no_storage\n.", "a tensor on the meta device"),
        (b"\x80\x02Nr\xff\xff\xff\x7f.", "keeps the 2147483647th of"),
        (b"\x80\x02K\x01Q.", "refers to what is no storage"),
        (b"\x80\x04\x8d\0\0\0\0\0\0\0\x10a.", "expected 1152921504606846976 bytes"),
        (b"cposix\nsystem\n(S'true'\ntR.", "an object of posix.system"),
        (b"(" * 100 + b".", "its pickle"),
        (b"\x80\x02})" + b"\x85" * 100_000 + b"K\x01s.", "more than 5000 tuples in a tuple"),
        (b"\x80\x02})q\x00" + b"h\x00h\x00\x86q\x00" * 99 + b"K\x01s.", "more than 5000 tuples in a tuple"),
        (b"\x80\x02}" + b"N" * 600_000 + b".", "more than 500000 operations"),
        (b"\x80\x02]q\x00(" + b"N" * 9000 + b"e0" + b"cbuiltins\nlist\nh\x00\x85R" * 1000 + b".", "again and again"),
        (b"\x80\x02carray\narray\n.", "an object of array.array"),
        (b"", "its pickle"),
    ],
)
def test_pickles_that_ask_for_memory_or_code(tmp_path, pickled, said):
    _pth(tmp_path / "m.pth", pickled)
    with pytest.raises(ValueError, match=rf"m\.pth is not a weight file that can be read: .*{said}"):
        read_state_dict(tmp_path / "m.pth")


def test_checkpoints_of_mappings_that_are_in_many_places(tmp_path):
    content = {"w": 1}
    for _ in range(5):
        content = {str(i): content for i in range(200)}
    torch.save(content, tmp_path / "m.pth")
    with pytest.raises(ValueError, match=r"m\.pth holds no state_dict"):
        read_state_dict(tmp_path / "m.pth")


def _old_parameters(path, tensors):
    """As torch 0.1 to 0.3 wrote networks' parameters, torchvision's first VGGs among them."""

    class Pickler(pickle._Pickler):
        dispatch = pickle._Pickler.dispatch.copy()

        def reducer_override(self, value):
            if isinstance(value, nn.Parameter):
                return copyreg.__newobj__, (nn.Parameter, value.data), (True, False, OrderedDict())
            if isinstance(value, torch.Tensor):
                place = value.untyped_storage(), value.storage_offset(), tuple(value.shape), value.stride()
                return torch._utils._rebuild_tensor, place
            return NotImplemented

        def persistent_id(self, value):
            if isinstance(value, torch.UntypedStorage):
                return "storage", torch.FloatStorage, str(value.data_ptr()), "cpu", value.nbytes() // 4, None
            return None

    with open(path, "wb") as file:
        for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}):
            pickle.dump(part, file, 2)
        Pickler(file, 2).dump(OrderedDict((name, nn.Parameter(tensor)) for name, tensor in tensors.items()))
        pickle.dump([str(tensor.data_ptr()) for tensor in tensors.values()], file, 2)
        for tensor in tensors.values():
            file.write(tensor.numel().to_bytes(8, "little") + tensor.numpy().tobytes())


def test_parameters_of_old_files(tmp_path):
    model = _network()
    _old_parameters(tmp_path / "m.pth", model.state_dict())
    found, theirs = read_state_dict(tmp_path / "m.pth"), torch.load(tmp_path / "m.pth")
    assert all(type(tensor) is nn.Parameter for tensor in theirs.values())
    assert all(torch.equal(found[name], tensor) for name, tensor in theirs.items())
    assert found.keys() == theirs.keys()


@pytest.mark.parametrize("name", ["m.pth", "m.keras"])
def test_zip_bombs(tmp_path, name):
    with zipfile.ZipFile(tmp_path / name, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json" if name == "m.keras" else "m/data.pkl", bytes(300 << 20))
    with pytest.raises(ValueError, match=rf"{name} unpacks to 300 MiB, more than the 2.. that a weight file"):
        read(tmp_path / name)


def test_arguments_that_ask_for_memory(tmp_path):
    model = _network()
    arguments = {**model.arguments, "width": 500.0, "hidden": 1 << 20}
    write_safetensors(tmp_path / "m.safetensors", model.state_dict(), {"vggfast": json.dumps(arguments)})
    with pytest.raises(ValueError, match=r"m\.safetensors does not hold the network that it names .* must have shape"):
        load_model(tmp_path / "m.safetensors")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("m.caffemodel", b"\xa2\x06\x00" * 200_000),
        ("m.caffemodel", b"\xa2\x06\x80\xb5\x18" + b"\x3a\x00" * 200_000),
        ("m.onnx", b"\x3a\x80\xb5\x18" + b"\x0a\x00" * 200_000),
        ("m.onnx", b"\x08" * 400_002),
    ],
)
def test_protobuf_bombs(tmp_path, name, content):
    """Of messages without content, whose objects take a hundred times their bytes."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name} has more than 100000 parts, which no network has"):
        read(tmp_path / name)


# ---- what takes time and memory by its number ------------------------------------------------------------------------


def test_a_large_header_is_not_read(tmp_path):
    """Of safetensors; its own library reads up to 100 MB, which become gigabytes of objects."""
    header = json.dumps({"__metadata__": {"x": " " * (8 << 20)}}).encode()
    (tmp_path / "m.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(ValueError, match=r"m\.safetensors is not .*: its header must have at most 8 MiB, got 8"):
        read(tmp_path / "m.safetensors")


def test_a_large_zip_directory_is_not_read(tmp_path):
    entry = struct.pack("<IHHHHHHIIIHHHHHII", 0x02014B50, 20, 20, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"x"
    count = (4 << 20) // len(entry) + 1
    end = struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, 0xFFFF, 0xFFFF, count * len(entry), 4, 0)
    (tmp_path / "m.pth").write_bytes(b"PK\3\4" + entry * count + end)
    with pytest.raises(ValueError, match=r"m\.pth is not .* zip directory is broken, or has more than 4 MiB"):
        read(tmp_path / "m.pth")
