"""What mkdocs runs while it builds the site: reference pages and tables are made here, from the code and the results.

An undocumented public name is a warning, which `mkdocs build --strict` makes an error.
"""

from __future__ import annotations

import logging
from typing import Any

from mkdocs.structure.files import File, Files

from scripts.site import api_pages, cli_pages, results_page

log = logging.getLogger("mkdocs.hooks.vggfast")
TABLES = {"commands": cli_pages.overview, "rooms": api_pages.overview, "results": results_page.everything}


def on_config(config: Any) -> Any:
    """Puts the generated pages into the navigation."""
    commands = [f"reference/cli/{name}.md" for name in cli_pages.commands()]
    rooms = [{room: f"reference/api/{room}.md"} for room in api_pages.ROOMS]
    reference = [
        {"Command line": ["reference/cli/index.md", *commands]},
        {"Python": ["reference/api/index.md", *rooms]},
    ]
    config.nav = [{"Reference": reference} if "Reference" in entry else entry for entry in config.nav]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Adds a page for each command and each public room."""
    api_pages.check_rooms()
    for command in cli_pages.commands():
        files.append(File.generated(config, f"reference/cli/{command}.md", content=cli_pages.page(command)))
    for room in api_pages.ROOMS:
        for name in api_pages.undocumented(room):
            log.warning("%s has no docstring", name)
        files.append(File.generated(config, f"reference/api/{room}.md", content=api_pages.page(room)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Fills the marks <!-- generated: NAME --> of a page."""
    for name, make in TABLES.items():
        mark = f"<!-- generated: {name} -->"
        if mark in markdown:
            markdown = markdown.replace(mark, make())
    if "<!-- generated:" in markdown:
        log.warning("%s has a mark that no table is made for; there are %s", page.file.src_uri, ", ".join(TABLES))
    return markdown
