"""Pages that need no other file: the template that they share, and pictures inside them."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from vggfast.io import shown, write_atomically


def write_page(path: str | Path, template: str, **values: Any) -> Path:
    """Writes the page that a template of this folder makes of `values`; returns its path.

    Raises:
        OSError: the file could not be written; the text names it.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=StrictUndefined,
    )  # fmt: skip
    text = shown(environment.get_template(template).render(**values))
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    return Path(path)


def error_and_accuracy(name: str, error: float) -> list[tuple[str, str]]:
    """An error in per cent and the accuracy, for a page's headline."""
    return [(f"{name} error", f"{error:.2f} %"), (f"{name} accuracy", f"{100 - error:.2f} %")]


def embedded(path: Path) -> str:
    """A PNG file as a data URL; "" where there is none."""
    return _url("png", path.read_bytes()) if path.is_file() else ""


def embedded_photo(image: Image.Image) -> str:
    """A picture as a data URL, a JPEG."""
    buffer = io.BytesIO()
    image.save(buffer, "jpeg", quality=88)
    return _url("jpeg", buffer.getvalue())


def _url(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
