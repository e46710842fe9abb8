"""Files that are written whole or not at all, and their checksums."""

import hashlib
import os

import pytest

from vggfast.io import read_json, sha256, write_atomically, write_json


def test_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def fail(temporary):
        temporary.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match=r"file could not be written .*No space left.* unchanged"):
        write_atomically(path, fail)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("/dev/null")])
def test_what_is_no_file_is_not_replaced(tmp_path, make):
    path = tmp_path / "file"
    make(path)
    before = path.lstat()
    with pytest.raises(OSError, match=r"file could not be written \(it is a folder, or something else that is no reg"):
        write_json(path, {})
    assert path.lstat().st_ino == before.st_ino


@pytest.mark.parametrize("name", ["n" * 250 + ".json", "é" * 125 + ".json"])
def test_the_longest_names(tmp_path, name):
    write_json(tmp_path / name, {})
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_json_comes_back(tmp_path):
    write_json(tmp_path / "new" / "a.json", {"x": [1, 2.5, None]})
    assert read_json(tmp_path / "new" / "a.json") == {"x": [1, 2.5, None]}
    assert read_json(tmp_path / "none.json") == {}


def test_sha256(tmp_path):
    content = bytes(range(256)) * 9000  # several blocks
    (tmp_path / "file").write_bytes(content)
    assert sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()
