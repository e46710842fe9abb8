"""Files that are written whole or not at all, and their checksums."""

import hashlib

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


def test_json_comes_back(tmp_path):
    write_json(tmp_path / "new" / "a.json", {"x": [1, 2.5, None]})
    assert read_json(tmp_path / "new" / "a.json") == {"x": [1, 2.5, None]}
    assert read_json(tmp_path / "none.json") == {}


def test_sha256(tmp_path):
    content = bytes(range(256)) * 9000  # several blocks
    (tmp_path / "file").write_bytes(content)
    assert sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()
