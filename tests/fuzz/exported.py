"""Files of torch.export, quantised by PT2E's operators, whose JSON and bytes are changed.

The reference is torch.export.load, where it takes the file. A value near the middle of two steps may go either way, so
that only what is off by more than a tenth counts.
"""

from __future__ import annotations

import io
import json
import random as stdlib_random
import zipfile
from pathlib import Path
from typing import Any

import torch

import vggfast
from tests.fuzz import harness
from tests.support.comparisons import relative_error
from tests.support.exported import INT8, UINT8, Vgg
from vggfast.weights.formats import read

_JSON = ("models/model.json", "models/model.json", "data/weights/model_weights_config.json")
_TOLERANCE = 0.1
_VALUES: tuple[Any, ...] = (
    0, 1, 2, 3, -1, 7, 127, 128, 255, 1.0, 0.5, -1.0, 1e-5, True, False, None, "", "x", "aten.relu.default", [], {},
    [1, 1], [2, 2], [0, 0], {"as_none": True}, {"as_int": 1}, {"as_tensor": {"name": "x"}}, 1 << 40,
)  # fmt: skip


def _made(activations: tuple[Any, ...]) -> dict[str, bytes]:
    """The members of a file."""
    torch.manual_seed(0)
    content = io.BytesIO()
    torch.export.save(Vgg(activations, width=0.03, hidden=4, num_classes=3).exported(), content)
    with zipfile.ZipFile(content) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


_FILES = [_made(activations) for activations in (UINT8, INT8)]  # now, for it takes seconds


def _places(said: Any) -> list[tuple[Any, Any]]:
    """(container, key) of every value, but for what nobody reads."""
    items = list(said.items()) if isinstance(said, dict) else list(enumerate(said)) if isinstance(said, list) else []
    found = [(said, key) for key, _ in items if key != "metadata"]
    return found + [place for key, value in items if key != "metadata" for place in _places(value)]


def _change(said: Any, random: stdlib_random.Random) -> None:
    container, key = random.choice(_places(said))
    match random.randrange(5):
        case 0:
            del container[key]
        case 1:
            container[key] = random.choice(_VALUES)
        case 2:
            other, at = random.choice(_places(said))
            container[key], other[at] = other[at], container[key]
        case 3 if isinstance(container, list):
            container.insert(key, container[random.randrange(len(container))])
        case _:
            nodes = said.get("graph_module", {}).get("graph", {}).get("nodes", [])
            if len(nodes) > 1:
                nodes.insert(random.randrange(len(nodes)), nodes.pop(random.randrange(len(nodes))))


def case(random: stdlib_random.Random, folder: Path) -> bool:
    """See the package."""
    torch.set_num_threads(1)
    members = dict(random.choice(_FILES))
    for _ in range(random.choice([0, 1, 1, 1, 2])):
        part = random.choice(_JSON)
        name = next(each for each in members if each.endswith(part))
        said = json.loads(members[name])
        _change(said, random)
        try:
            members[name] = json.dumps(said).encode()
        except (ValueError, RecursionError):  # it holds itself
            continue
    if random.random() < 0.2:
        name = random.choice(list(members))
        members[name] = members[name][: random.randrange(len(members[name]) + 1)]
    path = folder / "m.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    found = harness.attempt(read, path, names=[str(path)], preprocessing=vggfast.Preprocessing.torchvision())
    if found is None:
        return False
    dtype = "int8" if found.model.quantisation else "fp32"
    engine = harness.attempt(vggfast.Engine, found.model, dtype=dtype, size=64)
    if engine is None:
        return False
    x = torch.randn(2, 3, 64, 64)
    try:
        with torch.no_grad():
            expected = torch.export.load(path).module()(x)
    except Exception:  # torch does not take the file
        return True
    if not (distance := relative_error(engine(x), expected)) <= _TOLERANCE:
        raise harness.Different(f"off by {distance:.2g}")
    return True
