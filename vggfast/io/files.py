"""Files that are written whole or not at all.

They are written beside their place and renamed, so that a reader sees the old one or the new one, never a half.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from vggfast.io.text import shown


def write_atomically(
    path: str | Path, write: Callable[[Path], Any], rename: Callable[[Path], str] | None = None
) -> None:
    """Calls `write` with a temporary path in the same folder, then renames it to `path`.

    Args:
        path: what the file is to be called.
        write: writes it.
        rename: gives another name, from the file as it was written.

    Raises:
        OSError: the text names `path`; what stood there before still does.
    """
    path = Path(path)
    temporary = None
    try:
        if path.exists() and not path.is_file():  # a rename would put a file in the place of a device
            raise OSError("it is a folder, or something else that is no regular file")
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name[:48]}.", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path if rename is None else path.with_name(rename(temporary)))
        _sync_folder(path.parent)
    except Exception as error:
        # torch and safetensors report a full disk in exceptions of their own.
        raise OSError(shown(f"{path} could not be written ({error}); what stood there before is unchanged")) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def check_writable(path: str | Path) -> None:
    """Raises OSError where :func:`write_atomically` could not write `path`; the text names it. For what takes long."""
    path = Path(path)
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    try:
        if path.exists() and not path.is_file():
            raise OSError("it is a folder, or something else that is no regular file")
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(shown(f"{path} cannot be written ({error})")) from error


def _sync_folder(folder: Path) -> None:
    """Makes a rename in it outlast a loss of power."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file; errors as of :func:`write_atomically`."""
    text = json.dumps(content, indent=2) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text))


def write_array(path: Path, values: np.ndarray) -> None:
    """Writes a .npy file."""

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            np.save(file, values)

    write_atomically(path, write)


def read_json(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds; empty where there is no such file.

    Raises:
        ValueError: it is no JSON object; the text names it.
    """
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is no JSON file: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(content).__name__}")
    return content
