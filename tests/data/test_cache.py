"""The cache: what it holds, that nothing stops it for good, that damage is found."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from vggfast.data import build_cache, open_dataset, open_splits, rescale
from vggfast.data.cache import build_split
from vggfast.data.sources.cache import Index, verify

BLOCK = 10_000  # bytes: a block is a chunk of 16 images, or the rest


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


class StoppedError(Exception):
    pass


def stop_at(images: int, of: str = "train"):
    """Progress that stops a build once so many images are done."""

    def progress(split, done, total):
        if split == of and done >= images:
            raise StoppedError

    return progress


@pytest.mark.parametrize("size", [None, 16, 100])
def test_images_are_those_of_the_data_set_resized(many, tmp_path, size):
    built = build_cache(many, tmp_path / "cache", size, block_bytes=BLOCK)
    assert {split: (each.images, each.bad, each.resumed) for split, each in built.items()} == {
        "train": (46, [], 0), "val": (4, [], 0)}  # fmt: skip
    for split, whole in zip(("train", "val"), open_splits(many), strict=True):
        kept = open_dataset(f"cache:{tmp_path / 'cache'}", split)
        assert kept.classes == whole.classes
        assert kept.labels.tolist() == whole.labels.tolist()
        for i in range(len(whole)):
            image = whole.image(i)
            expected = rescale(image, size) if size and min(image.size) > size else image
            assert np.array_equal(kept.pixels(i), np.asarray(expected))
            assert np.array_equal(np.asarray(kept.image(i)), np.asarray(expected))
    assert verify(tmp_path / "cache") == 4


def test_workers_change_nothing(many, tmp_path):
    build_cache(many, tmp_path / "one", 16, block_bytes=BLOCK)
    build_cache(many, tmp_path / "two", 16, workers=2, block_bytes=BLOCK)
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_a_complete_cache_is_left_as_it_is(many, tmp_path):
    build_cache(many, tmp_path / "cache", 16)
    before = files(tmp_path / "cache")
    assert {each.resumed for each in build_cache(many, tmp_path / "cache", 16).values()} == {46, 4}
    assert files(tmp_path / "cache") == before
    with pytest.raises(
        ValueError, match=r"cache holds the cache of imagefolder:.* at size 16, or the images' names or"
    ):
        build_cache(many, tmp_path / "cache", 17)


# ---- stopped and resumed --------------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(stop=st.sampled_from([0, 16, 32, 46]), data=st.data())
def test_stopped_anywhere_it_ends_the_same(many, tmp_path_factory, stop, data):
    """Files cut off or damaged where a crash may leave them so: the end is that of an undisturbed build."""
    folder = tmp_path_factory.mktemp("builds")
    build_cache(many, folder / "whole", None, block_bytes=BLOCK)
    with pytest.raises(StoppedError):
        build_cache(many, folder / "parts", None, block_bytes=BLOCK, progress=stop_at(stop))
    for name in ("train.pixels", "train.journal"):
        path = folder / "parts" / name
        content = bytearray(path.read_bytes())
        del content[data.draw(st.integers(0, len(content)), name) :]
        if content and data.draw(st.booleans(), "damaged") and name == "train.pixels":
            content[data.draw(st.integers(0, len(content) - 1), "where")] ^= 1
        path.write_bytes(bytes(content) + data.draw(st.sampled_from([b"", b"torn"]), "more"))
    build_cache(many, folder / "parts", None, block_bytes=BLOCK)
    assert files(folder / "parts") == files(folder / "whole")


def test_finished_blocks_are_kept(many, tmp_path):
    with pytest.raises(StoppedError):
        build_cache(many, tmp_path / "cache", None, block_bytes=BLOCK, progress=stop_at(32))
    train = open_dataset(many, "train")
    for i in range(32):  # what is kept need not be there to be read
        name = train.source(i)
        Path(name).write_bytes(b"no image")
    built = build_cache(many, tmp_path / "cache", None, block_bytes=BLOCK)
    assert built["train"].resumed == 32
    assert built["train"].images == 46


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_killed_it_goes_on(many, tmp_path, workers):
    """kill -9 in the midst of the build, by itself so that it always hits."""
    build_cache(many, tmp_path / "whole", None, block_bytes=BLOCK)
    script = (
        "import os, signal, sys; from vggfast.data import build_cache\n"
        "def progress(split, done, total):\n"
        "    if done >= 16: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"build_cache(sys.argv[1], sys.argv[2], None, block_bytes={BLOCK}, workers={workers}, progress=progress)\n"
    )
    killed = subprocess.run([sys.executable, "-c", script, many, str(tmp_path / "parts")], capture_output=True)
    assert killed.returncode == -9
    assert not (tmp_path / "parts" / "train.index").exists()
    with pytest.raises(FileNotFoundError, match=r"train\.index: not there; `vggfast cache` writes it"):
        open_dataset(f"cache:{tmp_path / 'parts'}", "train")
    assert build_cache(many, tmp_path / "parts", None, block_bytes=BLOCK)["train"].resumed == 16
    assert files(tmp_path / "parts") == files(tmp_path / "whole")


def test_a_build_of_something_else_is_not_resumed(many, tmp_path):
    with pytest.raises(StoppedError):
        build_cache(many, tmp_path / "cache", None, block_bytes=BLOCK, progress=stop_at(16))
    with pytest.raises(ValueError, match=r"train\.journal is of a cache that is made from something else"):
        build_cache(many, tmp_path / "cache", 16, block_bytes=BLOCK)


def test_classes_that_have_other_names_now(many, tmp_path):
    train = open_dataset(many, "train")
    build_split(train, many, "train", tmp_path / "cache", None)
    train.classes = train.classes[::-1]
    with pytest.raises(ValueError, match=r"at size None, or the images' names or classes have changed since: delete"):
        build_split(train, many, "train", tmp_path / "cache", None)


def test_a_file_where_the_folder_is_to_be(many, tmp_path):
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "cache"):
        with pytest.raises(
            ValueError, match=rf"{out} must be a folder for the cache, and {tmp_path}/file is not a folder"
        ):
            build_cache(many, out)


def test_full_disk(small_disk, tmp_path):
    (tmp_path / "big" / "a").mkdir(parents=True)
    for i in range(40):
        Image.effect_noise((110, 110), 50).convert("RGB").save(tmp_path / "big" / "a" / f"{i:02d}.png")
    spec, out = f"imagefolder:{tmp_path / 'big'}", small_disk / "cache"
    with pytest.raises(OSError, match=r"the disk is full, \d+ of 36 images are kept; make room and run the same again"):
        build_cache(spec, out, None, block_bytes=BLOCK)
    with pytest.raises(OSError, match=r"disk/cache/train\.pixels could not be written whole"):
        build_cache(spec, out, None, block_bytes=BLOCK)
    subprocess.run(["mount", "-o", "remount,size=16m", str(small_disk)], check=True)
    assert 0 < build_cache(spec, out, None, block_bytes=BLOCK)["train"].resumed < 36
    assert verify(out) > 0


# ---- bad images -----------------------------------------------------------------------------------------------------


def test_bad_images_stop_it_or_are_listed(many, tmp_path):
    bad = [Path(open_dataset(many, "train").source(i)) for i in (5, 20)]
    for path in bad:
        path.write_bytes(b"no image")
    with pytest.raises(ValueError, match=rf"^{bad[0]}: not an image that decodes \(of no known format\)$"):
        build_cache(many, tmp_path / "cache", None)
    built = build_cache(many, tmp_path / "cache", None, on_bad_image="skip")["train"]
    assert (built.images, [name for name, _ in built.bad]) == (44, list(map(str, bad)))
    with pytest.warns(UserWarning, match=r"train\.pixels leaves out 2 that did not decode when the cache was built"):
        kept = open_dataset(f"cache:{tmp_path / 'cache'}", "train")
    whole = open_dataset(many, "train")
    good = [i for i in range(46) if i not in (5, 20)]
    assert kept.labels.tolist() == whole.labels[good].tolist()
    assert np.array_equal(kept.pixels(19), whole.pixels(good[19]))
    index = Index.read(tmp_path / "cache" / "train.index")
    assert [message for _, message in index.about["bad"]] == [
        f"{path}: not an image that decodes (of no known format)" for path in bad
    ]
    assert index.names[19] == whole.source(good[19])


def test_bad_images_of_an_earlier_build_count(many, tmp_path):
    bad = Path(open_dataset(many, "train").source(2))
    bad.write_bytes(b"")
    with pytest.raises(StoppedError):
        build_cache(many, tmp_path / "cache", None, on_bad_image="skip", block_bytes=BLOCK, progress=stop_at(16))
    with pytest.raises(ValueError, match=rf"^{bad}: not an image that decodes \(the file is empty\)$"):
        build_cache(many, tmp_path / "cache", None, block_bytes=BLOCK)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "size must be at least 1, got 0"),
        ({"size": "256"}, "size must be a whole number, got str '256'"),
        ({"on_bad_image": "x"}, "on_bad_image must be one of fail, skip, got 'x'"),
    ],
)
def test_arguments_that_cannot_be(many, tmp_path, options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        build_cache(many, tmp_path / "cache", **options)


# ---- damage ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def built(many, tmp_path) -> Path:
    build_cache(many, tmp_path / "cache", 16, block_bytes=BLOCK)
    return tmp_path / "cache"


def test_a_damaged_block_is_found(built):
    content = bytearray((built / "train.pixels").read_bytes())
    index = Index.read(built / "train.index")
    content[int(index.block_bytes[0]) + 5] ^= 1
    (built / "train.pixels").write_bytes(bytes(content))
    pattern = rf"train\.pixels: 1 of 3 blocks are damaged, number 1 first, 16 images from {index.names[16]} on; delete"
    with pytest.raises(ValueError, match=pattern):
        verify(built)


@pytest.mark.parametrize("where", [0, 20, 60, -1])
def test_a_damaged_index_is_found(built, where):
    content = bytearray((built / "val.index").read_bytes())
    content[where] ^= 1
    (built / "val.index").write_bytes(bytes(content))
    with pytest.raises(ValueError, match=r"val\.index is (not the index of a cache|damaged, its checksum)"):
        open_dataset(f"cache:{built}", "val")


def test_pixels_of_another_size_are_found(built):
    with (built / "val.pixels").open("ab") as file:
        file.write(b"x")
    with pytest.raises(ValueError, match=r"val\.pixels must have \d+ bytes, got \d+: delete"):
        open_dataset(f"cache:{built}", "val")
    (built / "val.pixels").unlink()
    with pytest.raises(ValueError, match=r"val\.pixels must have \d+ bytes, got 0"):
        open_dataset(f"cache:{built}", "val")


def test_the_other_split_is_no_validation(built):
    for ending in ("index", "pixels"):
        (built / f"train.{ending}").replace(built / f"val.{ending}")
    with pytest.raises(ValueError, match=r"val\.index must be of the split val, got that of train$"):
        open_dataset(f"cache:{built}", "val")


@pytest.mark.parametrize("bytes_", [0, 10])
def test_pixels_that_are_cut_off_after_the_cache_was_opened(built, bytes_):
    val = open_dataset(f"cache:{built}", "val")
    with (built / "val.pixels").open("r+b") as file:
        file.truncate(bytes_)
    with pytest.raises(ValueError, match=rf"val\.pixels must have \d+ bytes, as when it was opened, got {bytes_}"):
        val.pixels(0)


def test_no_cache(tmp_path):
    with pytest.raises(FileNotFoundError, match="no cache, neither"):
        verify(tmp_path)
