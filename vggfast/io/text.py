"""Text: names of files as people see them, and the lines of text files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

_NO_UTF_8 = re.compile("[\ud800-\udfff]")  # what Python makes of a name's bytes that are no UTF-8
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def shown(name: Any) -> str:
    """A file's name as text that can be written: what in it is no UTF-8 becomes replacement characters."""
    return _NO_UTF_8.sub(_REPLACEMENT, str(name))


def on_one_line(name: Any) -> str:
    """:func:`shown`, where control characters, such as the end of a line, become replacement characters too."""
    return _CONTROL.sub(_REPLACEMENT, shown(name))


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 text file, without their ends (\\n or \\r\\n) and without a byte order mark.

    Raises:
        OSError, ValueError: it cannot be read, or is no such text; the text names it.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{shown(path)} must be UTF-8 text, and its byte {error.start} is not") from None
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")] if text else []
