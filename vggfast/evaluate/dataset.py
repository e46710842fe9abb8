"""A network on a whole data set: chunk by chunk, shared by torchrun's ranks, each chunk kept as soon as it is done."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vggfast._progress import Progress, silent
from vggfast.data import Images
from vggfast.data.transforms import image_to_rescale
from vggfast.distributed import DistributedContext
from vggfast.evaluate.evaluator import MEMORY, PROTOCOLS, Evaluator
from vggfast.io import on_one_line
from vggfast.models import VGG

CHUNK = 64  # images; what a kill loses, per rank
_PIXEL_BYTES = 256 << 20  # of pictures that are decoded at a time, but for a single larger one


@dataclass(frozen=True)
class Settings:
    """How networks are evaluated.

    Attributes:
        protocol: "single" (dense at one scale), "dense", "multi-crop" or "both".
        flip: average with the mirror images.
        pool: how a score map becomes scores, "mean" (the paper) or "sum".
        memory: bytes that an evaluation may take beside weights and pictures; it changes no result.
        on_bad_image: what an image that does not decode does: "fail", or "skip": its posteriors are NaN.

    Raises:
        ValueError: a value is not what is allowed; the text names it.
    """

    protocol: str = "dense"
    flip: bool = True
    pool: str = "mean"
    memory: int = MEMORY
    on_bad_image: str = "fail"

    def __post_init__(self) -> None:
        allowed = {"protocol": tuple(PROTOCOLS), "pool": ("mean", "sum"), "on_bad_image": ("fail", "skip")}
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise ValueError(f"{name} must be one of {', '.join(map(repr, values))}, got {getattr(self, name)!r}")
        if self.pool == "sum" and self.protocol not in ("single", "dense"):
            raise ValueError(
                f"pool must be 'mean' with protocol {self.protocol!r}, whose crops have no map to sum, got 'sum'"
            )


class Chunks(Protocol):
    """Where finished chunks are kept, on rank 0."""

    def load(self) -> dict[int, tuple[np.ndarray, float]]:
        """By number: posteriors and the seconds that they took."""

    def save(self, number: int, posteriors: np.ndarray, seconds: float) -> None: ...


def evaluate_set(
    model: VGG,
    images: Images,
    scales: Sequence[int],
    settings: Settings,
    context: DistributedContext,
    *,
    chunks: Chunks | None = None,
    progress: Progress = silent,
    warn: Callable[[str], object] = silent,
) -> tuple[Tensor, float]:
    """(posteriors (N, classes) float32, seconds) of a data set, each image evaluated once; on rank 0, of all ranks.

    Chunks that are there already are not computed again; the others are dealt to the ranks in turn. After each turn
    rank 0 has them, and keeps them.

    Args:
        model: with a head, its preprocessing and the data set's classes, on the context's device.
        images: N of them.
        scales: of `settings.protocol`.
        chunks: where rank 0 keeps them; nowhere when None.
        progress: is told how many images are done.
        warn: is told of each image that does not decode, where that is allowed.

    Raises:
        ValueError: an image does not decode, the scales do not fit, or posteriors are not finite; the text names it.
    """
    evaluator = Evaluator(model, memory=settings.memory)
    result = torch.full((len(images), len(images.classes)), float("nan"))
    there = chunks.load() if context.main and chunks else {}
    seconds = sum(took for _, took in there.values())
    for number, (values, _) in there.items():
        result[_span(images, number)] = torch.from_numpy(values)
    count = -(-len(images) // CHUNK)
    todo = context.of_main([number for number in range(count) if number not in there])
    done = len(images) - sum(len(_range(images, number)) for number in todo)
    progress(done, len(images))
    for first in range(0, len(todo), context.size):
        began = time.monotonic()
        turn = todo[first : first + context.size]
        own = [_chunk(evaluator, images, number, scales, settings) for number in turn[context.rank : context.rank + 1]]
        made = [each for of_rank in context.to_main(own) for each in of_rank]
        took = time.monotonic() - began
        seconds += took
        for number, (values, bad) in zip(turn, made, strict=False):  # ranks but the first have nothing in `made`
            result[_span(images, number)] = torch.from_numpy(values)
            for text in bad:
                warn(text)
            if chunks:
                chunks.save(number, values, took / len(turn))
        done += sum(len(_range(images, number)) for number in turn)
        progress(done, len(images))
    return result, seconds


def _range(images: Images, number: int) -> range:
    return range(number * CHUNK, min((number + 1) * CHUNK, len(images)))


def _span(images: Images, number: int) -> slice:
    numbers = _range(images, number)
    return slice(numbers.start, numbers.stop)


def _chunk(
    evaluator: Evaluator, images: Images, number: int, scales: Sequence[int], settings: Settings
) -> tuple[np.ndarray, list[str]]:
    """(posteriors of a chunk, what is wrong with images that do not decode)."""
    numbers, bad = _range(images, number), []

    def decoded() -> Iterator[tuple[int, Image.Image]]:
        for i in numbers:
            try:
                yield i - numbers.start, image_to_rescale(images, i, max(scales))
            except (OSError, ValueError) as error:
                if settings.on_bad_image == "fail":
                    raise
                bad.append(str(error))

    values = np.full((len(numbers), len(images.classes)), np.nan, np.float32)
    for group in _groups(decoded()):
        pictures = list(group.values())
        if settings.pool == "sum":
            found = evaluator.dense(pictures, scales, flip=settings.flip, pool="sum")
        else:
            found = evaluator.posteriors(pictures, settings.protocol, scales, flip=settings.flip)
        if odd := (~found.isfinite().all(1)).nonzero()[:, 0].tolist():
            source = on_one_line(images.source(numbers.start + list(group)[odd[0]]))
            raise ValueError(f"{source}: what the network says of it is not finite")
        values[list(group)] = found.numpy()
    return values, bad


def _groups(pictures: Iterator[tuple[int, Image.Image]]) -> Iterator[dict[int, Image.Image]]:
    """As many pictures at a time as may be decoded together; the same ones every time."""
    group: dict[int, Image.Image] = {}
    size = 0
    for number, picture in pictures:
        own = 3 * picture.width * picture.height
        if group and size + own > _PIXEL_BYTES:
            yield group
            group, size = {}, 0
        group[number] = picture
        size += own
    if group:
        yield group
