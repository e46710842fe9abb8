"""Files of libraries that a broken file crashes or keeps busy for ever: read in a process of their own.

That process has no torch and starts in a fraction of a second. It may take only so much memory and time, and sends the
arrays through a pipe straight into the memory where they stay.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from vggfast.io.limits import most_bytes

_PROGRAM = Path(__file__).with_name("isolated_reader.py")
# By library: what people call it, and its package.
_LIBRARIES = {"hdf5": "h5py", "matlab": "scipy.io", "tensorflow": "tensorflow"}
_PIPE = 1 << 20


class Group(dict[str, Any]):
    """A group of an HDF5 file or a struct of MATLAB's: its members by name, and of an HDF5 file its attributes.

    Members are arrays, groups, and of MATLAB's texts and cells, which are arrays of objects. "a/b" is a's member b.

    Attributes:
        attrs: texts, numbers and lists of them; None for attributes of other kinds.
    """

    def __init__(self, members: dict[str, Any], attrs: dict[str, Any]) -> None:
        super().__init__(members)
        self.attrs = attrs

    def __missing__(self, name: str) -> Any:
        first, found, rest = name.strip("/").partition("/")
        if not found or not isinstance(inner := self[first], Group):
            raise KeyError(name)
        return inner[rest]

    def group(self, name: str) -> Group:
        """A member that must be a group. Raises ValueError."""
        return self._of(name, Group, "a group")

    def array(self, name: str) -> np.ndarray:
        """A member that must be an array. Raises ValueError."""
        return self._of(name, np.ndarray, "an array")

    def texts(self, attribute: str) -> list[str]:
        """An attribute that must be a list of texts. Raises ValueError."""
        value = self.attrs.get(attribute)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise ValueError(f"its attribute {attribute} must be a list of texts, got {str(value)[:80]}")
        return value

    def _of(self, name: str, kind: type, text: str) -> Any:
        try:
            value = self[name]
        except KeyError:
            raise ValueError(f"it has no {name!r}") from None
        if not isinstance(value, kind):
            raise ValueError(f"its {name!r} must be {text}, got {type(value).__name__}")
        return value


def read_isolated(path: Path, library: str, *, skip: str = "", member: str = "") -> Group:
    """What a file holds, as `library` reads it in a process of its own.

    Args:
        path: the file; of TensorFlow's checkpoints of several files, their prefix.
        library: "hdf5", "matlab" or "tensorflow".
        skip: a regular expression for what is not wanted of HDF5 ("/group/dataset") and TensorFlow (names).
        member: of an archive with an HDF5 file in it, its name there.

    Raises:
        ValueError: the file is broken, refers to other files, or wants too much memory or time; the text does not
            have its path, which the caller adds.
        ModuleNotFoundError: the package that reads it is missing.
        ImportError: sys.executable is no Python to start; the text names the path.
    """
    package = _LIBRARIES[library]
    if importlib.util.find_spec(package) is None:
        raise ModuleNotFoundError(f"No module named {package!r}")
    size = sum(file.stat().st_size for file in [path, *path.parent.glob(f"{path.name}.*")] if file.is_file())
    most = most_bytes(size)
    options = {
        "library": library, "path": str(path), "skip": skip, "member": member, "size": size, "most": most,
        "path_of_modules": sys.path,
    }  # fmt: skip
    single = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "MALLOC_ARENA_MAX"), "1")
    try:
        process = subprocess.Popen(
            [sys.executable or "", str(_PROGRAM), json.dumps(options)], stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, pipesize=_PIPE,
            env={**os.environ, **single, "TF_CPP_MIN_LOG_LEVEL": "3"},
        )  # fmt: skip
    except OSError as error:  # as where Python is a part of another program
        raise ImportError(
            f"{path}: sys.executable must be the Python in whose process {package} reads it, got {sys.executable!r}"
        ) from error
    try:
        return _received(process, package, most)
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def _received(process: subprocess.Popen[bytes], package: str, most: int) -> Group:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line.endswith(b"\n"):
        raise ValueError(_how_it_ended(process, package))
    answer = json.loads(line)
    if "memory" in answer:
        raise ValueError(f"{package} asks for more than {most >> 20} MiB of memory for it")
    if "error" in answer:
        raise ValueError(answer["error"])
    described = [(np.dtype(dtype), shape, order) for dtype, shape, order in answer["arrays"]]
    total = sum(dtype.itemsize * math.prod(shape) for dtype, shape, _ in described)
    if total > most:
        raise ValueError(f"it declares {total >> 20} MiB of values, more than the {most >> 20} that such a file may")
    arrays = []
    for dtype, shape, order in described:
        array = np.empty(shape, dtype, order)
        target = (array.T if order == "F" else array).reshape(-1).view(np.uint8).data
        while target.nbytes:
            count = process.stdout.readinto(target)  # type: ignore[attr-defined]
            if not count:
                raise ValueError(_how_it_ended(process, package))
            target = target[count:]
        arrays.append(array)
    return _decoded(answer["tree"], arrays)


def _decoded(node: Any, arrays: list[np.ndarray]) -> Any:
    if not isinstance(node, dict):
        return node
    if "array" in node:
        return arrays[node["array"]]
    if "cell" in node:
        cell = np.empty(len(node["cell"]), object)
        for i, item in enumerate(node["cell"]):
            cell[i] = _decoded(item, arrays)
        return cell
    return Group({name: _decoded(member, arrays) for name, member in node["fields"].items()}, node["attrs"])


def _how_it_ended(process: subprocess.Popen[bytes], package: str) -> str:
    code = process.wait()
    if code == -signal.SIGPROF:
        return f"{package} did not come to an end with it"
    return f"{package} ended by {signal.Signals(-code).name if code < 0 else f'exit code {code}'} while it read it"
