"""Files that crash the libraries which read them, or keep them busy: an error that names the file."""

import os
import random
import sys
import threading

import numpy as np
import pytest

from vggfast.io import isolated, read_isolated
from vggfast.weights.formats import read


def _write_mat(path):
    weights = np.empty((1, 2), object)
    weights[0] = [np.ones((3, 3, 3, 8), np.float32), np.ones(8, np.float32)]
    layers = [{"name": "conv1_1", "type": "conv", "weights": weights}, {"name": "relu", "type": "relu"}]
    pytest.importorskip("scipy.io").savemat(path, {"layers": np.array(layers, object)})


def _write_h5(path):
    with pytest.importorskip("h5py").File(path, "w") as file:
        file.attrs["layer_names"] = [b"block1_conv1"]
        group = file.create_group("block1_conv1")
        group.attrs["weight_names"] = [b"block1_conv1/kernel:0", b"block1_conv1/bias:0"]
        group["block1_conv1/kernel:0"] = np.ones((3, 3, 3, 8), np.float32)
        group["block1_conv1/bias:0"] = np.ones(8, np.float32)


def _mutate(path, seed):
    """Another value in up to four bytes."""
    chance, data = random.Random(seed), bytearray(path.read_bytes())
    for _ in range(chance.randint(1, 4)):
        data[chance.randrange(len(data))] = chance.choice((0, 1, 255, chance.randrange(256)))
    path.write_bytes(data)


@pytest.mark.parametrize("seed", [31, 44, 82, 106, 108])
def test_files_that_crash_scipy(tmp_path, seed):
    """By the version that they were found with; others may refuse them, or read them as no network."""
    _write_mat(tmp_path / "m.mat")
    _mutate(tmp_path / "m.mat", seed)
    with pytest.raises(ValueError, match=r"m\.mat "):
        read(tmp_path / "m.mat")


@pytest.mark.slow
@pytest.mark.parametrize("seed", [564, 1041])
def test_files_that_keep_hdf5_busy(tmp_path, seed):
    _write_h5(tmp_path / "m.h5")
    _mutate(tmp_path / "m.h5", seed)
    with pytest.raises(ValueError, match=r"m\.h5 is no Keras file that can be read: "):
        read(tmp_path / "m.h5")


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "h5py ended by SIGSEGV while it read it"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGPROF)", "h5py did not come to an end with it"),
        ("raise SystemExit(3)", "h5py ended by exit code 3 while it read it"),
        ('print(\'{"tree": {"array": 0}, "arrays": [["<f4", [3], "C"]]}\')', "h5py ended by exit code 0"),
        ('print(\'{"arrays": [["<f4", [99999, 99999], "C"]]}\')', "declares 38146 MiB of values, more than the 256"),
        ('print(\'{"memory": ""}\')', "h5py asks for more than 256 MiB of memory for it"),
    ],
)
def test_how_the_process_ends(tmp_path, monkeypatch, code, said):
    pytest.importorskip("h5py")
    (tmp_path / "program.py").write_text(code)
    monkeypatch.setattr(isolated, "_PROGRAM", tmp_path / "program.py")
    with pytest.raises(ValueError, match=said):
        read_isolated(tmp_path / "m.h5", "hdf5")


@pytest.mark.parametrize("executable", ["", None, "/nowhere/python"])
def test_python_that_is_a_part_of_another_program(tmp_path, monkeypatch, executable):
    _write_h5(tmp_path / "m.h5")
    monkeypatch.setattr(sys, "executable", executable)
    with pytest.raises(ImportError, match=r"m\.h5: sys\.executable must be the Python in whose process h5py reads it"):
        read(tmp_path / "m.h5")


def test_arrays_come_as_they_are(tmp_path):
    """Of each dtype and order, and beside each other."""
    h5py = pytest.importorskip("h5py")
    chance = np.random.default_rng(0)
    arrays = {
        f"g/{dtype} {shape}": (chance.standard_normal(shape) * 99).astype(dtype)
        for dtype in ("<f4", ">f4", "<f8", "<f2", "<i8", "u1", "?")
        for shape in ((), (0, 3), (5,), (2, 3, 5))
    }
    with h5py.File(tmp_path / "m.h5", "w") as file:
        for name, array in arrays.items():
            file[name] = array
        file.create_dataset("packed", data=arrays["g/<f4 (2, 3, 5)"], chunks=(1, 2, 3), compression="gzip")
        file["g"].attrs["names"] = ["a", "ü"]
    found = read_isolated(tmp_path / "m.h5", "hdf5")
    assert found.group("g").texts("names") == ["a", "ü"]
    for name, array in [*arrays.items(), ("packed", arrays["g/<f4 (2, 3, 5)"])]:
        assert found[name].dtype == array.dtype.newbyteorder("=")
        np.testing.assert_array_equal(found[name], array)


def _change_h5(what, path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(path.with_name("other.h5"), "w") as other:
        other["secret"] = np.ones(2, np.float32)
    with h5py.File(path, "r+") as file:
        match what:
            case "external link":
                file["x"] = h5py.ExternalLink(str(path.with_name("other.h5")), "secret")
            case "soft link":
                file["x"] = h5py.SoftLink("/block1_conv1")
            case "external storage":
                file.create_dataset("x", (1,), "f4", external=[("/etc/hostname", 0, 4)])
            case "virtual":
                layout = h5py.VirtualLayout((2,), "f4")
                layout[:] = h5py.VirtualSource(str(path.with_name("other.h5")), "secret", (2,))
                file.create_virtual_dataset("x", layout)
            case "never written":
                file.create_dataset("x", (3, 3), "f4")
            case "partly written":
                file.create_dataset("x", (4,), "f4", chunks=(2,))[:2] = 1
            case "cycle":
                file["block1_conv1/x"] = file["/"]
            case "reference":
                file.create_dataset("x", (1,), h5py.ref_dtype)[0] = file["block1_conv1"].ref
            case "no shape":
                file["x"] = h5py.Empty("f4")
            case "datatype":
                file["x"] = np.dtype("f4")
            case "bomb":
                bomb = file.create_dataset("x", (32, 1 << 22), "f4", chunks=(1, 1 << 22), compression=1)
                for row in range(32):
                    bomb[row] = np.zeros(1 << 22, np.float32)


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("external link", r"/x is a link to another file, .*other\.h5, which is not followed"),
        ("soft link", "/x is a soft link, which is not followed"),
        ("external storage", "/x keeps its values in another file, /etc/hostname, which is not read"),
        ("virtual", "/x is a virtual dataset, whose values are in other files"),
        ("never written", "/x was declared but never written"),
        ("partly written", "/x has 1 of 2 parts written"),
        ("cycle", "the group /block1_conv1/x is in itself, or in two places"),
        ("reference", "/x must hold numbers of at most 64 bits, got object"),
        ("no shape", "/x must have a shape, got none"),
        ("datatype", "/x must be a group or a dataset, got a Datatype"),
        pytest.param("bomb", "it declares 512 MiB of values, more than the 2.. that", marks=pytest.mark.slow),
    ],
)
def test_what_hdf5_files_may_not_hold(tmp_path, what, said):
    _write_h5(tmp_path / "m.h5")
    _change_h5(what, tmp_path / "m.h5")
    with pytest.raises(ValueError, match=rf"m\.h5 is no Keras file that can be read: {said}"):
        read(tmp_path / "m.h5")


def test_in_a_thread_and_from_another_folder(tmp_path, monkeypatch):
    """As of a server or a notebook: no main module is needed, and no module of the folder is taken for a library."""
    _write_h5(tmp_path / "m.h5")
    (tmp_path / "numpy.py").write_text("raise SystemExit(1)")
    monkeypatch.chdir(tmp_path)
    found = []
    thread = threading.Thread(target=lambda: found.append(read_isolated(tmp_path / "m.h5", "hdf5")))
    thread.start()
    thread.join()
    assert found[0]["block1_conv1/block1_conv1/bias:0"].tolist() == [1] * 8


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "m.h5")
    (tmp_path / "m.mat").mkdir()
    (tmp_path / "m.pth").symlink_to(tmp_path / "m.pth")
    for name, said in (("m.h5", "is a pipe"), ("m.mat", "is a folder"), ("m.pth", "no such weight file")):
        with pytest.raises((ValueError, FileNotFoundError), match=rf"{name}.*{said}"):
            read(tmp_path / name)
    with pytest.raises(ValueError, match="/dev/zero must be a weight file, and is a device"):
        read("/dev/zero")
