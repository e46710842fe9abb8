"""Weight files of every format, with bytes changed, cut off, moved, or mixed with another file's.

What is read has finite weights; a file with checksums is refused where a tensor changed.
"""

from __future__ import annotations

import functools
import importlib.util
import random
import tempfile
from pathlib import Path

import torch

import vggfast
from tests.fuzz.harness import Different, attempt
from tests.support import foreign
from vggfast.weights import load_model, save_model
from vggfast.weights.formats import onnx_writer, read, torchvision

_CAFFE = vggfast.Preprocessing.caffe()


def _ours(path, model):
    save_model(model, path, {"classes": list("abcde")})


def _checkpoint(path, model):
    torch.save({"model": model.state_dict(), "arguments": dict(model.arguments), "progress": {"step": 3}}, path)


def _before_zip(path, model):
    torch.save(model.state_dict(), path, _use_new_zipfile_serialization=False)


def _packed_h5(path, model):
    import h5py

    foreign.write_keras_h5(path, foreign.keras_tensors(model))
    with h5py.File(path, "r+") as file:
        for group in [group for group in file.values() if group.attrs["weight_names"].size]:
            for name in (name.decode() if isinstance(name, bytes) else name for name in group.attrs["weight_names"]):
                value = group[name][()]
                del group[name]
                group.create_dataset(name, data=value, chunks=True, compression="gzip", shuffle=True)


def _packed_mat(path, model):
    from scipy.io import loadmat, savemat

    foreign.write_matconvnet(path, foreign.matconvnet_tensors(model))
    content = {name: value for name, value in loadmat(path).items() if name[0] != "_"}
    savemat(path, content, do_compression=True)


def _foreign(kind):
    _, tensors, writer, _ = foreign.KINDS[kind]
    return lambda path, model: writer(path, tensors(model))


# By kind: the file's name, and what writes a network to it. Reading TensorFlow's takes seconds each.
_WRITERS = {
    "ours": ("m.safetensors", _ours),
    "checkpoint": ("m.pt", _checkpoint),
    "torchvision of ours": ("m.safetensors", lambda path, model: torchvision.write(model, path)),
    "before zip": ("m.pth", _before_zip),
    "onnx of ours": ("m.onnx", lambda path, model: onnx_writer.write(model, path, {})),
    "keras, packed": ("m.h5", _packed_h5),
    "matconvnet, packed": ("m.mat", _packed_mat),
    **{
        kind: (name, _foreign(kind))
        for kind, (name, _, _, package) in foreign.KINDS.items()
        if package != "tensorflow" and importlib.util.find_spec(package)
    },
}
_WITH_SUMS = ("ours", "torchvision of ours", "checkpoint", "torchvision .pth", "timm")


@functools.cache
def _file(kind: str, seed: int) -> tuple[bytes, dict[str, torch.Tensor]]:
    """A file's bytes, and the tensors that are read from it."""
    name, write = _WRITERS[kind]
    torch.manual_seed(seed)
    model = foreign.network(config="AB"[seed % 2], width=0.03, hidden=6, pool_size=1 + seed % 2)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        write(path, model)
        return path.read_bytes(), read(path, preprocessing=_CAFFE).model.state_dict()


# ---- mutations: of bytes, with the chance that decides --------------------------------------------------------------


def _place(chance, data):
    """Anywhere, or near an end, where headers and directories are."""
    size, near = len(data), min(len(data), 2048)
    return chance.choice((chance.randrange(size), chance.randrange(near), size - 1 - chance.randrange(near)))


def _bits(chance, data):
    for _ in range(chance.choice((1, 1, 2, 8, 64))):
        data[_place(chance, data)] ^= 1 << chance.randrange(8)


def _values(chance, data):
    for _ in range(chance.randint(1, 4)):
        data[_place(chance, data)] = chance.choice((0, 1, 127, 128, 255, chance.randrange(256)))


def _cut(chance, data):
    del data[chance.choice((_place(chance, data), len(data) - chance.randrange(1, 64))) :]


def _grow(chance, data):
    data += chance.randbytes(chance.choice((1, 8, 4096)))


def _swap(chance, data):
    size = chance.choice((4, 64, 1024))
    a, b = _place(chance, data), _place(chance, data)
    data[a : a + size], data[b : b + size] = data[b : b + size], data[a : a + size]


def _fill(chance, data):
    a, size = _place(chance, data), chance.choice((4, 8, 512, 65536))
    data[a : a + size] = bytes([chance.choice((0, 255))]) * len(data[a : a + size])


def _length(chance, data):
    """A number of four or eight bytes that is large, negative, or off by one."""
    size, a = chance.choice((4, 8)), _place(chance, data)
    now = int.from_bytes(data[a : a + size], "little")
    value = chance.choice((now + 1, now - 1, 2 * now, 1 << 31, (1 << 8 * size) - 1, 1 << 30, 1 << 40))
    data[a : a + size] = (value % (1 << 8 * size)).to_bytes(size, chance.choice(("little", "big")))


def _text(chance, data):
    """Another digit, letter or bracket in place of one, as in headers of JSON."""
    texts = [i for i in range(min(len(data), 6000)) if 32 < data[i] < 127]
    for _ in range(chance.randint(1, 3)):
        if texts:
            data[chance.choice(texts)] = chance.choice(b'0123456789-.,:"[]{}aeE')


def _splice(chance, data, other):
    """The beginning of one file and the end of another."""
    a, b = _place(chance, data), _place(chance, other)
    data[a:] = other[b:]


def _opcode(chance, data):
    """Another operation of pickles, where there are some."""
    start = data.find(b"\x80\x02") + 2
    data[start + chance.randrange(min(4000, len(data) - start))] = chance.choice(
        b"(.0FIJKLMNRTUXabcdeghijlopqrstu}Q\x81\x8a"
    )


# Of zip: a record, the directory and its end; of HDF5: the superblock, headers of objects, trees, names, heaps; of
# MATLAB: an array; of pickles: how one begins.
_MARKS = (
    b"PK\3\4", b"PK\1\2", b"PK\5\6", b"\x89HDF", b"OHDR", b"OCHK", b"TREE", b"SNOD", b"HEAP", b"GCOL", b"FRHP",
    b"\x01\x00\x01\x00\x00\x00", b"\x0e\0\0\0", b"\x80\x02", b"\x80\x04",
)  # fmt: skip


def _structure(chance, data):
    """A number or a byte shortly behind a mark of the format."""
    places = [i for mark in _MARKS for i in _found(data, mark)]
    for _ in range(chance.randint(1, 3) if places else 0):
        a, size = chance.choice(places) + chance.randrange(64), chance.choice((1, 1, 2, 4, 8))
        now = int.from_bytes(data[a : a + size], "little")
        value = chance.choice((now + 1, now - 1, now ^ 1 << chance.randrange(8 * size), 0, -1, chance.getrandbits(16)))
        data[a : a + size] = (value % (1 << 8 * size)).to_bytes(size, "little")


def _found(data, mark):
    """The places of a mark; not all of them where there are many."""
    place, places = data.find(mark), []
    while place >= 0 and len(places) < 50:
        places.append(place)
        place = data.find(mark, place + 1)
    return places


_MUTATIONS = (_structure, _structure, _bits, _values, _cut, _grow, _swap, _fill, _length, _text, _opcode)


def case(random: random.Random, folder: Path) -> bool | None:
    """A file with one or two mutations."""
    kind = random.choice(list(_WRITERS))
    seed = random.randrange(2)
    content, expected = _file(kind, seed)
    data = bytearray(content)
    for _ in range(random.choice((1, 1, 1, 2))):
        if random.random() < 0.1:
            _splice(random, data, _file(random.choice(list(_WRITERS)), 1 - seed)[0])
        elif data:
            random.choice(_MUTATIONS)(random, data)
    path = folder / _WRITERS[kind][0]
    path.write_bytes(data)
    call = (
        random.choice((read, read, load_model, vggfast.vgg11))
        if path.suffix in (".safetensors", ".pt", ".pth")
        else read
    )
    if call is vggfast.vgg11:
        found = attempt(call, weights=path, width=0.03, hidden=6, pool_size=1, names=[path.name])
    elif call is load_model:
        found = attempt(call, path, names=[path.name])
    else:
        found = attempt(call, path, preprocessing=_CAFFE, names=[path.name])
    if found is None:
        return False
    model = found if call is vggfast.vgg11 else found[0] if call is load_model else found.model
    tensors = model.state_dict()
    if odd := [name for name, tensor in tensors.items() if not tensor.isfinite().all()]:
        raise Different(f"{kind}: {odd[0]} is not finite")
    if kind in _WITH_SUMS and data[:4] == content[:4]:
        for name, tensor in tensors.items():
            if name in expected and not torch.equal(tensor, expected[name]):
                raise Different(f"{kind}: {name} changed, and was accepted")
    return True
