"""Images: files of every format, mode and orientation, whole or damaged. Pillow's own pixels are the reference."""

from __future__ import annotations

import io
import struct
import warnings
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image, ImageOps

from tests.fuzz.harness import Different, attempt
from vggfast.data import open_image

_MODES = {
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"), "JPEG": ("L", "RGB", "CMYK", "YCbCr"),
    "GIF": ("L", "P", "RGB"), "BMP": ("1", "L", "P", "RGB"), "WEBP": ("RGB", "RGBA"), "AVIF": ("RGB", "RGBA"),
    "TIFF": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F", "LAB", "YCbCr"),
    "PPM": ("1", "L", "RGB", "I;16"), "JPEG2000": ("L", "RGB", "RGBA"), "TGA": ("L", "RGB", "RGBA"),
    "ICO": ("RGBA",), "PCX": ("L", "P", "RGB"), "SGI": ("L", "RGB"),
}  # fmt: skip
_OTHER_FILES = (
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n(run)\nshowpage\n", b"%PDF-1.4\n%%EOF\n",
    b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"", b"\0", b"GIF89a", b"\xff\xd8\xff", b"RIFF\0\0\0\0WEBP", b"II*\0",
)  # fmt: skip


def _pixels(random: Random, mode: str) -> Image.Image:
    size = random.choice((1, 2, 7, 16, 33)), random.choice((1, 3, 8, 31))
    generator = np.random.default_rng(random.randrange(2**32))
    if mode in ("I;16", "I", "F"):
        most = random.choice((255, 65535, 70000)) if mode == "I" else 65535
        values = generator.integers(0, most + 1, size)
        return Image.fromarray(values.astype({"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]))
    image = Image.fromarray(generator.integers(0, 256, (*size, 4), np.uint8), "RGBA")
    if mode in ("RGBA", "LA"):
        return image.convert(mode)
    return Image.frombytes(mode, size, generator.bytes(size[0] * size[1] * 3)) if mode == "LAB" else (
        image.convert("RGB").convert(mode)
    )  # fmt: skip


def _exif(random: Random) -> bytes:
    """An EXIF of up to four entries of any type, tag and value."""
    order = random.choice("<>")
    entries = [
        struct.pack(
            f"{order}HHI4s", random.choice((0x112, 0x112, 0x100, 0x11A, 0x8769, 0x10E, random.randrange(65536))),
            random.choice((*range(1, 14), 99)), random.choice((1, 1, 1, 2, 4, 2**32 - 1)),
            random.choice((struct.pack(f"{order}HH", random.randrange(11), 0), random.randbytes(4))),
        )
        for _ in range(random.randrange(5))
    ]  # fmt: skip
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, random.choice((8, 8, 8, 9, 10**6)))
    exif = b"Exif\0\0" + head + struct.pack(f"{order}H", len(entries)) + b"".join(entries) + bytes(4)
    return exif[: random.randrange(len(exif))] if random.random() < 0.2 else exif


def _made(random: Random) -> bytes:
    if random.random() < 0.05:
        return random.choice(_OTHER_FILES)
    format = random.choice([*_MODES])
    image = _pixels(random, random.choice(_MODES[format]))
    options: dict = {}
    if format in ("PNG", "JPEG", "WEBP", "TIFF", "AVIF") and random.random() < 0.5:
        options["exif"] = _exif(random)
        if format == "TIFF":
            options["exif"] = Image.Exif()
            options["exif"][0x112] = random.randrange(10)
    if format in ("GIF", "PNG") and image.mode in ("L", "P", "RGB") and random.random() < 0.3:
        value = random.randrange(256)
        options["transparency"] = (value,) * 3 if image.mode == "RGB" else value
    if format in ("GIF", "TIFF", "PNG", "WEBP") and random.random() < 0.2:
        options |= {"save_all": True, "append_images": [image.copy()]}
    if format == "TIFF":
        options["compression"] = random.choice((None, "tiff_lzw", "tiff_deflate", "packbits"))
    if format == "JPEG":
        options["progressive"] = random.random() < 0.5
    file = io.BytesIO()
    try:
        image.save(file, format, **options)
    except Exception:  # Pillow cannot write this mode with these options
        file = io.BytesIO()
        image.convert("RGB").save(file, "PNG")
    return file.getvalue()


def _damaged(random: Random, content: bytearray) -> bytes:
    if random.random() < 0.4:
        return bytes(content[: random.randrange(len(content) + 1)])
    for _ in range(random.randrange(1, 9)):
        if content:
            place = random.randrange(min(len(content), random.choice((64, 512, 10**9))))
            content[place] = random.choice((0, 255, 127, random.randrange(256)))
    return bytes(content)


def _reference(content: bytes) -> tuple[np.ndarray | None, bool]:
    """(Pillow's RGB pixels, on white, None where it has none; whether EXIF may have turned them).

    By a path, Pillow 13 maps uncompressed TIFFs, and turns those of one or four channels wrongly.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            pixels = image.convert("RGBA") if image.has_transparency_data else image.convert("RGB")
            if pixels.mode == "RGBA":
                pixels = Image.alpha_composite(Image.new("RGBA", pixels.size, "white"), pixels).convert("RGB")
            if image.mode.startswith(("I", "F")) or (image.format == "PNG" and "transparency" in image.info):
                return None, False
        with Image.open(io.BytesIO(content)) as image:
            try:
                turned = ImageOps.exif_transpose(image).size != image.size or image.getexif().get(0x112) not in (
                    None,
                    1,
                )
            except Exception:
                turned = True
        return np.asarray(pixels), turned
    except Exception:
        return None, False


def case(random: Random, folder: Path) -> bool:
    content = _made(random)
    if whole := random.random() < 0.5:
        pass
    else:
        content = _damaged(random, bytearray(content))
    path = folder / f"photo{random.choice(('.png', '.jpg', '', chr(10)))}"
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = attempt(open_image, path, names=["photo"])
        expected, turned = _reference(content)
    if found is None:
        if whole and expected is not None and not content.startswith(b"%!PS"):
            raise Different("Pillow reads it, and it was refused")
        return False
    pixels = np.asarray(found)
    if found.mode != "RGB" or pixels.dtype != np.uint8 or pixels.shape[2] != 3:
        raise Different(f"mode {found.mode} and shape {pixels.shape}")
    if expected is not None and not any(np.array_equal(pixels, each) for each in _orientations(expected, turned)):
        raise Different(f"other pixels than Pillow's, shapes {pixels.shape} and {expected.shape}")
    return True


def _orientations(pixels: np.ndarray, turned: bool) -> list[np.ndarray]:
    if not turned:
        return [pixels]
    return [np.rot90(each, k) for each in (pixels, pixels[:, ::-1]) for k in range(4)]
