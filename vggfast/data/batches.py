"""Batches whose content depends on (seed, epoch, position) alone: not on workers, nor on where a run was resumed."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vggfast.data.datasets import ImageSet

Transform = Callable[[Image.Image, np.random.Generator], Tensor]


class _Epoch(Dataset):
    def __init__(self, images: ImageSet, transform: Transform, seed: int, epoch: int) -> None:
        self.images, self.transform, self.seed, self.epoch = images, transform, seed, epoch

    def __getitem__(self, index: int) -> tuple[Tensor, int] | Exception:
        generator = np.random.default_rng((self.seed, self.epoch, index))
        try:
            return self.transform(self.images.image(index), generator), int(self.images.labels[index])
        except (OSError, ValueError) as error:
            return error  # raised in the parent: a worker's exception would carry its traceback as its text


def _collate(samples: list[tuple[Tensor, int] | Exception]) -> tuple[Tensor, Tensor] | Exception:
    for sample in samples:
        if isinstance(sample, Exception):
            return sample
    images, labels = zip(*samples, strict=True)
    return torch.stack(images).contiguous(memory_format=torch.channels_last), torch.tensor(labels)


class Batches:
    """(images (N, 3, H, W) float32 channels_last, labels (N,) int64), epoch by epoch.

    Args:
        images: the data set.
        transform: from an image and a random generator to a (3, H, W) tensor.
        batch_size: images of a batch.
        shuffle: a new order each epoch, and the last, smaller batch left out; else in order and whole.
        seed: of the order and of every random choice.
        workers: processes that decode; 0 decodes in this one. The batches are the same for any number.
    """

    def __init__(
        self, images: ImageSet, transform: Transform, batch_size: int, *, shuffle: bool, seed: int = 0, workers: int = 0
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}: 1 or more is wanted")
        if shuffle and batch_size > len(images):
            raise ValueError(f"batch_size is {batch_size}: at most {len(images)}, the images of {images.name}")
        self.images, self.transform, self.batch_size = images, transform, batch_size
        self.shuffle, self.seed, self.workers = shuffle, seed, workers

    def __len__(self) -> int:
        full, rest = divmod(len(self.images), self.batch_size)
        return full if self.shuffle else full + (rest > 0)

    def epoch(self, epoch: int = 0, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of an epoch from number `first` on."""
        order = np.arange(len(self.images))
        if self.shuffle:
            np.random.default_rng((self.seed, epoch)).shuffle(order)
        batches = [order[i * self.batch_size : (i + 1) * self.batch_size].tolist() for i in range(first, len(self))]
        dataset = _Epoch(self.images, self.transform, self.seed, epoch)
        # A generator of its own: else DataLoader draws from torch's, and dropout depends on where a run resumed.
        generator = torch.Generator().manual_seed(self.seed)
        loader = DataLoader(
            dataset, batch_sampler=batches, num_workers=self.workers, collate_fn=_collate, generator=generator
        )
        for batch in loader:
            if isinstance(batch, Exception):
                raise batch
            yield batch
