"""The program of the process in which :mod:`vggfast.io.isolated` reads a file. Run by its path, and imported by nobody.

``python isolated_reader.py OPTIONS``, a JSON object: library, path, skip, member, size, most and path_of_modules. It
writes a line of JSON, {"tree": ..., "arrays": [[dtype, shape, order], ...]} or {"error": ...} or {"memory": ...}, and
then the bytes of the arrays.
"""

import json
import os
import sys

OPTIONS = json.loads(sys.argv[1])
sys.path[:] = OPTIONS["path_of_modules"]  # those of the process that asks; the folder of this file is none of them

import io  # noqa: E402
import math  # noqa: E402
import re  # noqa: E402
import resource  # noqa: E402
import signal  # noqa: E402
import zipfile  # noqa: E402

import numpy as np  # noqa: E402

SLAB = 64 << 20  # bytes of a dataset that are in memory at one time
# Of the processor's time: small files of HDF5 and MATLAB take 0.02 s, large compressed ones 1 s for 200 MiB.
SECONDS, BYTES_PER_SECOND = {"hdf5": 0.75, "matlab": 0.75, "tensorflow": 2}, 32 << 20


class Refused(ValueError):  # noqa: N818
    """What the file holds is not taken; the text says what."""


def limit() -> None:
    """Sets what the process may take from here on, when its libraries are imported: memory, and the processor's time.

    The time is the processor's, so that neither a slow disk nor a busy machine counts.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, SECONDS[OPTIONS["library"]] + OPTIONS["size"] / BYTES_PER_SECOND)
    if os.path.exists("/proc/self/statm"):
        with open("/proc/self/statm") as file:
            now = int(file.read().split()[0]) * resource.getpagesize()
        most, (_, allowed) = now + OPTIONS["most"], resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (most if allowed < 0 else min(most, allowed),) * 2)


class Arrays:
    """The arrays of a file: what they are, and what yields their bytes when they are wanted."""

    def __init__(self):
        self.described, self.parts = [], []

    def add(self, place, dtype, shape, parts, order="C"):
        """The node of an array in the tree."""
        if dtype.kind not in "fiub" or dtype.itemsize > 8:
            raise Refused(f"{place} must hold numbers of at most 64 bits, got {dtype}")
        self.described.append([dtype.newbyteorder("=").str, list(shape), order])
        self.parts.append(parts)
        return {"array": len(self.described) - 1}

    def write(self, out):
        for (dtype, *_), parts in zip(self.described, self.parts, strict=True):
            for part in parts():
                out.write(np.ascontiguousarray(part, dtype).reshape(-1).view(np.uint8).data)


# ---- HDF5 ------------------------------------------------------------------------------------------------------------


def hdf5(arrays):
    import h5py

    limit()
    source = OPTIONS["path"]
    with open(source, "rb") as file:
        archive = file.read(4) == b"PK\3\4"
    if archive:
        with zipfile.ZipFile(source) as file:
            source = io.BytesIO(file.read(OPTIONS["member"]))
    return _group(h5py, h5py.File(source, "r"), "", set(), arrays)


def _group(h5py, group, place, seen, arrays):
    address = h5py.h5o.get_info(group.id).addr
    if address in seen:
        raise Refused(f"the group {place or '/'} is in itself, or in two places")
    seen.add(address)
    fields = {}
    for name in group:
        at = f"{place}/{name}"
        if OPTIONS["skip"] and re.search(OPTIONS["skip"], at):
            continue
        link = group.get(name, getlink=True)
        if isinstance(link, h5py.ExternalLink):
            raise Refused(f"{at} is a link to another file, {link.filename}, which is not followed")
        if not isinstance(link, h5py.HardLink):
            raise Refused(f"{at} is a soft link, which is not followed")
        item = group[name]
        if isinstance(item, h5py.Group):
            fields[name] = _group(h5py, item, at, seen, arrays)
        elif isinstance(item, h5py.Dataset):
            fields[name] = _dataset(h5py, item, at, arrays)
        else:
            raise Refused(f"{at} must be a group or a dataset, got a {type(item).__name__}")
    attributes = {name: _attribute(value) for name, value in group.attrs.items()}
    return {"fields": fields, "attrs": attributes}


def _dataset(h5py, dataset, place, arrays):
    if dataset.id.get_create_plist().get_external_count():
        raise Refused(f"{place} keeps its values in another file, {dataset.external[0][0]}, which is not read")
    if dataset.is_virtual:
        raise Refused(f"{place} is a virtual dataset, whose values are in other files")
    if dataset.shape is None:
        raise Refused(f"{place} must have a shape, got none")
    if dataset.size:
        chunks = dataset.chunks
        written = dataset.id.get_num_chunks() if chunks else int(dataset.id.get_storage_size() > 0)
        extents = zip(dataset.shape, chunks, strict=True) if chunks else ()
        needed = math.prod(-(-extent // part) for extent, part in extents)
        if written < needed:
            what = "was declared but never written" if not written else f"has {written} of {needed} parts written"
            raise Refused(f"{place} {what}")
    row = dataset.dtype.itemsize * math.prod(dataset.shape[1:])
    # Chunks would be read once for each slab that they are in.
    step = max(1, SLAB // max(1, row)) if dataset.chunks is None else max(1, len(dataset) if dataset.shape else 1)

    def parts():
        if not dataset.shape:
            yield dataset[()]
            return
        for first in range(0, len(dataset), step):
            yield dataset[first : first + step]

    return arrays.add(place, dataset.dtype, dataset.shape, parts)


def _attribute(value):
    """Texts, numbers and lists of them; None for others."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, (np.ndarray, np.generic)):
        return _attribute(value.tolist())
    if isinstance(value, (list, tuple)):
        return [_attribute(item) for item in value]
    return value if isinstance(value, (str, int, float, bool)) else None


# ---- MATLAB ----------------------------------------------------------------------------------------------------------


def matlab(arrays):
    from scipy.io import loadmat
    from scipy.io.matlab import mat_struct

    limit()
    content = loadmat(OPTIONS["path"], struct_as_record=False)
    fields = {
        name: _value(mat_struct, value, name, arrays) for name, value in content.items() if not name.startswith("__")
    }
    return {"fields": fields, "attrs": {}}


def _value(mat_struct, value, place, arrays):
    if isinstance(value, mat_struct):
        fields = {
            name: _value(mat_struct, getattr(value, name), f"{place}.{name}", arrays) for name in value._fieldnames
        }
        return {"fields": fields, "attrs": {}}
    if type(value) is not np.ndarray:
        raise Refused(f"{place} must be numbers, a text, a struct or a cell, got a {type(value).__name__}")
    if value.dtype.kind == "O":
        items = [_value(mat_struct, item, f"{place}{{{i}}}", arrays) for i, item in enumerate(value.flat, 1)]
        return {"cell": items}
    if value.dtype.kind == "U":
        return {"cell": value.ravel().tolist()}
    if value.flags.c_contiguous:
        return arrays.add(place, value.dtype, value.shape, lambda: [value])
    return arrays.add(place, value.dtype, value.shape, lambda: [value.T], "F")


# ---- TensorFlow ------------------------------------------------------------------------------------------------------


def tensorflow(arrays):
    import tensorflow as tf

    limit()
    reader = tf.train.load_checkpoint(OPTIONS["path"])
    types = reader.get_variable_to_dtype_map()
    fields = {}
    for name, shape in reader.get_variable_to_shape_map().items():
        if not (OPTIONS["skip"] and re.search(OPTIONS["skip"], name)):
            dtype = np.dtype(types[name].as_numpy_dtype)
            fields[name] = arrays.add(name, dtype, shape, lambda name=name: [reader.get_tensor(name)])
    return {"fields": fields, "attrs": {}}


def main():
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print
    arrays = Arrays()
    try:
        tree = {"hdf5": hdf5, "matlab": matlab, "tensorflow": tensorflow}[OPTIONS["library"]](arrays)
        answer = {"tree": tree, "arrays": arrays.described}
        text = json.dumps(answer)
    except Exception as error:
        # The libraries report a broken file by exceptions of every kind.
        kind = "memory" if isinstance(error, MemoryError) else "error"
        ours = isinstance(error, (ValueError, OSError, NotImplementedError)) and not isinstance(error, UnicodeError)
        text = json.dumps({kind: str(error) if ours else "its parts are not what they should be"})
    out.write(text.encode() + b"\n")
    if text.startswith('{"tree"'):
        out.flush()
        arrays.write(out)
    out.flush()
    os._exit(0)  # a library's end of a broken file may crash, or not come


main()
