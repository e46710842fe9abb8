"""American spellings of commands and options, whose names are British."""

from __future__ import annotations

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
