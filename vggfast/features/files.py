"""Features of a whole data set on disk: extracted chunk by chunk, so that a run that was stopped goes on."""

from __future__ import annotations

import json
import re
import shutil
import time
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vggfast._progress import Progress, silent
from vggfast.data import ImageSet
from vggfast.data.transforms import image_to_rescale
from vggfast.features.extractor import Block, Extractor, combine_blocks
from vggfast.io import write_array, write_atomically

_ARRAYS = ("features", "labels", "names")
_METADATA = "features.json"
_SELECTION = re.compile(r"(?P<tap>[^.@]+)(\.(?P<pool>[^.@]+))?(@(?P<scale>\d+))?")


@dataclass
class FeatureFile:
    """Features of a data set.

    Attributes:
        features: (N, sum of the blocks' dims), float32, neither normalised nor combined.
        labels: (N,), int64.
        names: of the images.
        blocks: what the columns are.
        metadata: what the features are of: model, data, digests of sets, scales, flip, preprocessing, classes, seconds.
    """

    features: np.ndarray
    labels: np.ndarray
    names: list[str]
    blocks: tuple[Block, ...]
    metadata: dict[str, Any]

    def select(self, use: Sequence[str] = (), how: str = "stack", normalise: bool = True) -> np.ndarray:
        """(N, D), float32: some of the blocks combined (see :func:`vggfast.features.combine_blocks`).

        Args:
            use: names as "pool5.mean@256"; without pooling or scale, all that there are of them: "pool5@256", "pool5".
                None given: all blocks.

        Raises:
            ValueError: a name that no block has.
        """
        chosen = [block for block in self.blocks if not use]
        for text in use:
            match = _SELECTION.fullmatch(text)
            chosen_by = {} if match is None else {k: v for k, v in match.groupdict().items() if v is not None}
            found = [b for b in self.blocks if chosen_by and all(str(getattr(b, k)) == v for k, v in chosen_by.items())]
            if not found:
                raise ValueError(f"use must be among {', '.join(block.name for block in self.blocks)}, got {text!r}")
            chosen += [block for block in found if block not in chosen]
        return combine_blocks(self.columns(chosen), chosen, how, normalise)

    def columns(self, blocks: Sequence[Block]) -> np.ndarray:
        """(N, sum of the blocks' dims): these blocks as they are, side by side."""
        ends = np.cumsum([block.dims for block in self.blocks])
        places = {block: np.arange(end - block.dims, end) for block, end in zip(self.blocks, ends, strict=True)}
        return self.features[:, np.concatenate([places[block] for block in blocks])]


def join(files: Sequence[FeatureFile]) -> FeatureFile:
    """The blocks of several files of the same images, side by side; metadata are those of the first.

    Raises:
        ValueError: the images differ, or a block comes twice.
    """
    first = files[0]
    if any(file.names != first.names for file in files):
        raise ValueError("files must be of the same images in the same order")
    blocks = tuple(block for file in files for block in file.blocks)
    if twice := [block.name for block in blocks if blocks.count(block) > 1]:
        raise ValueError(f"files must have each block once, and {twice[0]} is in more than one")
    return FeatureFile(np.hstack([f.features for f in files]), first.labels, first.names, blocks, first.metadata)


def extract_dataset(
    extractor: Extractor,
    sets: Sequence[ImageSet],
    out: Path,
    metadata: dict[str, Any],
    *,
    chunk: int = 128,
    progress: Progress = silent,
) -> FeatureFile:
    """Extracts the features of all images of some splits, and writes them to `out`.

    What is done lies in OUT.parts until all of it is; another call goes on from there.

    Args:
        sets: of the same classes, one after the other.
        out: FILE.npz, or a folder of features.npy, labels.npy, names.npy and features.json.
        metadata: what else the file is to say of the features; the same again where an earlier call is taken up.
        chunk: images that are written at a time.
        progress: is told the number of images done; its text says how many this call does a second.

    Raises:
        FileExistsError, ValueError: `out` exists already; or OUT.parts are of other features.
    """
    if out.is_file() or (out / _METADATA).exists():  # of a folder's files, the last to be written
        raise FileExistsError(f"{out} exists already: choose another name")
    names = [images.source(i) for images in sets for i in range(len(images))]
    if not names:
        raise ValueError("sets must have at least one image, got none")
    metadata = {
        **metadata, "images": len(names), "sets": [each.digest() for each in sets],
        "chunk": chunk, "taps": list(extractor.taps), "scales": list(extractor.scales),
        "flip": extractor.flip, "preprocessing": extractor.preprocessing.as_dict(),
        "blocks": [block._asdict() for block in extractor.blocks],
    }  # fmt: skip
    parts = out.with_name(f"{out.name}.parts")
    _claim(parts, metadata)
    rows, seconds = [], 0.0
    mine, its_seconds = 0, 0.0  # images of this call alone
    progress(0, len(names))
    for number, batch in enumerate(_chunks(sets, chunk)):
        path = parts / f"{number}.npz"
        if not path.exists():
            took = _extract_part(extractor, batch, path)
            mine, its_seconds = mine + len(batch), its_seconds + took
        with np.load(path) as part:
            rows.append(part["features"])
            seconds += float(part["seconds"])
        progress(sum(map(len, rows)), len(names), f"{mine / its_seconds:.1f} images/s" if mine else "")
    labels = np.concatenate([images.labels for images in sets])
    metadata |= {"classes": sets[0].classes, "seconds": seconds, "images_per_second": len(names) / seconds}
    made = FeatureFile(np.concatenate(rows), labels, names, extractor.blocks, metadata)
    save_features(made, out)
    shutil.rmtree(parts)
    return made


def _chunks(sets: Sequence[ImageSet], chunk: int) -> Iterator[list[tuple[ImageSet, int]]]:
    images = [(each, i) for each in sets for i in range(len(each))]
    for begin in range(0, len(images), chunk):
        yield images[begin : begin + chunk]


def _extract_part(extractor: Extractor, batch: list[tuple[ImageSet, int]], path: Path) -> float:
    """Writes the features of some images; the seconds that reading and extracting took."""
    began = time.perf_counter()
    features = extractor([image_to_rescale(images, i, max(extractor.scales)) for images, i in batch])
    seconds = time.perf_counter() - began
    write_atomically(path, lambda temporary: _save(temporary, features=features, seconds=seconds))
    return seconds


def _claim(parts: Path, metadata: dict[str, Any]) -> None:
    """Says in the folder of parts what they are of, or finds that it says the same."""
    path, text = parts / _METADATA, json.dumps(metadata, indent=1)
    if not path.exists():
        write_atomically(path, lambda temporary: temporary.write_text(text))
        return
    before = json.loads(path.read_text())
    now = json.loads(text)
    if odd := [name for name in now if now[name] != before.get(name)]:
        raise ValueError(
            f"{parts} holds parts of other features ({', '.join(odd)} differ): delete it, or choose another name"
        )


def _save(path: Path, **arrays: Any) -> None:
    with open(path, "wb") as file:
        np.savez(file, **arrays)


def save_features(made: FeatureFile, out: Path) -> None:
    """Writes `made` to `out`: FILE.npz, or a folder with a file for each array and features.json."""
    arrays = {"features": made.features, "labels": made.labels, "names": np.array(made.names)}
    text = json.dumps({**made.metadata, "blocks": [block._asdict() for block in made.blocks]}, indent=1) + "\n"
    if out.suffix == ".npz":
        write_atomically(out, lambda temporary: _save(temporary, **arrays, facts=np.array(text)))
        return
    for name, values in arrays.items():
        write_array(out / f"{name}.npy", values)
    write_atomically(out / _METADATA, lambda temporary: temporary.write_text(text))


def load_features(path: Path) -> FeatureFile:
    """What :func:`extract_dataset` wrote.

    Raises:
        FileNotFoundError, ValueError: it is not there, or holds something else; the text names it.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such feature file or folder")
    try:
        if path.is_dir():
            arrays = {name: np.load(path / f"{name}.npy") for name in _ARRAYS}
            metadata = json.loads((path / _METADATA).read_text())
        else:
            with np.load(path) as file:
                arrays = {name: file[name] for name in _ARRAYS}
                metadata = json.loads(str(file["facts"]))
        blocks = tuple(Block(**block) for block in metadata["blocks"])
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} holds no features that vggfast wrote: {error}") from error
    return FeatureFile(arrays["features"], arrays["labels"], arrays["names"].tolist(), blocks, metadata)
