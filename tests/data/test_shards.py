"""What is in a shard: each member is a sample's, is named in an error, or is counted."""

import io
import os
import re
import tarfile
import warnings

import numpy as np
import pytest
from PIL import Image

from vggfast.data import open_dataset
from vggfast.data.sources.patterns import expand


def png(value: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (6, 4), (value, value, value)).save(file, "PNG")
    return file.getvalue()


def write(path, *members, format=tarfile.PAX_FORMAT):
    """Members are (name, content), or whole TarInfos."""
    with tarfile.open(path, "w", format=format) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(member[1])
            archive.addfile(info, io.BytesIO(member[1]))
    return path


def sample(key, value, picture="png", label="cls"):
    return (f"{key}.{picture}", png(value)), (f"{key}.{label}", b"%d" % value)


def special(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def opened(path):
    """(gray values in order, labels, warnings)."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        images = open_dataset(f"shards:{path}", "train", whole=True)
    found = [int(images.pixels(i)[0, 0, 0]) for i in range(len(images))]
    return found, images.labels.tolist(), [str(each.message) for each in said]


SAMPLES = {
    "dots in names": [*sample("track 2.0", 0), *sample("img.v2", 1), *sample("a", 2)],
    "nothing but dots": [*sample("a.b", 0), *sample("a.c", 1)],
    "endings of several parts": [*sample("x", 0, "input.png"), *sample("y", 1, "input.png")],
    "a label's ending of several parts": [*sample("x", 0, label="target.cls"), *sample("y", 1)],
    "dots in folders": [*sample("v1.0/a", 0), *sample("v1.1/a", 1)],
    "upper case": [*sample("a", 0, "PNG", "CLS"), *sample("b", 1, "Png", "cls")],
    "endings of JPEG": [*sample("a", 0, "jfif"), *sample("b", 1, "jpe"), *sample("c", 2, "webp")],
    "other names of the same folder": [("./a.png", png(0)), ("a.cls", b"0"), ("x//b.png", png(1)), ("x/./b.cls", b"1")],
    "absolute and upward names": [*sample("/a", 0), *sample("../b", 1)],
    "folders": [special("d", tarfile.DIRTYPE), *sample("d/a", 0), special("e.png", tarfile.DIRTYPE), *sample("e", 1)],
    "labels first": [*sample("a", 0)[::-1], *sample("b", 1)[::-1]],
    "long names": [*sample("n" * 150, 0), *sample("é" * 200, 1)],
    "a .json beside a .cls": [*sample("a", 0), ("a.json", b'{"label": 0}'), *sample("b", 1)],
    "spaces and lines around the number": [("a.png", png(0)), ("a.cls", b" 0\r\n"), *sample("b", 1)],
    "links": [("a.png", png(0)), special("b.png", tarfile.LNKTYPE, "a.png"), ("a.cls", b"0"), ("b.cls", b"0"),
              special("d/c.png", tarfile.SYMTYPE, "../b.png"), special("d/c.cls", tarfile.SYMTYPE, "../a.cls")],
}  # fmt: skip


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT], ids=["pax", "gnu"])
@pytest.mark.parametrize("members", SAMPLES.values(), ids=SAMPLES)
def test_samples(members, format, tmp_path):
    found, labels, said = opened(write(tmp_path / "a.tar", *members, format=format))
    names = [each[0] if isinstance(each, tuple) else each.name for each in members]
    folders = sum(isinstance(each, tarfile.TarInfo) and each.isdir() for each in members)
    pictures = len(names) - folders - sum(name.lower().endswith((".cls", ".json")) for name in names)
    assert len(found) == pictures
    assert found == labels
    assert not said


def test_what_is_left_out_is_counted_once(tmp_path):
    members = [
        *sample("a", 0), special("fifo", tarfile.FIFOTYPE), ("a.txt", b"caption"), ("b.TXT", b""), ("README", b""),
        ("meta.json", b"{}"), ("a.json", b"{}"), ("._a.png", b""), ("__MACOSX/a.png", b""), (".git/x.cls", b"1"),
    ]  # fmt: skip
    for _ in range(2):  # the second time from the index
        found, _, said = opened(write(tmp_path / "a.tar", *members))
        assert found == [0]
        text = "leaves out 6 files of other endings: .json 2, .txt 2, none 2; 3 hidden"
        assert said == [f"{tmp_path / 'a.tar'} {text}"]


REFUSED = {
    "a name twice": ([*sample("0", 0), *sample("0", 1)], "must have each name once, got 0.png twice"),
    "a name twice, otherwise written": ([*sample("0", 0), ("./0.png", png(1))], "each name once, got 0.png twice"),
    "two pictures": ([*sample("0", 0), ("0.jpg", png(1))], "one picture of each name, got 0.png and 0.jpg"),
    "two pictures by the first dot": (
        [("0.a.png", png(0)), ("0.b.png", png(1)), ("0.cls", b"0")],
        "one picture and one label of each name, got 0.a.png, 0.b.png, 0.cls",
    ),
    "two parts each": (
        [("0.a.png", png(0)), ("0.b.cls", b"0")],
        "one picture and one label of each name, got 0.a.png, 0.b.cls",
    ),
    "two labels": (
        [*sample("0", 0), ("0.json", b'{"label": 1}')],
        "0.png must have one label, got 0.cls with 0 and 0.json with 1",
    ),
    "two labels in one": ([("0.png", png(0)), ("0.json", b'{"label": 1, "label": 2}')], "0.json must be a JSON object"),
    "a lonely label": ([*sample("0", 0), ("1.cls", b"0")], "1.cls must be the label of a picture of its name"),
    "a picture of another kind": ([*sample("0", 0), *sample("1", 0, "tga")], "1.cls must be the label of a picture"),
    "another case": ([*sample("0", 0), ("A.png", png(0)), ("a.cls", b"0")], "A.png must have a .cls or .json"),
    "a lonely picture": ([*sample("0", 0), ("1.png", png(0))], "1.png must have a .cls or .json of its name"),
    "an underscore": ([("0.png", png(0)), ("0.cls", b"1_0")], "0.cls must be a whole number, got b'1_0'"),
    "a large number": ([("0.png", png(0)), ("0.cls", b"9" * 30)], "0.cls must be a whole number"),
    "a number that makes many classes": (
        [("0.png", png(0)), ("0.cls", b"9" * 12)],
        "0.png must have a class of 0 to 1048576, got 999999999999",
    ),
    "deep JSON": ([("0.png", png(0)), ("0.json", b"[" * 100_000)], "0.json must be a JSON object"),
    "a link to nowhere": (
        [*sample("0", 0), special("1.png", tarfile.SYMTYPE, "/etc/passwd")],
        "1.png is a link to /etc/passwd, which is not in the shard",
    ),
    "a link to itself": ([special("1.png", tarfile.SYMTYPE, "1.png")], "1.png must be a regular file without holes"),
    "a device": ([special("1.png", tarfile.CHRTYPE)], "1.png must be a regular file without holes"),
    "only labels": ([("0.cls", b"0")], "a.tar must have images, names that end in one of .jpg, "),
    "nothing": ([], "a.tar must have images, names that end in one of .jpg, "),
}


@pytest.mark.parametrize(("members", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(members, message, tmp_path):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        opened(write(tmp_path / "a.tar", *members))
    assert str(error.value).startswith(str(tmp_path / "a.tar"))


def _cut(size):
    def cut(content):
        return content[:size]

    return cut


DAMAGED = {
    "in the last member": (_cut(1024 + 512 + 30), r"damaged or cut off, 1\.png is its last member"),
    "in a header": (_cut(1024 + 100), r"cut off behind 0\.png"),
    "behind a member": (_cut(2048), r"cut off behind 1\.png: the end of a tar file is not there"),
    "a damaged header": (lambda content: content[:1024] + b"x" + content[1025:], r"from byte 1024 on, behind 0\.png"),
    "two in one file": (lambda content: content + content, r"is damaged, or another tar file has been appended"),
    "compressed": (lambda content: __import__("gzip").compress(content), r"not an uncompressed tar file"),
    "empty": (lambda content: b"", r"not an uncompressed tar file \(empty file\)"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGED.values(), ids=DAMAGED)
def test_damaged(damage, message, tmp_path):
    """A small picture takes 1024 bytes, header and content."""
    path = write(tmp_path / "a.tar", ("0.png", png(0)), ("1.png", png(1)), ("0.cls", b"0"))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=rf"a\.tar: .*{message}"):
        opened(path)


def test_a_sparse_member_is_refused(tmp_path):
    (tmp_path / "1.png").write_bytes(b"")
    os.truncate(tmp_path / "1.png", 1 << 20)
    if os.system(f"tar -C {tmp_path} --sparse -cf {tmp_path}/a.tar 1.png"):
        pytest.skip("there is no GNU tar")
    with pytest.raises(ValueError, match=r"1\.png must be a regular file without holes"):
        opened(tmp_path / "a.tar")


def test_a_shard_that_changes(tmp_path):
    path = write(tmp_path / "a.tar", *sample("a", 0))
    images = open_dataset(f"shards:{path}", "train", whole=True)
    write(path, *sample("b", 1), *sample("c", 1))
    with pytest.raises(ValueError, match=r"a\.tar:a\.png: the shard has changed since it was opened"):
        images.pixels(0)


def test_an_index_of_another_version_is_made_again(tmp_path):
    path = write(tmp_path / "a.tar", *sample("a", 0))
    assert opened(path)[0] == [0]
    with np.load(f"{path}.index.npz") as kept:
        old = dict(kept)
    old["stamp"][0] -= 1
    old["labels"] += 7
    np.savez(f"{path}.index.npz", **old)
    assert opened(path)[1] == [0]


def test_names_that_are_no_utf_8(tmp_path):
    path = write(tmp_path / "a.tar", *sample("caf\udce9", 0), ("caf\udce9.txt", b""))
    images = open_dataset(f"shards:{path}", "train", whole=True)
    assert images.read.name(0) == f"{path}:caf\ufffd.png"


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a-{08..10}", ["a-08", "a-09", "a-10"]),
        ("a-{10..08}", ["a-10", "a-09", "a-08"]),
        ("a-{08..10..2}", ["a-08", "a-10"]),
        ("{a-{08..09},b-09}", ["a-08", "a-09", "b-09"]),
        ("{b,a}-09", ["b-09", "a-09"]),
        ("?-09", ["a-09", "b-09"]),
        ("{*-09,a-10}", ["a-09", "b-09", "a-10"]),
        ("x {1,2}", ["x {1,2}"]),
        ("{lonely}", ["{lonely}"]),
        ("[z]", ["[z]"]),
        ("c{1..2}*", ["c1", "c2"]),
    ],
)
def test_patterns(pattern, names, tmp_path):
    for name in ("a-08", "a-09", "a-10", "b-09", "x {1,2}", "{lonely}", "[z]", "z", "c1", "c2", "c1.index.npz"):
        (tmp_path / name).touch()
    assert [os.path.basename(path) for path in expand(f"{tmp_path}/{pattern}")] == names


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("a-{08..999999999}", r"a-09: no such shard"),
        ("{a,b}-08", r"b-08: no such shard"),
        ("{folder.tar,a-08}", r"folder\.tar: not a regular file"),
        ("a-{08,08}", r"must name each shard once, got .*/a-08 twice"),
        ("{a-08,link}", r"must name each shard once, got .*/a-08 twice, the second time as .*/link"),
        ("*.zip", r"\*\.zip: no such shard"),
        ("{a,b}" * 101, "must have at most 100 braces, got 101"),
    ],
)
def test_patterns_that_name_no_shard(pattern, message, tmp_path):
    (tmp_path / "a-08").touch()
    (tmp_path / "link").symlink_to("a-08")
    (tmp_path / "folder.tar").mkdir()
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        expand(f"{tmp_path}/{pattern}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xef\xbb\xbfant\r\nbee\r\n", None),
        (b"ant\nant\nmore\n", None),
        (b"ant\nbee\n\n \n", None),
        (b"ant\n\nbee\n", r"classes\.txt must have the name of a class on each line, and line 2 is empty"),
        (b"ant\n", r"b\.png must have a class of 0 to 0, got 1"),
        (b"\n", r"classes\.txt must have the name of a class on each line, and has no lines"),
        (b"", r"classes\.txt must have the name of a class on each line, and has no lines"),
        (b"ant\nb\xff\n", r"classes\.txt must be UTF-8 text, and its byte 5 is not"),
    ],
)
def test_class_names(content, message, tmp_path):
    path = write(tmp_path / "a.tar", *sample("a", 0), *sample("b", 1))
    (tmp_path / "classes.txt").write_bytes(content)
    if message is None:
        assert open_dataset(f"shards:{path}", "train", whole=True).classes[0] == "ant"
    else:
        with pytest.raises(ValueError, match=message):
            opened(path)
