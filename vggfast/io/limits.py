"""What a file may be, and how much memory it may ask for, before it is opened."""

from __future__ import annotations

import stat
import zipfile
from collections import Counter
from pathlib import Path
from typing import BinaryIO

_RATIO, _SMALL, _BEYOND = 8, 256 << 20, 768 << 20
_MOST_DIRECTORY = 4 << 20  # of an archive's directory, which has some 80 bytes for each member


def most_bytes(size: int) -> int:
    """The most bytes that a file of `size` bytes may unpack to: 8 times as many and 256 MiB, or 768 MiB more than it.

    Weights do not compress; those of a network with nine of ten pruned do so eightfold.
    """
    return min(_RATIO * size + _SMALL, size + _BEYOND)


def open_file(path: Path) -> BinaryIO:
    """Opens a file that is one, and not empty, and if an archive, one that unpacks to a sane size.

    Raises:
        FileNotFoundError, ValueError: it is not; the text names it.
    """
    try:
        found = path.stat()
    except (OSError, ValueError) as error:  # also a loop of links, a name too long, a zero byte in it
        raise FileNotFoundError(f"{path}: no such weight file") from error
    if not stat.S_ISREG(found.st_mode):
        raise ValueError(f"{path} must be a weight file, and is a {_kind(found.st_mode)}")
    if not found.st_size:
        raise ValueError(f"{path} must be a weight file, and is empty")
    file = open(path, "rb")  # noqa: SIM115
    try:
        if file.read(4) == b"PK\3\4":
            _check_archive(path, file, found.st_size)
    except BaseException:
        file.close()
        raise
    return file


def _kind(mode: int) -> str:
    kinds = {stat.S_IFDIR: "folder", stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket"}
    return kinds.get(stat.S_IFMT(mode), "device")


class _Directory:
    """A file of which zipfile, which reads an archive's directory in one piece, reads no large one."""

    def __init__(self, file: BinaryIO) -> None:
        self.seek, self.tell, self.seekable, self._file = file.seek, file.tell, file.seekable, file

    def read(self, size: int = -1) -> bytes:
        if size > _MOST_DIRECTORY:
            raise ValueError("its directory is too large")
        return self._file.read(size if size >= 0 else _MOST_DIRECTORY)  # where it reads the end of the file


def _check_archive(path: Path, file: BinaryIO, size: int) -> None:
    try:
        with zipfile.ZipFile(_Directory(file)) as archive:
            members = archive.infolist()
    except Exception as error:  # zipfile trips over broken directories in many ways
        raise ValueError(
            f"{path} is not a weight file that can be read: its zip directory is broken, or "
            f"has more than {_MOST_DIRECTORY >> 20} MiB"
        ) from error
    total, most = sum(member.file_size for member in members), most_bytes(size)
    if total > most:
        raise ValueError(
            f"{path} unpacks to {total >> 20} MiB, more than the {most >> 20} that a weight file of its size may"
        )
    names = [member.filename for member in members]
    if twice := next((name for name, times in Counter(names).items() if times > 1), None):
        raise ValueError(f"{path} has {twice} twice in its zip directory")
