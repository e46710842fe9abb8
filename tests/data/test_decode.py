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
    image = Image.fromarray(np.array([[0, 70000]], np.int32))
    with pytest.raises(
        ValueError, match=r"x\.tif: not an image that decodes \(its values must be 0 to 65535, got 0 to 70000 in mode I"
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
