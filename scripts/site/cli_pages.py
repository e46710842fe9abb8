"""The pages of the command-line reference, made from the parsers themselves: a page for each command of vggfast."""

from __future__ import annotations

import argparse
import importlib
import io
import os
from collections.abc import Iterator
from contextlib import redirect_stdout

from vggfast import cli

COLUMNS = "84"  # argparse wraps the text of --help to the width that this variable gives


def commands() -> dict[str, str]:
    """{command: what it is for}."""
    return {name: text for name, (_, text) in cli._COMMANDS.items()}


def parser_of(command: str) -> argparse.ArgumentParser:
    """The parser of one command, with all its arguments."""
    parser = argparse.ArgumentParser(prog=f"vggfast {command}", allow_abbrev=False)
    importlib.import_module(cli._COMMANDS[command][0]).add_arguments(parser)
    return parser


def subcommands(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """The parsers of a command's own commands, such as `vggfast weights get`."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from dict.fromkeys(action.choices.values())


def page(command: str) -> str:
    """The page of one command: its help, and a table of its options; then those of its own commands."""
    parser = parser_of(command)
    parts = [f"# {parser.prog}\n", f"{_sentence(commands()[command])}\n", _about(parser)]
    parts += [f"## {child.prog}\n\n{_about(child)}" for child in subcommands(parser)]
    return "\n".join(parts)


def overview() -> str:
    """A table of all commands."""
    rows = [f"| [`vggfast {name}`]({name}.md) | {_cell(text)} |" for name, text in commands().items()]
    return "\n".join(["| command | what it does |", "|---|---|", *rows])


def _about(parser: argparse.ArgumentParser) -> str:
    help_ = f"```text\n$ {parser.prog} --help\n{_help(parser)}\n```\n"
    rows = [_row(parser, action) for action in parser._actions if _listed(action)]
    if not rows:
        return help_
    return "\n".join([help_, "| argument | values | default | meaning |", "|---|---|---|---|", *rows, ""])


def _help(parser: argparse.ArgumentParser) -> str:
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = COLUMNS
    try:
        with redirect_stdout(io.StringIO()) as text:
            parser.print_help()
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before
    return text.getvalue().rstrip()


def _listed(action: argparse.Action) -> bool:
    apart = isinstance(action, (argparse._HelpAction, argparse._SubParsersAction))
    return not apart and action.help is not argparse.SUPPRESS


def _row(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    if not action.help:
        raise ValueError(f"{parser.prog} {'/'.join(action.option_strings) or action.dest} has no help text")
    names = ", ".join(f"`{name}`" for name in action.option_strings) or f"`{action.metavar or action.dest}`"
    if action.choices is not None:
        values = ", ".join(f"`{choice}`" for choice in action.choices)
    elif action.nargs == 0:
        values = "a switch"
    else:
        metavar = action.metavar if isinstance(action.metavar, str) else " ".join(action.metavar or ())
        values = f"`{metavar or action.dest.upper()}`" + {"+": ", one or more", "*": ", any number"}.get(
            str(action.nargs), ""
        )
    plain = action.default in (None, False, argparse.SUPPRESS, [], ())
    default = "required" if action.required and action.option_strings else "" if plain else f"`{action.default}`"
    text = parser._get_formatter()._expand_help(action)
    return f"| {names} | {_cell(values)} | {_cell(default)} | {_cell(text)} |"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."
