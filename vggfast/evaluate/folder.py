"""The folder of an evaluation: what it is of, the chunks that are done, and in the end its results.

settings.json        what the posteriors depend on; a folder goes on only with the same
chunks/              posteriors of some images by one network, until the results are written
results.json         see :meth:`vggfast.evaluate.evaluation.Evaluation.content`
posteriors-<k>.npy   of the k-th network, (N, classes) float32, in the data set's order; NaN: it does not decode
labels.npy           (N,) int64
predictions.csv      image, its class, the class by each network, the final class, its confidence
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vggfast.io import write_array, write_atomically, write_json

_FILES = ("labels.npy", "predictions.csv", "settings.json")


class Folder:
    """An evaluation's folder.

    Args:
        path: the folder; made when absent.
        settings: what the posteriors depend on, by name.
        names: what to call them in errors, where that is not their name here.
        overwrite: replace an evaluation with other settings.

    Raises:
        FileExistsError: the folder holds one with other settings, or other results; the text says which.
        OSError: it cannot be written.
    """

    def __init__(
        self, path: Path, settings: Mapping[str, Any], names: Mapping[str, str], overwrite: bool = False
    ) -> None:
        self.path = path
        stored = path / "settings.json"
        if not stored.exists() and (path / "results.json").exists():
            raise FileExistsError(f"{path} holds results.json of something else: choose another folder")
        if stored.exists():
            there = json.loads(stored.read_text())
            changed = [name for name in {**there, **settings} if there.get(name) != settings.get(name)]
            if changed and not overwrite:
                listed = "; ".join(
                    f"{names.get(name, name)} {_text(there.get(name))} there and {_text(settings.get(name))} here"
                    for name in changed
                )
                raise FileExistsError(
                    f"{path} holds an evaluation with other settings: {listed}. --overwrite replaces it"
                )
            if changed:
                self._clear()
        write_json(stored, dict(settings))

    def _clear(self) -> None:
        """Takes the results first and the settings last, so that a kill leaves nothing to other settings."""
        (self.path / "results.json").unlink(missing_ok=True)
        if (self.path / "chunks").exists():
            shutil.rmtree(self.path / "chunks")
        for old in (*self.path.glob("posteriors-*.npy"), *(self.path / name for name in _FILES)):
            old.unlink(missing_ok=True)

    def results(self) -> dict[str, Any] | None:
        """results.json, once everything is there."""
        path = self.path / "results.json"
        return json.loads(path.read_text()) if path.exists() else None

    def posteriors(self, index: int) -> np.ndarray:
        """Of the index-th network, once the results are there."""
        return np.load(self.path / f"posteriors-{index}.npy")

    def chunks(self, index: int) -> ChunkFiles:
        return ChunkFiles(self.path / "chunks", index)

    def save(self, name: str, values: np.ndarray) -> None:
        write_array(self.path / name, values)

    def finish(self, results: Mapping[str, Any]) -> None:
        """Writes results.json, after which the chunks are not needed."""
        write_json(self.path / "results.json", results)
        shutil.rmtree(self.path / "chunks", ignore_errors=True)


class ChunkFiles:
    """A network's finished chunks, as files: chunks/<network>-<number>.npz."""

    def __init__(self, path: Path, index: int) -> None:
        self._path, self._index = path, index

    def load(self) -> dict[int, tuple[np.ndarray, float]]:
        """By number: posteriors and the seconds that they took."""
        found = {}
        for file in self._path.glob(f"{self._index}-*.npz"):
            with np.load(file) as content:
                found[int(file.stem.partition("-")[2])] = (content["posteriors"], float(content["seconds"]))
        return found

    def save(self, number: int, posteriors: np.ndarray, seconds: float) -> None:
        def write(temporary: Path) -> None:
            with open(temporary, "wb") as file:
                np.savez(file, posteriors=posteriors, seconds=seconds)

        write_atomically(self._path / f"{self._index}-{number:06d}.npz", write)


def _text(value: Any) -> str:
    return "nothing" if value is None else str(value)
