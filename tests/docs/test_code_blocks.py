"""Each page's Python blocks run, one after the other, in a folder of their own with stand-ins for what a reader has.

A block whose first line is one of MARKS cannot run here. It must compile, and what it takes of vggfast must be there.
"""

from __future__ import annotations

import ast
import re
import textwrap
from pathlib import Path

import pytest
import torch

import vggfast
from tests.docs import stand_ins

ROOT = Path(__file__).parents[2]
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("docs/**/*.md"))
BLOCK = re.compile(r"^(?P<indent> *)```python[^\n]*\n(?P<code>.*?)^(?P=indent)```", re.DOTALL | re.MULTILINE)
MARKS = ("# needs a GPU", "# needs a download", "# needs your own data")


def blocks(page: str) -> list[tuple[int, str]]:
    """[(line of the page on which the block begins, code)]."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [(text.count("\n", 0, m.start("code")), textwrap.dedent(m["code"])) for m in BLOCK.finditer(text)]


def compiled(page: str, line: int, code: str):
    """The block, whose tracebacks name the page and its line."""
    return compile("\n" * line + code, str(ROOT / page), "exec")


def missing_names(code: str) -> list[str]:
    """What the code takes of vggfast that is not there."""
    missing = []
    for node in ast.walk(ast.parse(code)):
        parts = []
        while isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        if parts and isinstance(node, ast.Name) and node.id == "vggfast":
            value = vggfast
            for part in reversed(parts):
                value = getattr(value, part, None)
                if value is None:
                    missing.append(".".join(["vggfast", *reversed(parts)]))
                    break
    return missing


@pytest.fixture
def settings():
    """What a page may change of the process, put back."""
    threads, gradients = torch.get_num_threads(), torch.is_grad_enabled()
    yield
    torch.set_num_threads(threads)
    torch.set_grad_enabled(gradients)
    vggfast.set_exact(False)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)])
def test_the_blocks_of_a_page_run(page, tmp_path, monkeypatch, settings):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VGGFAST_CACHE", str(tmp_path))
    torch.manual_seed(0)
    names = stand_ins.every(tmp_path) | {"__name__": "page"}
    names |= stand_ins.PAGES.get(page, lambda _: {})(tmp_path)
    for line, code in blocks(page):
        block = compiled(page, line, code)
        if code.startswith(MARKS):
            assert missing_names(code) == [], f"{page}:{line + 1}"
        else:
            exec(block, names)


def test_stand_ins_are_for_pages_that_have_blocks():
    assert set(stand_ins.PAGES) <= {page for page in PAGES if blocks(page)}


@pytest.mark.parametrize(
    ("code", "missing"),
    [
        ("vggfast.Engine(model)", []),
        ("vggfast.losses.Perceptual({})(x)", []),
        ("vggfast.losses.Perceptuals()", ["vggfast.losses.Perceptuals"]),
        ("with vggfast.nothing() as x:\n    x.y", ["vggfast.nothing"]),
    ],
)
def test_names_that_vggfast_lacks_are_found(code, missing):
    assert missing_names(code) == missing


def test_blocks_are_found_with_their_lines(tmp_path, monkeypatch):
    (tmp_path / "page.md").write_text(
        '# Title\n\n```python\na = 1\n```\n\n=== "Tab"\n\n    ```python\n    b\n    ```\n'
    )
    monkeypatch.setattr("tests.docs.test_code_blocks.ROOT", tmp_path)
    assert blocks("page.md") == [(3, "a = 1\n"), (9, "b\n")]
    with pytest.raises(NameError) as error:
        exec(compiled("page.md", *blocks("page.md")[1]), {})
    assert error.traceback[-1].lineno == 9  # counted from 0
