"""Batches whose content depends on (seed, epoch, position) alone: not on workers, ranks, or where a run resumed."""

from __future__ import annotations

import copy
import signal
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from vggfast import _native
from vggfast._checks import MOST_WORKERS, check_whole
from vggfast.data.sources.base import ImageSet
from vggfast.data.transforms import Geometry, Transform, crop_boxes, crop_pictures

ON_BAD_IMAGE = ("fail", "skip")


@dataclass
class Batch:
    """A rank's rows of one batch.

    Attributes:
        images: (n, 3, H, W) float32, channels_last.
        labels: (n,) int64.
        counts: (n,) bool, the rows that count: False for a filler, and for a validation image that did not decode.
        total: images of the whole batch, over all ranks.
        bad: a message for each image of these rows that did not decode; it names the file.
        boxes: (n, 4) float32, the boxes of the images' objects, as :func:`~vggfast.data.transforms.crop_boxes` gives
            them; None where `Batches` has none.
    """

    images: Tensor
    labels: Tensor
    counts: Tensor
    total: int
    bad: list[str]
    boxes: Tensor | None = None

    @property
    def tensors(self) -> list[Tensor]:
        """Images, labels, counts, and boxes where there are any: what goes to the device."""
        return [self.images, self.labels, self.counts, *([] if self.boxes is None else [self.boxes])]

    def pin_memory(self) -> Batch:
        """What DataLoader asks of a type of its user's."""
        images, labels, counts, *boxes = (tensor.pin_memory() for tensor in self.tensors)
        return replace(self, images=images, labels=labels, counts=counts, boxes=boxes[0] if boxes else None)


class _Rows(NamedTuple):
    """What a rank is to load of a batch."""

    epoch: int
    indices: list[int]
    total: int
    filler: bool  # no row of the batch is this rank's: its first image stands in


class _Found(NamedTuple):
    """A picture for a row, and where it came from; no pixels: it did not decode."""

    chosen: int  # its index
    pixels: np.ndarray | None
    bad: str | None


def _room(n: int, crop: int) -> Tensor:
    """(n, 3, crop, crop) float32, channels_last; in a worker in memory that its parent shares."""
    shape = (n, 3, crop, crop)
    if get_worker_info() is None:
        return _native.empty(shape, torch.float32, torch.channels_last)
    storage = torch.UntypedStorage._new_shared(4 * n * 3 * crop * crop)
    strides = torch.empty(shape, device="meta", memory_format=torch.channels_last).stride()
    return torch.empty(0).set_(storage, 0, shape, strides)


class _Loader(Dataset):
    """Rows in, a :class:`Batch` out, in whichever process: one call of the native crop."""

    def __init__(
        self, images: ImageSet, transform: Transform, seed: int, replace_bad: bool, on_bad_image: str,
        boxes: np.ndarray | None,
    ) -> None:  # fmt: skip
        self.images, self.transform, self.seed, self.boxes = images, transform, seed, boxes
        self.replace_bad, self.on_bad_image = replace_bad, on_bad_image

    def __getitem__(self, rows: _Rows) -> Batch | Exception:
        try:
            return self._load(rows)
        except (OSError, ValueError) as error:
            return error  # raised in the parent: a worker's exception would carry its traceback as its text

    def _load(self, rows: _Rows) -> Batch:
        found = [self._find(index) for index in rows.indices]
        kept = [each for each in found if each.pixels is not None]
        counts = torch.tensor([each.pixels is not None for each in found])
        images = _room(len(found), self.transform.crop)
        geometries = [self._draw(rows.epoch, each) for each in kept]
        if kept:
            pictures = [each.pixels for each in kept if each.pixels is not None]
            whole = len(kept) == len(found)
            made = crop_pictures(pictures, geometries, self.transform, out=images if whole else None)
            images = made if whole else images.zero_().index_copy_(0, counts.nonzero()[:, 0], made)
        else:
            images.zero_()
        boxes = self._boxes(kept, geometries, counts)
        labels = torch.from_numpy(self.images.labels[[each.chosen for each in found]])
        bad = [each.bad for each in found if each.bad is not None]
        if rows.filler:  # the rank whose rows they are reports them
            return Batch(images, labels, torch.zeros(len(found), dtype=torch.bool), rows.total, [], boxes)
        return Batch(images, labels, counts, rows.total, bad, boxes)

    def _boxes(self, kept: list[_Found], geometries: list[Geometry], counts: Tensor) -> Tensor | None:
        if self.boxes is None:
            return None
        boxes = torch.zeros(len(counts), 4)
        if kept:
            moved = crop_boxes(self.boxes[[each.chosen for each in kept]], geometries, self.transform.crop)
            boxes[counts] = torch.from_numpy(moved).float()
        return boxes

    def _draw(self, epoch: int, found: _Found) -> Geometry:
        assert found.pixels is not None
        height, width = found.pixels.shape[:2]
        return self.transform.draw((height, width), np.random.default_rng((self.seed, epoch, found.chosen)))

    def _find(self, index: int) -> _Found:
        """The picture of a row; where it does not decode and is to be replaced, the next one that does."""
        bad = None
        for candidate in range(index, index + (len(self.images) if self.replace_bad else 1)):
            chosen = candidate % len(self.images)
            try:
                return _Found(chosen, self.images.pixels(chosen), bad)
            except (OSError, ValueError) as error:
                if self.on_bad_image == "fail":
                    raise
                bad = bad or str(error)  # those after it are reported where their own rows come
        if self.replace_bad:
            raise ValueError(f"{self.images.name}: none of its {len(self.images)} images decodes; the first: {bad}")
        return _Found(index, None, bad)


def _leave_signals_to_the_parent(_: int) -> None:
    """A signal to the whole process group asks the trainer to finish its step, for which it needs its batch."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _as_it_is(batch: Any) -> Any:
    return batch


class Batches:
    """A data set as batches, epoch by epoch.

    The order depends on (seed, epoch) alone, what is done to an image on (seed, epoch, its index) alone: the rows of
    batch k over all ranks are the same for any number of workers and ranks.

    Args:
        images: the data set.
        transform: an :class:`Augmentation` or :class:`CentreCrop`.
        batch_size: images of a batch, over all ranks.
        shuffle: a new order each epoch, for training; else in order, for validation.
        seed: of the order and of every random choice.
        workers: processes that decode, and keep two batches each ahead; 0 decodes in this one.
        rank, ranks: which contiguous part of each batch is this process'. Where it is empty, the batch's first image
            stands in, as a row that does not count, so that every rank makes the same steps.
        on_bad_image: "fail" raises where an image does not decode. "skip" goes on: in training the next image of the
            data set that decodes takes its row; in validation the row is zeros and does not count.
        pin_memory: of the tensors, for copies to a GPU beside its work.
        keep_last: the last, smaller batch too.
        boxes: (len(images), 4), a box of each image: left, top, right, bottom, relative to its width and height. They
            are moved as the images are.

    Raises:
        ValueError: an argument is not what is allowed; the text names it. By :meth:`epoch`, with "fail": an image
            does not decode; the text names its file.
    """

    def __init__(
        self, images: ImageSet, transform: Transform, batch_size: int, *, shuffle: bool, seed: int = 0,
        workers: int = 0, rank: int = 0, ranks: int = 1, on_bad_image: str = "fail", pin_memory: bool = False,
        keep_last: bool = True, boxes: np.ndarray | None = None,
    ) -> None:  # fmt: skip
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if not len(images):
            raise ValueError(f"images must have at least one image of {images.name}, got none")
        if not keep_last and batch_size > len(images):
            raise ValueError(f"batch_size must be at most {len(images)}, the images of {images.name}, got {batch_size}")
        if not 0 <= rank < ranks:
            raise ValueError(f"rank must be at least 0 and less than ranks, {ranks}, got {rank}")
        workers = check_whole(workers, "workers", 0, MOST_WORKERS)
        if on_bad_image not in ON_BAD_IMAGE:
            raise ValueError(f"on_bad_image must be one of {', '.join(ON_BAD_IMAGE)}, got {on_bad_image!r}")
        self.images, self.batch_size, self.shuffle, self.seed = images, batch_size, shuffle, seed
        self.workers, self.rank, self.ranks = workers, rank, ranks
        self.pin_memory, self.keep_last = pin_memory, keep_last
        self._loader = _Loader(images, transform, seed, shuffle and on_bad_image == "skip", on_bad_image, boxes)

    def __len__(self) -> int:
        full, rest = divmod(len(self.images), self.batch_size)
        return full + (rest > 0 and self.keep_last)

    def epoch(self, epoch: int = 0, first: int = 0, transform: Transform | None = None) -> Iterator[Batch]:
        """The batches of an epoch from number `first` on; those before it are not decoded.

        `transform`: of this epoch, in place of that of all.
        """
        order = np.arange(len(self.images))
        if self.shuffle:
            np.random.default_rng((self.seed, epoch)).shuffle(order)
        plan = [self._rows(epoch, order, number) for number in range(first, len(self))]
        # A generator of its own: else DataLoader draws from torch's, and dropout depends on where a run resumed.
        generator = torch.Generator().manual_seed(self.seed)
        source = copy.copy(self._loader)
        source.transform = transform or source.transform
        loader = DataLoader(
            source, batch_size=None, sampler=plan, num_workers=self.workers, collate_fn=_as_it_is,
            generator=generator, pin_memory=self.pin_memory, worker_init_fn=_leave_signals_to_the_parent,
        )  # fmt: skip
        for batch in loader:
            if isinstance(batch, Exception):
                raise batch
            yield batch

    def _rows(self, epoch: int, order: np.ndarray, number: int) -> _Rows:
        whole = order[number * self.batch_size : (number + 1) * self.batch_size].tolist()
        begin, end = (len(whole) * rank // self.ranks for rank in (self.rank, self.rank + 1))
        return _Rows(epoch, whole[begin:end] or whole[:1], len(whole), begin == end)
