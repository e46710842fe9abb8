"""What griffe makes of each docstring before it is read (docstrings.py)."""

from __future__ import annotations

from typing import Any

import griffe

from scripts.site import api_pages, docstrings


class Docstrings(griffe.Extension):
    """Mends the docstrings of all objects."""

    def __init__(self) -> None:
        self.known = api_pages.documented()

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = docstrings.plain_roles(docstrings.split(obj.docstring.value), self.known)
