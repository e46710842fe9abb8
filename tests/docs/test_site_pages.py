"""What the documentation site makes from the code and the results: pages of commands and rooms, and tables."""

import json
import re
import statistics
import sys
import types
from dataclasses import dataclass

import pytest

from scripts.site import api_pages, cli_pages, docstrings, results_page


@pytest.mark.parametrize("room", api_pages.ROOMS)
def test_each_public_name_has_a_docstring_and_an_entry(room):
    assert api_pages.undocumented(room) == []
    page = api_pages.page(room)
    for name in (name for name in api_pages.documented() if name.rpartition(".")[0] == room):
        assert f"::: {name}\n" in page


def test_what_has_no_docstring_is_named(monkeypatch):
    class Plain:
        """Has one."""

        def method(self):
            pass

        def _private(self):
            pass

    @dataclass
    class Generated:
        x: int

    room = types.ModuleType("room", "A room.")
    vars(room).update(
        Plain=Plain, Generated=Generated, f=lambda: 0, SIZE=1, __all__=["Plain", "Generated", "f", "SIZE"]
    )
    monkeypatch.setitem(sys.modules, "room", room)
    assert api_pages.undocumented("room") == ["room.Plain.method", "room.Generated", "room.f"]


def test_each_room_with_public_names_is_told_apart(monkeypatch):
    api_pages.check_rooms()
    monkeypatch.setattr(api_pages, "ROOMS", tuple(room for room in api_pages.ROOMS if room != "vggfast.losses"))
    with pytest.raises(ValueError, match=r"ROOMS or INTERNAL must name vggfast\.losses"):
        api_pages.check_rooms()


@pytest.mark.parametrize("command", cli_pages.commands())
def test_a_command_has_its_help_and_all_its_options(command):
    page = cli_pages.page(command)
    parsers = [cli_pages.parser_of(command)]
    parsers += cli_pages.subcommands(parsers[0])
    for parser in parsers:
        assert f"$ {parser.prog} --help\nusage: {parser.prog}" in page
        for action in parser._actions:
            for option in action.option_strings if cli_pages._listed(action) else ():
                assert re.search(rf"^\| .*`{re.escape(option)}`.* \|$", page, re.MULTILINE), option


def test_results_show_what_their_files_hold():
    page = results_page.everything()
    for path in results_page.RESULTS.glob("*.json"):
        assert f"`{path.name}`" in page
    data = json.loads((results_page.RESULTS / "model-cpu-zen5.json").read_text())
    row = next(row for row in data["rows"] if row["engine"] == "vggfast" and row["status"] == "timed")
    time = statistics.median(row["seconds"]) * 1e3 / row["case"]["batch"]
    assert f"| vggfast | {time:.2f} |" in page
    assert f"at commit {data['environment']['commit']}" in page


def test_arguments_that_share_a_text_are_told_apart():
    text = "Sums.\n\nArgs:\n    a, b: two\n        numbers.\n    c: one, two: three.\n\nReturns:\n    x, y: both.\n"
    expected = "Sums.\n\nArgs:\n    a: two\n        numbers.\n    b: two\n        numbers.\n    c: one, two: three.\n"
    assert docstrings.split(text) == expected + "\nReturns:\n    x, y: both."


def test_roles_become_links_to_known_names():
    text = "As :func:`vggfast.load` and :class:`~torch.Tensor`."
    assert docstrings.plain_roles(text, {"vggfast.load"}) == "As [`vggfast.load`][vggfast.load] and `torch.Tensor`."
