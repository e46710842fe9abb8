"""Every kind of image file: what it becomes, or the line that names it."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from vggfast.data import open_image


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def saved(tmp_path, image, name="x.png", **options):
    image.save(tmp_path / name, **options)
    return tmp_path / name


def pixels(path):
    image = open_image(path)
    assert image.mode == "RGB"
    return np.asarray(image)


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGB"])
def test_modes_of_a_palette_or_fewer_channels(mode, tmp_path):
    image = Image.fromarray(noise(5, 4, 3)).convert(mode)
    assert np.array_equal(pixels(saved(tmp_path, image)), np.asarray(image.convert("RGB")))


def test_cmyk(tmp_path):
    image = Image.new("CMYK", (4, 4), (255, 0, 0, 0))
    assert pixels(saved(tmp_path, image, "x.tif"))[0, 0].tolist() == [0, 255, 255]
    jpeg = pixels(saved(tmp_path, image, "x.jpg", quality=95))[0, 0]
    assert jpeg[0] < 10
    assert jpeg[1] > 245


@pytest.mark.parametrize("name", ["x.png", "x.tif"])
def test_16_bit_gray_is_divided_not_cut_off(name, tmp_path):
    values = np.array([[0, 128, 129, 257], [25700, 32768, 65278, 65535]], np.uint16)
    found = pixels(saved(tmp_path, Image.fromarray(values), name))
    assert (found == found[..., :1]).all()
    assert found[..., 0].tolist() == [[0, 0, 1, 1], [100, 128, 254, 255]]


def test_16_bit_gray_of_the_other_byte_order(tmp_path):
    values = np.array([[0, 25700, 65535]], np.uint16)
    image = Image.frombytes("I;16B", (3, 1), values.astype(">u2").tobytes())
    assert pixels(saved(tmp_path, image, "x.tif"))[0, :, 0].tolist() == [0, 100, 255]


def test_32_bit_and_floating_pixels_are_refused(tmp_path):
    for value in (255, 70000):
        image = Image.fromarray(np.array([[0, value]], np.int32))
        with pytest.raises(
            ValueError, match=r"x\.tif: not an image that decodes \(its pixels must be of 8 or 16 bits, got 32"
        ):
            open_image(saved(tmp_path, image, "x.tif"))
    image = Image.fromarray(np.array([[0.5, 1.0]], np.float32))
    with pytest.raises(
        ValueError,
        match=r"x\.tif: not an image that decodes \(its pixels must be of 8 or 16 bits, got mode F, floating pixels",
    ):
        open_image(saved(tmp_path, image, "x.tif"))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_what_is_transparent_lies_on_white(mode, tmp_path):
    image = Image.fromarray(noise(2, 3, 4), "RGBA").convert(mode)
    image.putalpha(Image.fromarray(np.array([[0, 0, 0], [255, 255, 255]], np.uint8)))
    found = pixels(saved(tmp_path, image))
    assert (found[0] == 255).all()
    assert np.array_equal(found[1], np.asarray(image.convert("RGB"))[1])


@pytest.mark.parametrize("name", ["x.png", "x.gif"])
def test_palette_with_transparency(name, tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    assert pixels(saved(tmp_path, image, name, transparency=0)).tolist() == [[[255, 255, 255], [40, 50, 60]]]


def test_palette_with_transparencies_of_each_colour(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    assert pixels(saved(tmp_path, image, transparency=bytes([255, 0]))).tolist() == [[[10, 20, 30], [255, 255, 255]]]


def test_exif_rotation(tmp_path):
    image = Image.fromarray(noise(4, 6, 3))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 270 degrees to see it upright
    found = pixels(saved(tmp_path, image, exif=exif))
    assert np.array_equal(found, np.rot90(np.asarray(image), 3))


def test_a_wrong_ending_does_not_matter(tmp_path):
    image = Image.fromarray(noise(4, 6, 3))
    image.save(tmp_path / "x.jpg", format="PNG")
    assert np.array_equal(pixels(tmp_path / "x.jpg"), np.asarray(image))


def _one_line(path, reason):
    with pytest.raises(ValueError, match="not an image that decodes") as error:
        open_image(path)
    assert str(error.value).startswith(f"{path}: not an image that decodes ({reason}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["x.jpg", "x.png", "x.tif", "x.gif", "x.bmp"])
def test_truncated(name, tmp_path):
    path = saved(tmp_path, Image.fromarray(noise(64, 64, 3)), name)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    _one_line(path, "")


def test_empty_and_foreign_files(tmp_path):
    (tmp_path / "empty.jpg").write_bytes(b"")
    _one_line(tmp_path / "empty.jpg", "the file is empty)")
    (tmp_path / "page.jpg").write_bytes(b"<html>not found</html>")
    _one_line(tmp_path / "page.jpg", "of no known format)")


def test_a_damaged_chunk(tmp_path):
    path = saved(tmp_path, Image.fromarray(noise(64, 64, 3)))
    content = bytearray(path.read_bytes())
    content[1000] ^= 0xFF
    path.write_bytes(bytes(content))
    _one_line(path, "")


def test_a_header_that_promises_too_much(tmp_path):
    """A decompression bomb: a PNG of 60,000 x 60,000 pixels."""
    content = io.BytesIO()
    Image.new("L", (1, 1)).save(content, "PNG")
    header = b"IHDR" + struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0)
    path = tmp_path / "bomb.png"
    path.write_bytes(content.getvalue()[:12] + header + struct.pack(">I", zlib.crc32(header)) + content.getvalue()[33:])
    _one_line(path, "Image size (3600000000 pixels) exceeds limit")


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.jpg: no such image file"):
        open_image(tmp_path / "nowhere.jpg")
    (tmp_path / "folder.jpg").mkdir()
    with pytest.raises(ValueError, match=r"folder\.jpg: not a file that can be read \(Is a directory\)"):
        open_image(tmp_path / "folder.jpg")


def _jpeg_with(*entries, order="<"):
    """A JPEG of 40 x 24 pixels whose EXIF has these entries: (tag, type, 4 bytes of the value)."""
    file = io.BytesIO()
    Image.fromarray(noise(24, 40, 3)).save(file, "JPEG")
    ifd = struct.pack(f"{order}H", len(entries))
    for tag, kind, value in entries:
        ifd += struct.pack(f"{order}HHI4s", tag, kind, 4 if kind == 2 else 1, value)
    exif = b"Exif\0\0" + (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8) + ifd + bytes(4)
    content = file.getvalue()
    return content[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + content[2:]


TURN = (0x112, 3, struct.pack("<HH", 6, 0))
ODD_EXIF = {
    "nothing odd": ([TURN], True),
    "orientation as a long": ([(0x112, 4, struct.pack("<I", 6))], True),
    "ImageWidth as text": ([(0x100, 2, b"40p\0"), TURN], True),
    "ImageWidth -5": ([(0x100, 9, struct.pack("<i", -5)), TURN], True),
    "XResolution NaN": ([TURN, (0x11A, 11, struct.pack("<f", float("nan")))], True),
    "offsets behind the end": ([TURN, (0x8769, 4, struct.pack("<I", 10**6))], True),
    "orientation as text": ([(0x112, 2, b"6\0\0\0")], False),
    "orientation 0": ([(0x112, 3, struct.pack("<HH", 0, 0))], False),
    "orientation 9": ([(0x112, 3, struct.pack("<HH", 9, 0))], False),
    "orientation as a float": ([(0x112, 11, struct.pack("<f", 6))], False),
    "orientation of an unknown type": ([(0x112, 99, struct.pack("<HH", 6, 0))], False),
}


@pytest.mark.parametrize(("entries", "turned"), ODD_EXIF.values(), ids=ODD_EXIF)
def test_odd_exif_turns_or_rejects_no_picture(entries, turned, tmp_path):
    path = tmp_path / "x.jpg"
    path.write_bytes(_jpeg_with(*entries))
    plain = np.asarray(Image.open(path).convert("RGB"))
    assert np.array_equal(pixels(path), np.rot90(plain, 3) if turned else plain)


@pytest.mark.parametrize("cut", [3, 9, 13, 17, 25])
def test_exif_that_is_cut_off(cut, tmp_path):
    content = _jpeg_with(TURN)
    exif = content[4:].split(b"\xff\xe0")[0][2:][:cut]
    rest = content[content.index(b"\xff\xe0") :]
    (tmp_path / "x.jpg").write_bytes(content[:4] + struct.pack(">H", len(exif) + 2) + exif + rest)
    assert pixels(tmp_path / "x.jpg").shape[:2] in ((24, 40), (40, 24))


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize(
    ("name", "mode"), [("x.png", "RGB"), ("x.tif", "RGB"), ("x.tif", "L"), ("x.tif", "CMYK"), ("x.png", "L")]
)
def test_each_orientation(turn, name, mode, tmp_path):
    """Of TIFFs that Pillow maps, those of one or four channels too, which it turns wrongly by itself."""
    exif = Image.Exif()
    exif[0x0112] = turn
    image = Image.fromarray(noise(4, 6, 3)).convert(mode)
    plain = np.asarray(image.convert("RGB"))
    upright = {
        1: plain, 2: plain[:, ::-1], 3: plain[::-1, ::-1], 4: plain[::-1], 5: plain.swapaxes(0, 1),
        6: np.rot90(plain, 3), 7: plain[::-1, ::-1].swapaxes(0, 1), 8: np.rot90(plain, 1),
    }  # fmt: skip
    assert np.array_equal(pixels(saved(tmp_path, image, name, exif=exif)), upright[turn])


def _png(width, depth, colour, row, transparent=b""):
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, 1, depth, colour, 0, 0, 0)
    key = chunk(b"tRNS", transparent) if transparent else b""
    body = chunk(b"IDAT", zlib.compress(b"\0" + row)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + key + body


@pytest.mark.parametrize(
    ("depth", "row", "key", "expected"),
    [
        (1, b"\x40", 0, [255, 255]),
        (2, b"\x60", 1, [255, 170]),
        (4, b"\x3e", 3, [255, 238]),
        (8, b"\x03\x0f", 3, [255, 15]),
        (16, struct.pack(">2H", 25700, 25701), 25700, [255, 100]),
    ],
)
def test_the_transparent_gray_of_each_depth(depth, row, key, expected, tmp_path):
    (tmp_path / "x.png").write_bytes(_png(2, depth, 0, row, struct.pack(">H", key)))
    assert pixels(tmp_path / "x.png")[0, :, 0].tolist() == expected


def test_the_transparent_one_of_16_bit_colours_is_refused(tmp_path):
    (tmp_path / "x.png").write_bytes(_png(1, 16, 2, struct.pack(">3H", 1, 2, 3), struct.pack(">3H", 1, 2, 3)))
    _one_line(tmp_path / "x.png", "16-bit colours one of which is transparent")


def test_16_bit_colours_have_their_high_bytes(tmp_path):
    (tmp_path / "x.png").write_bytes(_png(1, 16, 2, struct.pack(">3H", 0x80FF, 0x7F00, 0x00FF)))
    assert pixels(tmp_path / "x.png").tolist() == [[[0x80, 0x7F, 0]]]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n", "EPS, which another program"),
        (b"%PDF-1.4\n%%EOF", "of no known format"),
        (b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>", "of no known format"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), ""),
    ],
)
def test_what_is_no_picture(content, reason, tmp_path):
    (tmp_path / "x.png").write_bytes(content)
    _one_line(tmp_path / "x.png", reason)


def test_more_pixels_than_pillow_allows(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    with pytest.warns(Image.DecompressionBombWarning):  # as of cameras of 100 and more megapixels
        assert pixels(saved(tmp_path, Image.new("L", (10, 10)))).shape == (10, 10, 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 49)
    _one_line(tmp_path / "x.png", "Image size (100 pixels) exceeds limit of 98 pixels")


@pytest.mark.parametrize(
    ("bits", "white_is_zero", "content", "expected"),
    [(12, False, b"\xff\xf8\0", [255, 128]), (16, True, b"\xff\xff\0\0", [0, 255]), (8, True, b"\xff\0", [0, 255])],
)
def test_tiff_gray_of_other_ranges(bits, white_is_zero, content, expected, tmp_path):
    tags = {256: 2, 257: 1, 258: bits, 259: 1, 262: not white_is_zero, 273: 122, 277: 1, 278: 1, 279: len(content)}
    entries = b"".join(struct.pack("<HHII", tag, 4 if tag == 273 else 3, 1, value) for tag, value in tags.items())
    path = tmp_path / "x.tif"
    path.write_bytes(struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(4) + content)
    assert pixels(path)[0, :, 0].tolist() == expected


@pytest.mark.parametrize("mode", ["RGBA", "I;16"])
def test_conversion_by_bands(mode, tmp_path, monkeypatch):
    values = noise(7, 5, 4) if mode == "RGBA" else noise(7, 5, 2).view(np.uint16)[..., 0]
    path = saved(tmp_path, Image.fromarray(values))
    whole = pixels(path)
    monkeypatch.setattr("vggfast.data.decode._BAND", 9)
    assert np.array_equal(pixels(path), whole)
