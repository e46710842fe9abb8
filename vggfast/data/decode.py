"""Image files to RGB, whatever they are: any mode, 16 bits, transparent, rotated; or one line that names the file."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from vggfast.io import on_one_line

_MOST_16_BIT = 65535
_BITS, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0  # TIFF's tags, and a value
_BAND = 1 << 22  # pixels that are converted at a time
_TURNS = Image.Transpose
_UPRIGHT = {  # by EXIF's orientation
    2: _TURNS.FLIP_LEFT_RIGHT, 3: _TURNS.ROTATE_180, 4: _TURNS.FLIP_TOP_BOTTOM, 5: _TURNS.TRANSPOSE,
    6: _TURNS.ROTATE_270, 7: _TURNS.TRANSVERSE, 8: _TURNS.ROTATE_90,
}  # fmt: skip


def open_image(path: str | Path) -> Image.Image:
    """An image file as RGB, turned as its EXIF says; its name's ending does not matter.

    16-bit gray is divided by 257, not cut off (12-bit gray of TIFF by 4095 / 255), and of 16-bit colours the high bytes
    count; what is transparent lies on white; of a film, the first picture. Colour profiles are not applied. A picture
    has at most twice as many pixels as `PIL.Image.MAX_IMAGE_PIXELS`, from which on Pillow warns.

    Raises:
        FileNotFoundError, ValueError: no such file, or it does not decode; the text is one line and names it.
    """
    name = on_one_line(path)
    try:
        if not stat.S_ISREG(kind := os.stat(path).st_mode) and not stat.S_ISDIR(kind):
            raise ValueError(f"{name}: not a file that can be read (it is no regular file)")  # which may never end
        with open(path, "rb") as file:
            return decode(file, name)
    except FileNotFoundError:
        raise FileNotFoundError(f"{name}: no such image file") from None
    except OSError as error:
        raise ValueError(f"{name}: not a file that can be read ({error.strerror or error})") from error


def decode(file: BinaryIO, name: str) -> Image.Image:
    """:func:`open_image` of an open file, called `name` in errors."""
    try:
        if not file.read(1):
            raise ValueError("the file is empty")
        file.seek(0)
        with Image.open(file) as image:
            _check(image)
            image.load()
            rgb = to_rgb(image)
            turn = _UPRIGHT.get(_orientation(image))
            return rgb if turn is None else rgb.transpose(turn)
    except MemoryError:
        raise
    except UnidentifiedImageError:
        raise ValueError(f"{name}: not an image that decodes (of no known format)") from None
    except Exception as error:  # decoders of damaged files raise whatever they trip over
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{name}: not an image that decodes ({on_one_line(reason)})") from error


def _check(image: Image.Image) -> None:
    """Before anything is decoded."""
    if image.format == "EPS":
        raise ValueError("EPS, which another program would have to draw")
    if image.format == "PNG" and isinstance(image.info.get("transparency"), int | tuple):
        _scale_transparent(image)


def _scale_transparent(image: Any) -> None:
    """Pillow gives the transparent value of a PNG as it is in the file, not as its pixels become 8-bit ones."""
    raw = str(image.tile[0].args)
    if raw in ("L;2", "L;4"):
        image.info["transparency"] *= {"L;2": 85, "L;4": 17}[raw]
    elif raw == "RGB;16B":
        raise ValueError("16-bit colours one of which is transparent, of which only 8 bits are read")


def _orientation(image: Image.Image) -> int:
    """How the picture lies, as its EXIF says; 0 where that cannot be understood."""
    try:
        found = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # whatever Pillow trips over, the pixels are there
        return 0
    return found if type(found) is int else 0


def to_rgb(image: Image.Image) -> Image.Image:
    """RGB, 8 bits, opaque: as :func:`open_image` makes them of any mode.

    Raises:
        ValueError: pixels that are no 8 or 16-bit numbers.
    """
    transparent = image.info.get("transparency")
    if image.mode == "RGB" and transparent is None:
        image.load()
        return image
    if image.mode.startswith("I"):
        black, white = _black_and_white(image)
        return _by_bands(image, lambda band: _from_16_bit(band, black, white, transparent))
    if image.mode == "F":
        raise ValueError("its pixels must be of 8 or 16 bits, got mode F, floating pixels")
    if image.has_transparency_data:
        return _by_bands(image, _on_white)
    return image.convert("RGB")


def _by_bands(image: Image.Image, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """An RGB image made band by band, so that what lies between takes little memory."""
    made = Image.new("RGB", image.size)
    rows = max(1, _BAND // image.width)
    for top in range(0, image.height, rows):
        made.paste(convert(image.crop((0, top, image.width, min(top + rows, image.height)))), (0, top))
    return made


def _on_white(band: Image.Image) -> Image.Image:
    band = band.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", band.size, "white"), band).convert("RGB")


def _black_and_white(image: Image.Image) -> tuple[int, int]:
    """Their values in a picture of more than 8 bits; Pillow gives those of TIFFs as they are in the file."""
    tags = getattr(image, "tag_v2", {})
    if tags.get(_BITS) == (32,):
        raise ValueError("its pixels must be of 8 or 16 bits, got 32")
    most = 2**12 - 1 if tags.get(_BITS) == (12,) else _MOST_16_BIT
    return (most, 0) if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO else (0, most)


def _from_16_bit(band: Image.Image, black: int, white: int, transparent: int | None) -> Image.Image:
    values, most = np.asarray(band).astype(np.int64), max(black, white)
    if values.size and not 0 <= values.min() <= values.max() <= most:
        raise ValueError(f"its values must be 0 to {most}, got {values.min()} to {values.max()} in mode {band.mode}")
    gray = ((510 * np.abs(values - black) + most) // (2 * most)).astype(np.uint8)  # rounded
    if transparent is not None:
        gray[values == transparent] = 255
    return Image.fromarray(gray).convert("RGB")
