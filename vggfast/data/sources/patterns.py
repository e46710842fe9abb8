"""Patterns of files: ranges and choices in braces, {00..09}, {9..0..3}, {a,b}, {a,{0..3}}; and *, ?, [...]."""

from __future__ import annotations

import glob
import itertools
import os
import re
from collections.abc import Iterable, Iterator

from vggfast.io import shown

_RANGE = re.compile(r"(-?[0-9]{1,18})\.\.(-?[0-9]{1,18})(?:\.\.-?([0-9]{1,18}))?")
_MOST_BRACES = 100
INDEX = ".index.npz"  # behind a shard's name: our index of it, which no pattern means


def expand(pattern: str) -> list[str]:
    """The files that a pattern names, in order; a file that is called as the pattern itself is what it names.

    Raises:
        FileNotFoundError, ValueError: one is not there, is no regular file, or is named twice; the text names it.
    """
    if pattern.count("{") > _MOST_BRACES:
        raise ValueError(f"{shown(pattern[:80])}... must have at most {_MOST_BRACES} braces, got {pattern.count('{')}")
    found: list[str] = []
    seen: dict[tuple[int, int], str] = {}
    for name in [pattern] if os.path.isfile(pattern) else _braces(pattern):
        for file in _matches(name):
            if not os.path.isfile(file):
                found_there = "not a regular file" if os.path.exists(file) else "no such shard"
                raise FileNotFoundError(f"{shown(file)}: {found_there}")
            state = os.stat(file)
            first = seen.setdefault((state.st_dev, state.st_ino), file)
            if len(seen) == len(found):
                raise ValueError(
                    f"{shown(pattern)} must name each shard once, got {shown(first)} twice, the second time as "
                    f"{shown(file)}"
                )
            found.append(file)
    return found


def _matches(name: str) -> list[str]:
    if os.path.lexists(name) or not re.search(r"[*?\[]", name):
        return [name]
    return sorted(file for file in glob.glob(name) if not file.endswith(INDEX)) or [name]


def _braces(pattern: str) -> Iterator[str]:
    """A pattern with each of the choices of its braces, one after the other; braces without choices stay."""
    for begin in (match.start() for match in re.finditer(r"\{", pattern)):
        end, commas = _partner(pattern, begin)
        if end is None:
            continue
        inside = pattern[begin + 1 : end]
        choices: Iterable[str] | None = _numbers(inside)
        if choices is None and commas:
            cuts = [begin, *commas, end]
            parts = (pattern[first + 1 : last] for first, last in itertools.pairwise(cuts))
            choices = (choice for part in parts for choice in _braces(part))
        if choices is not None:
            for choice in choices:
                for rest in _braces(pattern[end + 1 :]):
                    yield pattern[:begin] + choice + rest
            return
    yield pattern


def _partner(pattern: str, begin: int) -> tuple[int | None, list[int]]:
    """The brace that closes the one at `begin`, and the commas between them that are in no further braces."""
    depth, commas = 0, []
    for place in range(begin, len(pattern)):
        depth += {"{": 1, "}": -1}.get(pattern[place], 0)
        if depth == 1 and pattern[place] == ",":
            commas.append(place)
        if depth == 0:
            return place, commas
    return None, commas


def _numbers(text: str) -> Iterator[str] | None:
    """Those of a range, "00..09" or "9..0..3", as long as the bound that begins with 0, if one does."""
    match = _RANGE.fullmatch(text)
    if match is None:
        return None
    first, last, step = int(match[1]), int(match[2]), int(match[3] or 1) or 1
    width = max(len(bound) if bound.lstrip("-").startswith("0") else 0 for bound in match.groups()[:2])
    numbers = range(first, last + 1, step) if first <= last else range(first, last - 1, -step)
    return (f"{number:0{width}d}" for number in numbers)
