"""State dictionaries, out of .safetensors files and torch's .pth and .pt. Nothing in a file is executed."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import math
import mmap
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vggfast.io import wrappings

METADATA = "vggfast"  # the key of a .safetensors file's metadata under which we keep the network's arguments


def read_state_dict(path: str | Path, key: str | None = None) -> dict[str, Tensor]:
    """The tensors of a .safetensors, .pth or .pt file. Nothing in the file is executed.

    A checkpoint around the state_dict, and prefixes of all names such as "module.", are taken off.

    Args:
        path: the file.
        key: which state_dict, where there are several (see :func:`vggfast.io.state_dict_in`).

    Raises:
        FileNotFoundError, ValueError: no such file, or no weights in it; the text names the path.
    """
    return read_weights(Path(path), key)[0]


def read_weights(path: Path, key: str | None = None) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """(tensors, arguments of the network or None) of a .safetensors, .pth or .pt file. As `read_state_dict`."""
    file = WeightFile(path, key)
    return file.tensors(), file.arguments


class WeightFile:
    """A .safetensors, .pth or .pt file, opened once: what is asked of it later comes from the same mapped bytes.

    Args:
        path: the file.
        key: which state_dict of others to read, where there are several.

    Attributes:
        path: the file.
        arguments: those of the network, where we wrote the file; else None.

    Raises:
        FileNotFoundError, ValueError: no such file, or no weights in it; the text names the path.
    """

    def __init__(self, path: Path, key: str | None = None) -> None:
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such weight file")
        self.path = path
        self._entries: dict[str, Any] = {}  # of a .safetensors file: dtype, shape and place of each tensor
        self._loaded: dict[str, Tensor] = {}  # of another file, which is one pickle
        with self._reading():
            with open(path, "rb") as file:
                self._content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            if path.suffix == ".safetensors":
                self.arguments = self._read_header()
            else:
                content = wrappings.load(self._content)  # which reads and seeks as a file does
        if path.suffix == ".safetensors":
            if self.arguments is None:
                shapes = {name: entry["shape"] for name, entry in self._entries.items()}
                names = wrappings.plain_names(shapes, path, key)
                self._entries = {ours: self._entries[theirs] for ours, theirs in names.items()}
            return
        ours = key is None and isinstance(content, Mapping) and {"model", "arguments"} <= content.keys()
        self.arguments = content["arguments"] if ours else None  # of a training checkpoint of ours
        self._loaded = wrappings.state_dict_in(content["model"] if ours else content, path, key)

    @functools.cached_property
    def sha256(self) -> str:
        """The SHA-256 of the whole file, in hexadecimal."""
        return hashlib.sha256(self._content).hexdigest()

    def tensors(self) -> dict[str, Tensor]:
        """All tensors of the file, by name."""
        with self._reading():
            return self._loaded or {name: self._tensor(entry) for name, entry in self._entries.items()}

    def shapes(self) -> dict[str, Tensor]:
        """The tensors without their values, on torch's device "meta"."""
        if self._loaded:
            return {name: tensor.to("meta") for name, tensor in self._loaded.items()}
        return {
            name: torch.empty(entry["shape"], dtype=_DTYPES[entry["dtype"]], device="meta")
            for name, entry in self._entries.items()
        }

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        """Whatever a damaged file leads to becomes a ValueError that names the file."""
        try:
            yield
        except (
            OSError, ValueError, TypeError, AttributeError, RuntimeError, EOFError, pickle.UnpicklingError, KeyError
        ) as error:  # fmt: skip
            # torch's first sentence says what is wrong, and its others how to run what a file holds.
            said = str(error).partition(". ")[0] or "it ends too soon"
            raise ValueError(f"{self.path} is not a weight file that can be read: {said}") from error
