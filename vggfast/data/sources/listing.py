"""What is in a folder of classes, and what of it is no image of the data set: that is counted in one warning."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from vggfast.io import on_one_line, read_lines, shown

_ENDINGS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".pbm", ".pnm", ".tif", ".tiff", ".webp",
    ".jp2", ".avif", ".heic", ".heif",
)  # fmt: skip
SUFFIXES = tuple(ending for ending in _ENDINGS if Image.registered_extensions().get(ending) in Image.OPEN)
_OF_SYSTEMS = {  # folders that systems and programs make by themselves
    "__MACOSX", "__pycache__", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found",
}  # fmt: skip
_MOST_ENDINGS = 8  # that the warning names


def ending_of(name: str) -> str:
    """What a name ends in, in lower case with the dot: ".png"; "" where it has no ending."""
    return os.path.splitext(name)[1].lower()


def is_hidden(path: str) -> bool:
    """Whether a path has a part that systems keep for themselves, such as .DS_Store, ._a.png, @eaDir or __MACOSX."""
    if "/" not in path:  # the most, and at once
        return path in _OF_SYSTEMS or (path.startswith(".") and path not in (".", ".."))
    return any(map(is_hidden, path.split("/")))


class LeftOut:
    """Counts the members of a data set that are left out, and says so in one warning."""

    def __init__(self, endings: dict[str, int] | None = None, others: dict[str, int] | None = None) -> None:
        self.endings, self.others = Counter(endings), Counter(others)

    def file(self, name: str) -> None:
        """Counts a file that by its ending is no image."""
        self.endings[ending_of(name)] += 1

    def other(self, what: str, count: int = 1) -> None:
        """Counts members of another kind, `what` in words."""
        self.others[what] += count

    def add(self, more: LeftOut) -> None:
        self.endings.update(more.endings)
        self.others.update(more.others)

    def warn(self, name: Any) -> None:
        """Warns of what the data set called `name` leaves out; without a word where that is nothing."""
        parts = []
        if total := self.endings.total():
            counted = sorted((-count, ending or "none") for ending, count in self.endings.items() if count)
            listed = [f"{ending} {-count}" for count, ending in counted[:_MOST_ENDINGS]]
            more = ", ..." if len(counted) > _MOST_ENDINGS else ""
            files = "file" if total == 1 else "files"
            parts.append(f"{total} {files} of other endings: {', '.join(listed)}{more}")
        parts += [f"{count} {what}" for what, count in sorted(self.others.items()) if count]
        if parts:
            warnings.warn(on_one_line(f"{name} leaves out {'; '.join(parts)}"), stacklevel=2)


def class_folders(root: Path, left_out: LeftOut | None = None) -> list[str]:
    """The names of the folders in `root` that are not hidden, in order: by number where all are whole numbers.

    Raises:
        FileNotFoundError, ValueError: no such folder, or none in it; the text names it.
    """
    classes, left_out = [], left_out or LeftOut()
    for entry in _entries(root):
        if is_hidden(entry.name):
            left_out.other("hidden")
        elif entry.is_dir():
            classes.append(entry.name)
        else:
            left_out.other("beside the class folders")
    if not classes:
        raise ValueError(f"{on_one_line(root)} must have class folders, DIR/<class>/<image>, got none")
    if all(name.isascii() and name.isdecimal() for name in classes):
        return sorted(classes, key=lambda name: (int(name), name))
    return sorted(classes)


def names_of(classes: list[str]) -> list[str]:
    """Class folders' names as class names: those that are no UTF-8 and look alike are told apart by their numbers."""
    names = [shown(name) for name in classes]
    counts = Counter(names)
    return [
        name if name == raw or counts[name] == 1 else f"{name} ({i})"
        for i, (raw, name) in enumerate(zip(classes, names, strict=True))
    ]


def files_by_class(
    root: Path, subfolder: str = "", left_out: LeftOut | None = None
) -> tuple[list[str], list[str], list[int]]:
    """(class folders, files from `root` on, labels) of a folder with a folder per class, each in order.

    Links are followed. A warning says what is left out, beside what `left_out` says already.

    Raises:
        FileNotFoundError, ValueError: no such folder, no class folders, one without images, a link that leads nowhere
            or back, an image that is no regular file; the text names it.
    """
    left_out = left_out or LeftOut()
    classes = class_folders(root, left_out)
    files: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        below = os.path.join(name, subfolder)
        found = sorted(_images_below(root, below, left_out))
        if not found:
            raise ValueError(
                f"{on_one_line(root / below)} must have at least one image of {', '.join(SUFFIXES)}, got none"
            )
        files += found
        labels += [label] * len(found)
    left_out.warn(root)
    return classes, files, labels


def images_in(folder: Path, left_out: LeftOut, known: str = "") -> list[str]:
    """The names of the image files in a folder itself, in order; `known` is a file in it that is no image.

    Raises:
        As :func:`files_by_class`.
    """
    names = sorted(_images_below(folder, "", left_out, deep=False))
    left_out.endings[ending_of(known)] -= (folder / known).is_file()
    return names


def _images_below(root: Path, below: str, left_out: LeftOut, deep: bool = True) -> Iterator[str]:
    """Paths of the image files in root/below and, with `deep`, in all folders in it; from `root` on."""
    seen: dict[tuple[int, int], str] = {}
    waiting = [below]
    while waiting:
        folder = waiting.pop()
        state = os.stat(root / folder)
        first = seen.setdefault((state.st_dev, state.st_ino), folder)
        if first != folder:
            both = on_one_line(f"{root / folder} and {root / first}")
            raise ValueError(f"{both} are one folder, by a link: remove one of them")
        for entry in _entries(root / folder):
            path = os.path.join(folder, entry.name)
            if is_hidden(entry.name):
                left_out.other("hidden")
            elif entry.is_dir():
                if deep:
                    waiting.append(path)
                else:
                    left_out.other("in folders beside the images")
            elif ending_of(entry.name) in SUFFIXES:
                if not entry.is_file():
                    raise ValueError(f"{on_one_line(root / path)} must be a regular file, and is not")
                yield path
            else:
                left_out.file(entry.name)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """What is in a folder.

    Raises:
        FileNotFoundError, ValueError: no such folder, one that may not be read, or a link in it that leads nowhere.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{on_one_line(folder)}: no such folder")
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise ValueError(f"{on_one_line(folder)} must be a folder that can be read ({error.strerror})") from error
    for entry in entries:
        if entry.is_symlink() and not is_hidden(entry.name) and not os.path.exists(entry.path):
            raise FileNotFoundError(
                f"{on_one_line(entry.path)} is a link to {on_one_line(os.readlink(entry.path))}: not there"
            )
    return entries


def read_classes(path: Path) -> list[str]:
    """Class names: the lines of a file, a class a line; empty ones at its end do not count.

    Raises:
        FileNotFoundError, ValueError: no such file, nothing in it, or an empty line; the text names it.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{on_one_line(path)}: no such file of class names")
    names = [line.strip() for line in read_lines(path)]
    while names and not names[-1]:
        names.pop()
    if not names:
        raise ValueError(f"{on_one_line(path)} must have the name of a class on each line, and has no lines")
    if "" in names:
        empty = names.index("") + 1
        raise ValueError(f"{on_one_line(path)} must have the name of a class on each line, and line {empty} is empty")
    return names
