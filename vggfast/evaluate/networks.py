"""Trained or converted networks as evaluation takes them: what their files say, and what they leave to be said."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vggfast.io import WeightFile, shown
from vggfast.models import VGG
from vggfast.weights.files import model_of

_PAPER_SCALES = (256, 384, 512)
PAPER_POOL_SIZE = 7


def paper_scales(pool_size: int, scales: Sequence[int] = _PAPER_SCALES) -> tuple[int, ...]:
    """The paper's shorter sides of test images, as much smaller as a head of `pool_size` is than the paper's."""
    return tuple(round(scale * pool_size / PAPER_POOL_SIZE) for scale in scales)


def trained_on(metadata: Mapping[str, Any]) -> str:
    """What a file says of the data of its training, in words; "?" where it says nothing."""
    data = metadata.get("data")
    return "?" if not data else f"data that were validated on {data}" if metadata.get("whole") else data


@dataclass(frozen=True)
class Network:
    """A weight file of a network with a head. :meth:`load` makes the network of it, which is not kept.

    Of a .safetensors file only mapped pages stay in memory between two calls; of a .pth file, its tensors do.

    Attributes:
        file: the file, opened once: what is looked up in it later is of the same bytes.
        arguments: of :class:`vggfast.VGG`.
        classes: their names; None where the file has none.
        metadata: what else the file says; of training: data, whole (see :func:`vggfast.data.open_dataset`), scales.
    """

    file: WeightFile
    arguments: dict[str, Any]
    classes: list[str] | None
    metadata: dict[str, Any]

    @classmethod
    def open(cls, path: str | Path, classes: Sequence[str] | None = None) -> Network:
        """A file of a training run, one of its checkpoints, or what ``vggfast convert`` wrote.

        Args:
            path: the file.
            classes: names of the classes, for a file that has none; of one that has some, the same.

        Raises:
            FileNotFoundError, ValueError: no such file, or one that cannot be evaluated; the text names it.
        """
        file = WeightFile(Path(path))
        model, metadata = model_of(file, empty=True)
        if "predict" in metadata:
            raise ValueError(f"{path} predicts boxes, not classes: vggfast localise is for it")
        if model.head == "none":
            raise ValueError(
                f"{path} must hold a network with FC layers, and has convolutions alone: vggfast train --init-from "
                "trains FC layers for them"
            )
        if model.preprocessing is None:
            raise ValueError(f"{path} does not say how its images are prepared (preprocessing is missing)")
        number, names = model.arguments["num_classes"], metadata.get("classes") or classes
        if names is not None and len(names) != number:
            raise ValueError(f"{path} has {number} classes, and {len(names)} names are given for them")
        if names is not None and classes is not None and list(names) != list(classes):
            raise ValueError(f"{path} has names of its own for its classes, and others are given: leave these out")
        return cls(file, model.arguments, None if names is None else [shown(name) for name in names], metadata)

    @property
    def path(self) -> Path:
        """Where the file lies."""
        return self.file.path

    @property
    def sha256(self) -> str:
        """Of the whole file."""
        return self.file.sha256

    def load(self) -> VGG:
        """The network with its weights, on the CPU, made anew by each call."""
        return model_of(self.file)[0]

    def scales(self, protocol: str) -> tuple[int, ...]:
        """The test scales that suit it: its training's, else the paper's, as large as its head needs them.

        Source: Simonyan & Zisserman, section 4; "single" has one, in the middle of the training's, or 256.
        """
        own = tuple(self.metadata.get("scales", ()))
        if own:
            return own[1:2] if protocol == "single" else own
        return paper_scales(self.arguments["pool_size"], _PAPER_SCALES[:1] if protocol == "single" else _PAPER_SCALES)

    def check_classes(self, names: Sequence[str], of: str) -> None:
        """Raises ValueError where the classes are not `names`; those of a file without names only have their number."""
        number = self.arguments["num_classes"]
        own = self.classes or names
        if self.classes is None and all(name.isdecimal() for name in names):  # which others sort as texts
            first = ", ".join(f"{i} for {name!r}" for i, name in enumerate(names[:3]))
            warnings.warn(
                f"{self.path} does not name its classes, which are taken in the order of {of}: {first} and so on",
                stacklevel=2,
            )
        odd = next((i for i, (mine, theirs) in enumerate(zip(own, names, strict=False)) if mine != theirs), None)
        if number != len(names) or odd is not None:
            raise ValueError(
                f"{self.path} knows {number} classes that are not the {len(names)} of {of}"
                + ("" if odd is None else f": class {odd} is {own[odd]!r} and not {names[odd]!r}")
            )

    def check_scales(self, scales: Sequence[int]) -> None:
        """Raises ValueError where there are none, or images so rescaled are too small for the head."""
        least = 32 * self.arguments["pool_size"]
        if not scales or min(scales) < least:
            raise ValueError(f"scales of {self.path} must be one or more of at least {least}, got {list(scales)}")


def open_networks(paths: Sequence[Path], classes: Sequence[str] | None = None) -> list[Network]:
    """The networks of some files (see :meth:`Network.open`), which agree on their classes.

    Raises:
        FileNotFoundError, ValueError: as there; or a file twice, or two of other classes; the text names it.
    """
    if twice := [path for i, path in enumerate(paths) if path in paths[:i]]:
        raise ValueError(f"models must have each network once, got {twice[0]} twice")
    networks = [Network.open(path, classes) for path in paths]
    named = next((network for network in networks if network.classes is not None), networks[0])
    names = named.classes or [""] * named.arguments["num_classes"]
    for network in networks:
        network.check_classes(names, str(named.path))
    return networks
