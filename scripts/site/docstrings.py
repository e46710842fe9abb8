"""The docstrings' own idioms, as mkdocstrings reads them."""

from __future__ import annotations

import re
from collections.abc import Container

SECTION = re.compile(r"^(\s*)(Args|Attributes):\s*$")
ITEM = re.compile(r"^(\s*)(\w+(?:, \w+)+):\s(.*)$")
ROLE = re.compile(r":\w+:`~?([\w.]+)`")


def plain_roles(docstring: str, known: Container[str] = ()) -> str:
    """The docstring with names for Sphinx' roles such as :func:`name`, linked where the name is a known one."""
    return ROLE.sub(lambda m: f"[`{m[1]}`][{m[1]}]" if m[1] in known else f"`{m[1]}`", docstring)


def split(docstring: str) -> str:
    """The docstring in which `a, b: text` of an Args or Attributes section is an item for each name."""
    lines: list[str] = []
    depth: int | None = None  # of the section that the lines belong to
    names: list[str] = []  # of an item that is being read
    block: list[str] = []

    def close() -> None:
        for name in names:
            indent, _, text = ITEM.match(block[0]).groups()  # type: ignore[union-attr]
            lines.extend([f"{indent}{name}: {text}", *block[1:]])
        names.clear()
        block.clear()

    for line in docstring.splitlines():
        indent = len(line) - len(line.lstrip())
        if names and (not line.strip() or indent <= len(block[0]) - len(block[0].lstrip())):
            close()
        if section := SECTION.match(line):
            depth = len(section[1])
        elif depth is not None and line.strip() and indent <= depth:
            depth = None
        item = ITEM.match(line) if depth is not None and not names else None
        if item:
            names, block = item[2].split(", "), [line]
        elif names:
            block.append(line)
        else:
            lines.append(line)
    close()
    return "\n".join(lines)
