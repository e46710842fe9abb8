"""What every command's --help looks like: the usage, examples, what the command does, its options."""

from __future__ import annotations

import argparse
import textwrap


class Help(argparse.HelpFormatter):
    """Wraps paragraphs of one line, keeps those of several, and cuts no option's name at its hyphens."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=29)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(text, width, break_on_hyphens=False)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n\n".join(
            part if "\n" in part else textwrap.fill(part, width, break_on_hyphens=False) for part in text.split("\n\n")
        )


def describe(parser: argparse.ArgumentParser, text: str, *examples: str) -> None:
    """Gives a command its description, which opens with examples.

    Args:
        parser: the command's.
        text: paragraphs, with an empty line between them; one of several lines stays as it is.
        examples: command lines.
    """
    parser.formatter_class = Help
    listed = "\n".join(["examples:" if len(examples) > 1 else "example:", *(f"  {line}" for line in examples)])
    parser.description = f"{listed}\n\n{text}"
