"""Commands and options in British and in American spelling."""

import argparse
import importlib

import pytest

from vggfast.cli import _COMMANDS, main
from vggfast.cli.spelling import BRITISH, british

_AMERICAN = {there: here for here, there in BRITISH.items()}


def _names(parser):
    """The options of a parser, and of the parsers of its parts."""
    for action in parser._actions:
        yield from (name for name in action.option_strings if name.startswith("--"))
        if isinstance(action, argparse._SubParsersAction):
            for part in action.choices.values():
                yield from _names(part)


@pytest.mark.parametrize("command", _COMMANDS)
def test_every_option_has_both_spellings(command):
    parser = argparse.ArgumentParser()
    importlib.import_module(_COMMANDS[command][0]).add_arguments(parser)
    for name in _names(parser):
        american = "-".join(_AMERICAN.get(word, word) for word in name.split("-"))
        assert british([american], ()) == british([name], ()) == [name]


def test_commands_have_both_spellings(capsys):
    there = [name for name in _COMMANDS if name in _AMERICAN]
    assert there == ["localise", "stylise"]
    for name in there:
        with pytest.raises(SystemExit) as stop:
            main([_AMERICAN[name], "--help"])
        assert stop.value.code == 0
        assert capsys.readouterr().out.startswith(f"usage: vggfast {name} ")


def test_values_stay():
    given = ["stylize", "--optimizer=optimizer", "--style", "color", "--", "--color"]
    there = ["stylise", "--optimiser=optimizer", "--style", "color", "--", "--color"]
    assert british(given, _COMMANDS) == there
    assert british(["color"], _COMMANDS) == ["color"]
    assert british([], _COMMANDS) == []


@pytest.mark.parametrize(("given", "meant"), [
    (["--init-form", "x.pth"], "--init-from"), (["--batchsize=8"], "--batch-size"), (["--zzz"], None),
])  # fmt: skip
def test_a_misspelt_option_has_a_suggestion(capsys, given, meant):
    with pytest.raises(SystemExit) as stop:
        main(["train", *given])
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("usage: vggfast train ")
    assert f"unrecognized arguments: {' '.join(given)}" in said
    assert (f"; did you mean {meant}?" in said) if meant else ("did you mean" not in said)


def test_an_option_before_the_command(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--foo", "train"])
    assert stop.value.code == 2
    assert "vggfast: error: unrecognized arguments: --foo" in capsys.readouterr().err
