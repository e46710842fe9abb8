"""Image files to RGB, whatever they are: any mode, 16 bits, transparent, rotated; or one line that names the file."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

_MOST_16_BIT = 65535


def open_image(path: str | Path) -> Image.Image:
    """An image file as RGB, turned as its EXIF says; its name's ending does not matter.

    16-bit gray is divided by 257, not cut off; what is transparent lies on white; of a film, the first picture.

    Raises:
        FileNotFoundError, ValueError: no such file, or it does not decode; the text is one line and names it.
    """
    try:
        with open(path, "rb") as file:
            return decode(file, str(path))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such image file") from None
    except OSError as error:
        raise ValueError(f"{path}: not a file that can be read ({error.strerror or error})") from error


def decode(file: BinaryIO, name: str) -> Image.Image:
    """:func:`open_image` of an open file, called `name` in errors."""
    try:
        if not file.read(1):
            raise ValueError("the file is empty")
        file.seek(0)
        with Image.open(file) as image:
            return to_rgb(ImageOps.exif_transpose(image))
    except MemoryError:
        raise
    except UnidentifiedImageError:
        raise ValueError(f"{name}: not an image that decodes (of no known format)") from None
    except Exception as error:  # decoders of damaged files raise whatever they trip over
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{name}: not an image that decodes ({reason})") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """RGB, 8 bits, opaque: as :func:`open_image` makes them of any mode.

    Raises:
        ValueError: pixels that are no 8 or 16-bit numbers.
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        image.load()
        return image
    if image.mode.startswith("I"):
        return _from_16_bit(np.asarray(image).astype(np.int64), image.mode).convert("RGB")
    if image.mode == "F":
        raise ValueError("its pixels must be of 8 or 16 bits, got mode F, floating pixels")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _from_16_bit(values: np.ndarray, mode: str) -> Image.Image:
    if values.size and not 0 <= values.min() <= values.max() <= _MOST_16_BIT:
        raise ValueError(f"its values must be 0 to {_MOST_16_BIT}, got {values.min()} to {values.max()} in mode {mode}")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))
