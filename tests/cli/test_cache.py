"""``vggfast cache``."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vggfast.cli import main
from vggfast.data import open_dataset


def command(*arguments) -> int:
    return main(["cache", *map(str, arguments)])


def test_the_command(many, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path(open_dataset(many, "val").source(0)).write_bytes(b"")
    options = ("--size", 16, "--workers", 0, "--on-bad-image", "skip")
    assert command(many, *options) == 0
    out = capsys.readouterr().out
    assert "val: 3 images, 0 MiB" in out
    assert "left out: " in out
    assert "train with --data cache:cache/imagefolder-many-16" in out
    assert command(many, *options) == 0
    assert "46 of them from before" in capsys.readouterr().out
    for where in ((many, "--size", 16), ("cache:cache/imagefolder-many-16",), ("cache/imagefolder-many-16",)):
        assert command(*where, "--verify") == 0
        assert "2 blocks, all as they were written" in capsys.readouterr().out


def test_sizes_of_the_command(many, tmp_path, capsys):
    assert command(many, "--size", "none", "--out", tmp_path / "out", "--workers", 0) == 0
    assert (
        open_dataset(f"cache:{tmp_path / 'out'}", "train").pixels(0).shape
        == open_dataset(many, "train").pixels(0).shape
    )
    with pytest.raises(SystemExit):
        command(many, "--size", "0")
    assert "argument --size: must be at least 1, or none, got '0'" in capsys.readouterr().err


def test_the_command_is_described_without_the_extra():
    script = "import sys; import vggfast.cli.cache; sys.exit('PIL' in sys.modules or 'sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], env=dict(os.environ)).returncode == 0
