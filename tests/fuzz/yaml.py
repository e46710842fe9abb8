"""Recipes, class names, tables of boxes and of labels: text files that are whole, odd or damaged."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from random import Random

from PIL import Image

from tests.fuzz.harness import Different, attempt
from vggfast.data import open_dataset
from vggfast.data.sources.listing import read_classes
from vggfast.localisation.data import open_boxes, read_xml
from vggfast.runs.config import TrainConfig, read_values
from vggfast.runs.log import read_csv

_FIELDS = [field.name for field in dataclasses.fields(TrainConfig)]
_ODD = (
    "", "~", "null", "yes", "off", "010", "0x10", "1:30", "1_000", ".nan", ".inf", "-.inf", "1e999", "1e-3", "9" * 30,
    "9" * 5000, "-1", "[1, 2]", "{a: b}", "!!python/object/apply:os.system ['true']", "!!int ''", "!!float x", "&a b",
    "*a", "<<", "'quoted'", '"\\uDCE9"', "|\n  text", ">\n  text", "2001-99-99", "a: b", "- a", "\t", "%", "@", "`",
    "#", "[" * 500, "{" * 500, "é", "1\0", "\x85", "sgd", "A", "digits", "fail", "64", "0.5", "true",
)  # fmt: skip


def _damaged(random: Random, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(random.choice((0, 0, 1, 1, 4))):
        place = random.randrange(len(changed) + 1)
        changed[place : place + random.randrange(3)] = random.choice(
            (
                b"",
                b"\n",
                b"\r\n",
                b"\xef\xbb\xbf",
                b"\xff",
                b"\0",
                b"\t",
                b" ",
                b",",
                b"\x0c",
                random.randbytes(3),
                b"\xc2\x85",
            )
        )
    return bytes(changed)


def _recipe(random: Random, folder: Path) -> bool:
    lines, given = [], {}
    for name in random.sample(_FIELDS, random.randint(0, 6)):
        own = next(field.default for field in dataclasses.fields(TrainConfig) if field.name == name)
        if random.random() < 0.5:
            lines.append(f"{name}: {str(own).lower() if isinstance(own, bool) else own!r}")
            given[name] = own
        else:
            lines.append(f"{name}: {random.choice(_ODD)}")
            given[name] = None
    if lines and random.random() < 0.2:
        lines.append(random.choice(lines))
    if random.random() < 0.05:
        lines = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9) if i else 'x'}]" for i in range(12)]
    whole = "\n".join(lines).encode("utf-8", "replace")
    content = _damaged(random, whole)
    path = folder / "mine.yaml"
    path.write_bytes(content)
    found = attempt(read_values, path, names=["mine.yaml"])
    config = attempt(TrainConfig.read, path, names=["mine.yaml"])
    if found is None:
        return False
    for name, value in vars(config).items() if config else ():
        if isinstance(value, float) and not math.isfinite(value):
            raise Different(f"{name} is {value}")
    for name, value in found.items():
        if content == whole and given.get(name) is not None and value != given[name]:
            raise Different(f"{name} was {given[name]!r} and is {value!r}")
    return True


def _classes(random: Random, folder: Path) -> bool:
    names = [
        random.choice(("ant", "bee", "żółw", " elk ", "a b", "", "\u2028", "x" * 300))
        for _ in range(random.randint(0, 5))
    ]
    whole = random.choice(("\n", "\r\n")).join(names).encode() + random.choice((b"", b"\n"))
    content = _damaged(random, whole)
    path = folder / "classes.txt"
    path.write_bytes(content)
    found = attempt(read_classes, path, names=["classes.txt"])
    if found is not None and content == whole and found != [name.strip() for name in names][: len(found)]:
        raise Different(f"{names} was written and {found} read")
    return found is not None


def _tiny(random: Random, folder: Path) -> bool:
    """Tiny-ImageNet's annotations, with boxes; and ImageNet's val.txt."""
    wnids = ["n01", "n02", "n03"]
    for wnid in wnids:
        (folder / "train" / wnid / "images").mkdir(parents=True)
        Image.new("L", (8, 8)).save(folder / "train" / wnid / "images" / "a.png")
    images = folder / "val" / "images"
    images.mkdir(parents=True)
    labels = {f"v{i}.png": random.randrange(3) for i in range(random.randint(1, 5))}
    for name in labels:
        Image.new("L", (8, 8)).save(images / name)
    (folder / "words.txt").write_bytes(_damaged(random, b"n01\tant, emmet\nn02\tbee\n"))
    (folder / "wnids.txt").write_bytes(b"n02\r\nn01\nn03\n")
    rows = "".join(f"{name}\t{wnids[label]}\t{random.choice(('0', '5', '70', '-1', 'x', '²'))}\t0\t62\t63\n"
                   for name, label in labels.items()).encode()  # fmt: skip
    content = _damaged(random, rows)
    (folder / "val" / "val_annotations.txt").write_bytes(content)
    found = attempt(open_dataset, f"tiny-imagenet:{folder}", "val", names=[folder.name])
    boxes = attempt(open_boxes, f"tiny-imagenet:{folder}", "val", names=[folder.name])
    for each in (found, boxes):
        for i in range(len(each) if each is not None and content == rows else 0):
            if int(each.labels[i]) != labels[Path(each.source(i)).name]:
                raise Different(f"{each.source(i)} has the label {each.labels[i]}")
    if found is not None and content == rows and len(found) != len(labels):
        raise Different(f"{len(labels)} images were written and {len(found)} read")
    return found is not None


def _imagenet(random: Random, folder: Path) -> bool:
    wnids = ["n01", "n02", "n03"]
    for wnid in wnids:
        (folder / "train" / wnid).mkdir(parents=True)
        Image.new("L", (8, 8)).save(folder / "train" / wnid / "a.png")
    (folder / "val").mkdir()
    labels = {f"v {i}.JPEG" if random.random() < 0.2 else f"v{i}.JPEG": random.randrange(3) for i in range(4)}
    for name in labels:
        Image.new("L", (8, 8)).save(folder / "val" / name, "PNG")
    by_number = random.random() < 0.5
    rows = [f"{name} {label if by_number else wnids[label]}" for name, label in labels.items()]
    if doubled := random.random() < 0.3:
        rows.append(f"{rows[0].rpartition(' ')[0]} {random.choice((*wnids, 0, 1, 2, 3, '²', '-1'))}")
    whole = random.choice(("\n", "\r\n")).join(rows).encode()
    content = _damaged(random, whole)
    (folder / "val.txt").write_bytes(content)
    found = attempt(open_dataset, f"imagenet:{folder}", "val", names=[folder.name])
    if found is None and content == whole and not doubled:
        raise Different("whole labels were refused")
    for i in range(len(found) if found is not None and content == whole else 0):
        if int(found.labels[i]) != labels[Path(found.source(i)).name]:
            raise Different(f"{found.source(i)} has the label {found.labels[i]}")
    return found is not None


def _xml(random: Random, folder: Path) -> bool:
    box = [random.choice((1, 5, 20, 40, -3, "nan", "inf", "x", "", 10**400)) for _ in range(4)]
    text = (
        "<annotation><size><width>40</width><height>30</height></size><object><bndbox>"
        f"<xmin>{box[0]}</xmin><ymin>{box[1]}</ymin><xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object></annotation>"
    )
    if random.random() < 0.2:
        head = "".join(f'<!ENTITY e{i} "{f"&e{i - 1};" * 10 if i else "x" * 99}">' for i in range(9))
        text = f"<!DOCTYPE annotation [{head}]>" + text.replace("40", "&e8;", 1)
    (folder / "a.xml").write_bytes(_damaged(random, text.encode()))
    found = attempt(read_xml, folder / "a.xml", names=["a.xml"])
    for corners in found or ():
        if not all(0 <= value <= 1 for value in corners):
            raise Different(f"a box {corners}")
    return found is not None


def _csv(random: Random, folder: Path) -> bool:
    rows = [f"{i},{random.choice(('0.5', 'nan', 'inf', 'x', '', '1', '²'))}" for i in range(3)]
    (folder / "steps.csv").write_bytes(_damaged(random, ("step,loss\n" + "\n".join(rows) + "\n").encode()))
    return attempt(read_csv, folder / "steps.csv", names=["steps.csv"]) is not None


def case(random: Random, folder: Path) -> bool:
    return random.choice((_recipe, _recipe, _classes, _tiny, _imagenet, _xml, _csv))(random, folder)
