"""The pages of the API reference: one a public room, with every name of its __all__, from the docstrings."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
import types
from typing import Any

import vggfast
from scripts.site import docstrings

# The rooms that have a page, in the order of the navigation. Each has an __all__ of documented names.
ROOMS = (
    "vggfast", "vggfast.acceleration", "vggfast.ops", "vggfast.nn", "vggfast.losses", "vggfast.style_transfer",
    "vggfast.evaluate", "vggfast.features", "vggfast.localisation", "vggfast.weights", "vggfast.data",
    "vggfast.engine", "vggfast.training", "vggfast.tasks", "vggfast.report",
)  # fmt: skip
# Rooms whose __all__ is for the other rooms of vggfast, and no promise to anybody else.
INTERNAL = {"vggfast.graph", "vggfast.io"}
# Names that are themselves rooms, or say what they are: they are listed, and have no docstring of their own.
PLAIN = (str, int, float, tuple, dict)


def check_rooms() -> None:
    """Every room with an __all__ is in ROOMS or INTERNAL."""
    found = set()
    for module in pkgutil.iter_modules(vggfast.__path__, "vggfast."):
        if not module.name.rpartition(".")[2].startswith("_") and module.name != "vggfast.cli":
            room = importlib.import_module(module.name)
            if hasattr(room, "__all__"):
                found.add(module.name)
    missing = sorted(found - set(ROOMS) - INTERNAL)
    if missing:
        raise ValueError(f"scripts/site/api_pages.py: ROOMS or INTERNAL must name {', '.join(missing)}")


def documented() -> set[str]:
    """The full names that have an entry on some page."""
    return {
        f"{room}.{name}"
        for room in ROOMS
        for name in importlib.import_module(room).__all__
        if not isinstance(getattr(importlib.import_module(room), name), (*PLAIN, types.ModuleType))
    }


def undocumented(room: str) -> list[str]:
    """The public names of a room that have no docstring, and the public methods of its classes that have none."""
    module = importlib.import_module(room)
    missing = [] if inspect.getdoc(module) else [room]
    for name in module.__all__:
        value = getattr(module, name)
        if isinstance(value, (*PLAIN, types.ModuleType)):
            continue
        if not _own_doc(value):
            missing.append(f"{room}.{name}")
        if inspect.isclass(value):
            missing += [f"{room}.{name}.{method}" for method in _methods(value)]
    return missing


def page(room: str) -> str:
    """The page of a room: its docstring's first paragraph, its constants, and an entry for each name."""
    module = importlib.import_module(room)
    lines = [f"# {room}", "", _doc(module), ""]
    rooms = [name for name in module.__all__ if isinstance(getattr(module, name), types.ModuleType)]
    constants = [name for name in module.__all__ if isinstance(getattr(module, name), PLAIN)]
    for name in rooms:
        inner = f"vggfast.{name}"
        link = f"[{inner}]({inner}.md)" if inner in ROOMS else f"`{room}.{name}`"
        lines += [f"- {link}: {_doc(getattr(module, name)).splitlines()[0]}", ""]
    if constants:
        lines += ["| constant | value |", "|---|---|"]
        lines += [f"| `{room}.{name}` | `{getattr(module, name)!r}` |" for name in constants] + [""]
    for name in module.__all__:
        if name not in rooms + constants:
            lines += [f"::: {room}.{name}", "", *_fields(getattr(module, name))]
    return "\n".join(lines)


def overview() -> str:
    """A table of all rooms."""
    rows = []
    for room in ROOMS:
        module = importlib.import_module(room)
        first = _doc(module).split("\n\n")[0]
        names = ", ".join(f"`{name}`" for name in module.__all__)
        rows.append(f"| [{room}]({room}.md) | {' '.join(first.split())} | {names} |")
    return "\n".join(["| room | what it holds | names |", "|---|---|---|", *rows])


def _doc(module: types.ModuleType) -> str:
    return docstrings.plain_roles(inspect.cleandoc(module.__doc__ or ""))


def _fields(value: Any) -> list[str]:
    """A table of a dataclass' fields, where these say what they are."""
    if not (inspect.isclass(value) and dataclasses.is_dataclass(value)):
        return []
    fields = [field for field in dataclasses.fields(value) if "help" in field.metadata]
    rows = [f"| `{field.name}` | `{field.default!r}` | {_cell(field.metadata['help'])} |" for field in fields]
    return ["| field | default | meaning |", "|---|---|---|", *rows, ""] if rows else []


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


def _own_doc(value: Any) -> str:
    """A docstring that was written: dataclasses make one of their own, which says no more than the signature."""
    text = inspect.getdoc(value) or ""
    return "" if inspect.isclass(value) and text.startswith(f"{value.__name__}(") else text


def _methods(kind: type) -> list[str]:
    members = {name: value for name, value in vars(kind).items() if not name.startswith("_")}
    return [
        name
        for name, value in members.items()
        if isinstance(value, (types.FunctionType, property, classmethod, staticmethod))
        and not inspect.getdoc(getattr(kind, name))
    ]
