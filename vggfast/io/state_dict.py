"""State dictionaries, out of .safetensors files and torch's .pth and .pt. Nothing in a file is executed."""

from __future__ import annotations

import functools
import hashlib
import json
import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vggfast.io import torch_file, wrappings
from vggfast.io.finite import check_finite
from vggfast.io.limits import open_file
from vggfast.io.safetensors_file import Entry, check_sums, read_header
from vggfast.io.text import on_one_line

METADATA = "vggfast"  # the key of a .safetensors file's metadata under which we keep the network's arguments


def read_state_dict(path: str | Path, key: str | None = None, *, allow_non_finite: bool = False) -> dict[str, Tensor]:
    """The tensors of a .safetensors, .pth or .pt file. Nothing in the file is executed.

    A checkpoint around the state_dict, and prefixes of all names such as "module.", are taken off.

    Args:
        path: the file.
        key: which state_dict, where there are several (see :func:`vggfast.io.state_dict_in`).
        allow_non_finite: take infinities, NaN and negative variances.

    Raises:
        FileNotFoundError, ValueError: no such file, no weights in it, other ones than its checksums are of, or some
            that are not finite; the text names the path.
    """
    return WeightFile(Path(path), key, allow_non_finite=allow_non_finite).tensors()


class WeightFile:
    """A .safetensors, .pth or .pt file, opened once: what is asked of it later comes from the same mapped bytes.

    Another process that cuts the file off while it is mapped ends this one (SIGBUS).

    Args:
        path: the file.
        key: which state_dict of others to read, where there are several.
        allow_non_finite: take infinities, NaN and negative variances.

    Attributes:
        path: the file.
        arguments: those of the network, where we wrote the file; else None.
        metadata: the texts of a .safetensors file.

    Raises:
        FileNotFoundError, ValueError: no such file, or no weights in it; the text names the path.
    """

    def __init__(self, path: Path, key: str | None = None, *, allow_non_finite: bool = False) -> None:
        self.path, self.metadata = path, dict[str, str]()
        self._allow_non_finite = allow_non_finite
        self._entries: dict[str, Entry] = {}  # of a .safetensors file: dtype, shape and place of each tensor
        self._loaded: dict[str, Tensor] = {}  # of another file, which is one pickle
        with open_file(path) as file:
            self._content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        if path.suffix == ".safetensors":
            self.arguments = self._read_header(key)
            return
        try:
            content = torch_file.load(self._content)
        except ValueError as error:
            raise self._unreadable(error) from error
        ours = key is None and isinstance(content, Mapping) and {"model", "arguments"} <= content.keys()
        self.arguments = content["arguments"] if ours else None  # of a training checkpoint of ours
        self._loaded = wrappings.state_dict_in(content["model"] if ours else content, path, key)

    def _read_header(self, key: str | None) -> dict[str, Any] | None:
        """Keeps what the tensors are; returns the arguments of the network."""
        try:
            self._of_file, self.metadata = read_header(self._content)
            arguments = json.loads(self.metadata.get(METADATA, "null"))
        except (ValueError, RecursionError) as error:
            raise self._unreadable(error) from error
        names = {name: name for name in self._of_file}
        if arguments is None:
            shapes = {name: entry.shape for name, entry in self._of_file.items()}
            names = wrappings.plain_names(shapes, self.path, key)
        self._entries = {ours: self._of_file[theirs] for ours, theirs in names.items()}
        return arguments

    @functools.cached_property
    def sha256(self) -> str:
        """The SHA-256 of the whole file, in hexadecimal."""
        return hashlib.sha256(self._content).hexdigest()

    def tensors(self) -> dict[str, Tensor]:
        """All tensors of the file, by name.

        Raises:
            ValueError: they are others than the file's checksums are of, or not finite; the text names path and tensor.
        """
        return dict(self._tensors)

    @functools.cached_property
    def _tensors(self) -> dict[str, Tensor]:
        if self._entries:
            try:
                check_sums(self._content, self._of_file, self.metadata)
            except ValueError as error:
                raise self._unreadable(error) from error
        found = self._loaded or {name: entry.tensor(self._content) for name, entry in self._entries.items()}
        if not self._allow_non_finite:
            check_finite(self.path, found)
        return found

    def shapes(self) -> dict[str, Tensor]:
        """The tensors without their values, on torch's device "meta"."""
        if self._loaded:
            return {name: tensor.to("meta") for name, tensor in self._loaded.items()}
        return {
            name: torch.empty(entry.shape, dtype=entry.dtype, device="meta") for name, entry in self._entries.items()
        }

    def _unreadable(self, error: Exception) -> ValueError:
        return ValueError(f"{self.path} is not a weight file that can be read: {on_one_line(error)}")
