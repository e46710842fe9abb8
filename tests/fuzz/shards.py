"""Shards: tar files of random members, whole or damaged, and patterns of their names.

A picture's gray value is its number, and so is the label of its name: what is read must be a picture with its own
label, and of what was written nothing may be missing, unless the warning counts it.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
import warnings
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image

from tests.fuzz.harness import Different, attempt
from vggfast.data import open_dataset
from vggfast.data.sources.patterns import expand

_FORMATS = {"png": "PNG", "PNG": "PNG", "jpg": "JPEG", "jfif": "JPEG", "bmp": "BMP", "input.png": "PNG", "webp": "WEBP"}
_LABELS = ("cls", "CLS", "json", "target.cls")
_KEYS = (
    "{}",
    "a.{}",
    "track {}.0",
    "d/{}",
    "./{}",
    "d.e/f/{}",
    "/{}",
    "../{}",
    "n" * 120 + "{}",
    "é{}",
    "\udcff{}",
    "a\n{}",
)
_OTHERS = ("{}.txt", "._{}.png", "README", "{}.npy", ".hidden/{}.png", "__MACOSX/{}.cls", "{}.meta.json", "d/{}.tga")
_GRAY = 20  # between two numbers; JPEG keeps a gray to one or two


def picture(number: int, format: str) -> bytes:
    file = io.BytesIO()
    Image.new("L", (8, 8), _GRAY * number).save(file, format, **({"lossless": True} if format == "WEBP" else {}))
    return file.getvalue()


def _member(name: str, content: bytes) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    return info, content


def _special(random: Random, name: str) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type = random.choice((tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE))
    info.linkname = random.choice(("0.png", "../0.png", name, "nowhere"))
    return info, b""


def _members(random: Random) -> tuple[list[tuple[tarfile.TarInfo, bytes]], int, int]:
    """(members, pictures that have a label, members that are left out)."""
    found, others = [], 0
    count = random.randint(1, 6)
    for number in range(count):
        key = random.choice(_KEYS).format(number)
        ending, label = random.choice([*_FORMATS]), random.choice(_LABELS)
        said = json.dumps({"label": number}) if label == "json" else f"{number}{random.choice(('', chr(10)))}"
        found += [
            _member(f"{key}.{ending}", picture(number, _FORMATS[ending])),
            _member(f"{key}.{label}", said.encode()),
        ]
    for number in range(random.choice((0, 0, 1, 3))):
        found.append(_member(random.choice(_OTHERS).format(number), b"{}"))
        others += 1
    if random.random() < 0.3:
        random.shuffle(found)
    if random.random() < 0.2:  # something is missing, or is there twice
        place = random.randrange(len(found))
        found[place : place + 1] = random.choice(([], found[place : place + 1] * 2))
        count = -1
    if random.random() < 0.1:
        found.insert(
            random.randrange(len(found) + 1), _special(random, random.choice(("0.png", "s.png", "s.cls", "s")))
        )
        count = -1
    return found, count, others


def _damaged(random: Random, content: bytearray) -> bytes:
    match random.randrange(5):
        case 0:
            return bytes(content[: random.randrange(len(content))])
        case 1:
            return bytes(content) + random.randbytes(random.randrange(1, 2000))
        case 2:
            return bytes(content) * 2
        case 3:  # a field of a header
            begin = 512 * random.randrange(len(content) // 512)
            place = begin + random.choice((0, 100, 108, 116, 124, 136, 148, 156, 157, 257, 345, 386, 483))
            content[place : place + 12] = random.choice(
                (random.randbytes(12), b"\xff" * 12, b"77777777777\0", b"-0000000001\0")
            )
            return bytes(content)
    for _ in range(random.randrange(1, 9)):
        content[random.randrange(len(content))] = random.randrange(256)
    return bytes(content)


def case(random: Random, folder: Path) -> bool:
    if random.random() < 0.2:
        return _pattern(random, folder)
    members, count, others = _members(random)
    path = folder / "a.tar"
    with tarfile.open(path, "w", format=random.choice((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT))) as archive:
        for info, content in members:
            archive.addfile(info, io.BytesIO(content))
    if random.random() < 0.4:
        count = -1
        path.write_bytes(_damaged(random, bytearray(path.read_bytes())))
    if random.random() < 0.1:
        Path(f"{path}.index.npz").write_bytes(random.randbytes(random.randrange(300)))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        images = attempt(open_dataset, f"shards:{path}", "train", True, names=["a.tar"])
    if images is None:
        if count >= 0 and not _may_be_refused(members):
            raise Different("a whole shard was refused")
        return False
    for i in range(len(images)):
        pixels = attempt(images.pixels, i, names=["a.tar"])
        if pixels is not None and count >= 0 and abs(float(np.mean(pixels)) - _GRAY * int(images.labels[i])) > 3:
            raise Different(f"{images.source(i)} has the label {images.labels[i]} and gray {np.mean(pixels)}")
        if pixels is None and count >= 0:
            raise Different(f"{images.source(i)} of a whole shard was refused")
    left_out = sum(int(n) for each in said for n in re.findall(r"(\d+) (?:files? of other|hidden)", str(each.message)))
    if count >= 0 and (len(images) != count or left_out != others):
        raise Different(f"{count} samples were written and {others} others, {len(images)} read and {left_out} left out")
    return True


def _may_be_refused(members: list[tuple[tarfile.TarInfo, bytes]]) -> bool:
    """Names up to the first dot that more than one sample has, with endings of several parts among them."""
    names = [info.name for info, _ in members]
    return any(".input." in name or ".target." in name for name in names)


def _pattern(random: Random, folder: Path) -> bool:
    """Braces that are made from the names that they name."""
    names = [f"s-{i:02d}.tar" for i in range(random.randint(1, 12))]
    for name in names:
        (folder / name).touch()
    last = len(names) - 1
    made = random.choice(
        (f"s-{{00..{last:02d}}}.tar", "{" + ",".join(names) + ",}", "{" + ",".join(names) + "}", "s-*.tar", "s-??.tar",
         f"{{s-{{00..{last:02d}}}.tar,}}", f"s-{{{last:02d}..00}}.tar", "s-{00..999999999}.tar", "s-[0-9][0-9].tar")
    )  # fmt: skip
    if mutated := random.random() < 0.5:
        characters = [*made]
        for _ in range(random.randint(1, 4)):
            characters[random.randrange(len(characters))] = random.choice("{},.*?[]0-9s\\/ ")
        made = "".join(characters)
    found = attempt(expand, f"{folder}/{made}", names=[folder.name])
    if found is None:
        return False
    short = [Path(each).name for each in found]
    if len({*short}) < len(short) or (not mutated and sorted(short) != names):
        raise Different(f"{made!r} of {len(names)} files names {short}")
    return True
