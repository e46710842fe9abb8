"""American spellings of commands and options, whose names are British; and what a misspelt option may be."""

from __future__ import annotations

import difflib
import re
from collections.abc import Container, Sequence

BRITISH = {
    "center": "centre", "color": "colour", "colors": "colours", "gray": "grey", "initialization": "initialisation",
    "localize": "localise", "normalize": "normalise", "optimizer": "optimiser", "quantize": "quantise",
    "stylize": "stylise",
}  # fmt: skip


def british(arguments: Sequence[str], commands: Container[str]) -> list[str]:
    """A command line with the names of its command and its options as the parsers know them; values stay."""
    found = list(arguments)
    if found and BRITISH.get(found[0]) in commands:
        found[0] = BRITISH[found[0]]
    for i, argument in enumerate(found):
        if argument == "--":
            break
        if argument.startswith("--"):
            name, equals, value = argument.partition("=")
            found[i] = "-".join(BRITISH.get(word, word) for word in name.split("-")) + equals + value
    return found


def near_options(unknown: Sequence[str], help_text: str) -> list[str]:
    """For each argument that a command does not know, the option in its help that is spelt most alike, if any is."""
    options = set(re.findall(r"--[a-z][a-z0-9-]+", help_text))
    words = [word.partition("=")[0] for word in unknown if word.startswith("--")]
    return [match for word in words for match in difflib.get_close_matches(word, options, n=1)]
