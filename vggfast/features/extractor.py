"""Features for other tasks: a network's maps of whole images, pooled over space, at several scales.

Source: Simonyan & Zisserman, appendix B.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from vggfast._checks import check_sequence, check_whole
from vggfast.data.decode import open_image, to_rgb
from vggfast.data.transforms import rescale
from vggfast.engine import Engine
from vggfast.evaluate.images import check_pictures
from vggfast.graph import Head, Node, whole
from vggfast.graph.layers import Elementwise, Linear, Relu
from vggfast.preprocessing import Preprocessing, preprocessing_of

PENULTIMATE = "penultimate"
POOLS = ("mean", "max")
COMBINE = ("stack", "average")
_SHRINK = 32  # pixels of an image to a place of the last map


class Block(NamedTuple):
    """Neighbouring columns of a feature matrix: one tap, pooled in one way, at one scale.

    Attributes:
        tap: the layer, such as "pool5", or "penultimate".
        pool: "mean" or "max", over space.
        scale: pixels of the images' shorter side.
        dims: how many columns.
    """

    tap: str
    pool: str
    scale: int
    dims: int

    @property
    def name(self) -> str:
        """Such as "pool5.mean@256"."""
        return f"{self.tap}.{self.pool}@{self.scale}"


class Extractor:
    """Pooled features of images, block by block, neither normalised nor combined (see :func:`combine_blocks`).

    A snapshot of the model, as its :class:`vggfast.Engine`: make it again after the weights change.

    Args:
        model: whatever :class:`vggfast.Engine` takes, with FC layers where "penultimate" is among the taps.
        taps: names of the engine's, as "relu5_3" or "pool5"; or "penultimate": what the last FC layer reads, at every
            place of the image where the head fits.
        scales: lengths in pixels of the shorter side to which each image is rescaled.
        pool: "mean" or "max" over the places of a map, or several, each a block of its own.
        flip: average with the mirror image's, after the pooling.
        preprocessing: what the network was trained on; None takes the model's own.
        batch_size: images of one size that run together. The memory is that of the engine for one such batch.

    Attributes:
        blocks: what the columns are: by scale, then tap, then pooling.

    Raises:
        ValueError, TypeError: an argument does not fit; the text names it.
    """

    def __init__(
        self,
        model: nn.Module,
        taps: Sequence[str] = ("pool5",),
        scales: Sequence[int] = (256, 384, 512),
        *,
        pool: str | Sequence[str] = "mean",
        flip: bool = True,
        preprocessing: Preprocessing | None = None,
        batch_size: int = 8,
    ) -> None:
        preprocessing = preprocessing_of(model, preprocessing)
        if preprocessing is None:
            raise ValueError("preprocessing must be a Preprocessing where the model has none of its own, got None")
        self.preprocessing = preprocessing
        check_sequence(taps, "taps")
        check_sequence(scales, "scales")
        self.taps, self.scales, self.flip = tuple(taps), tuple(scales), flip
        self.batch_size = check_whole(batch_size, "batch_size", 1)
        self.pools = (pool,) if isinstance(pool, str) else tuple(pool)
        if not self.pools or set(self.pools) - set(POOLS):
            raise ValueError(f"pool must be one or more of {', '.join(map(repr, POOLS))}, got {pool!r}")
        self._head = _head_of(model) if PENULTIMATE in self.taps else None
        least = _SHRINK * (self._head.size if self._head else 1)
        if not self.scales or min(check_whole(scale, "scales", 0) for scale in self.scales) < least:
            raise ValueError(f"scales must be one or more of at least {least}, got {list(scales)}")
        for name, values in {"taps": self.taps, "scales": self.scales, "pool": self.pools}.items():
            if len(set(values)) < len(values):
                raise ValueError(f"{name} must have each value only once, got {list(values)}")
        self._device = whole(model, head=False).device
        self.load(model)
        self.blocks = self._blocks(least)

    def load(self, model: nn.Module) -> None:
        """Makes ready what :meth:`maps` needs of the model; benchmarks put another network in its place."""
        # Photos are of ever new sizes: a CUDA graph for each would be captured and thrown away.
        trunk = whole(model, head=False)
        self._engine = Engine(trunk, batch=self.batch_size, size=self.scales[0], graph=False)

    @torch.inference_mode()
    def __call__(self, images: Sequence[Image.Image | str | Path]) -> np.ndarray:
        """(len(images), sum of the blocks' dims), float32.

        Args:
            images: pictures of any sizes and modes, or their paths.
        """
        check_pictures(images)
        features = np.empty((len(images), sum(block.dims for block in self.blocks)), np.float32)
        pictures = [to_rgb(image) if isinstance(image, Image.Image) else open_image(image) for image in images]
        begin = 0
        for scale in self.scales:
            end = begin + sum(block.dims for block in self.blocks if block.scale == scale)
            by_size = defaultdict(list)
            for index, picture in enumerate(pictures):
                resized = rescale(picture, scale)
                by_size[resized.size].append((index, resized))
            for group in by_size.values():
                for first in range(0, len(group), self.batch_size):
                    indices, batch = zip(*group[first : first + self.batch_size], strict=True)
                    features[list(indices), begin:end] = self.rows(self._prepared(batch)).cpu()
            begin = end
        return features

    def rows(self, x: Tensor) -> Tensor:
        """(N, dims of one scale's blocks), float32, of prepared images (N, 3, H, W)."""
        rows = self._pooled(x)
        return (rows + self._pooled(x.flip(3))) / 2 if self.flip else rows

    def maps(self, x: Tensor) -> dict[str, Tensor]:
        """Of each tap (N, channels, h, w), float32, of prepared images (N, 3, H, W)."""
        last = self._engine.taps[-1]
        requested = [last if tap == PENULTIMATE else tap for tap in self.taps]
        found: Any = self._engine.features(x, requested)
        return {
            tap: found[name] if tap == name else self._penultimate(found[last])
            for tap, name in zip(self.taps, requested, strict=True)
        }

    def _penultimate(self, x: Tensor) -> Tensor:
        """(N, values, places, 1) of the last map: what the last FC layer reads at every place where the head fits."""
        assert self._head is not None
        if min(x.shape[2:]) < self._head.size:
            size = self._head.size
            raise ValueError(
                f"scales must make maps of at least {size} x {size} cells for classifier, got {tuple(x.shape[2:])}"
            )
        rows = F.unfold(x, self._head.size).transpose(1, 2)  # (N, places, C * size * size)
        for node in self._head.nodes:
            match node.layer:
                case Linear(weight, bias):
                    rows = F.linear(rows, weight, bias)
                case Relu():
                    rows = F.relu(rows)
                case Elementwise():
                    rows = node.module(rows)
        return rows.transpose(1, 2)[..., None]

    def _pooled(self, x: Tensor) -> Tensor:
        made = [
            value.mean((2, 3)) if pool == "mean" else value.amax((2, 3))
            for value in self.maps(x).values()
            for pool in self.pools
        ]
        return torch.cat(made, 1)

    def _prepared(self, pictures: Iterable[Image.Image]) -> Tensor:
        tensors = [self.preprocessing.tensor(np.asarray(picture, dtype=np.float32)) for picture in pictures]
        return torch.stack(tensors).to(self._device)

    @torch.inference_mode()
    def _blocks(self, least: int) -> tuple[Block, ...]:
        """Asks the network itself how many channels each tap has, by the smallest image that it takes."""
        smallest = torch.zeros(1, 3, least, least, dtype=torch.float32, device=self._device)
        dims = {tap: value.shape[1] for tap, value in self.maps(smallest).items()}
        return tuple(
            Block(tap, pool, scale, dims[tap]) for scale in self.scales for tap in self.taps for pool in self.pools
        )


def _head_of(model: nn.Module) -> Head:
    """The head up to what its last FC layer reads."""
    network = whole(model)
    network.check_values()
    head = network.head
    places = [i for i, node in enumerate(head.nodes) if isinstance(node.layer, Linear)] if head else []
    if head is None or not places:
        raise ValueError(f"model must have an FC layer in its classifier for the tap {PENULTIMATE!r}, got none")
    return replace(head, nodes=tuple(map(_kept, head.nodes[: places[-1]])))


def _kept(node: Node) -> Node:
    """A layer that stays as it is when the model changes."""
    match node.layer:
        case Linear(weight, bias):
            return replace(node, layer=Linear(weight.clone(), None if bias is None else bias.clone()))
        case Elementwise():
            return replace(node, module=copy.deepcopy(node.module))
    return node


def combine_blocks(
    features: np.ndarray, blocks: Sequence[Block], how: str = "stack", normalise: bool = True
) -> np.ndarray:
    """One vector an image of its blocks: (N, D), float32.

    Each block is divided by its L2 norm, so that none speaks louder for its channels or its depth; then blocks are
    stacked, and the whole is divided by its norm again. One block is what the paper does at one scale.

    Args:
        features: (N, sum of the blocks' dims), as an :class:`Extractor` gives them.
        blocks: what the columns are, in their order.
        how: what becomes of scales, "stack" or "average". Taps and poolings are stacked either way.
        normalise: False leaves out both divisions.

    Raises:
        ValueError: `how` is another, or the columns are not those of the blocks.
    """
    _check_combine(how)
    ends = np.cumsum([block.dims for block in blocks])
    if not blocks or features.shape[1] != ends[-1]:
        raise ValueError(f"features must have the columns of {[b.name for b in blocks]}, got shape {features.shape}")
    parts: dict[Any, list[np.ndarray]] = defaultdict(list)
    for block, values in zip(blocks, np.split(features, ends[:-1], axis=1), strict=True):
        key = block if how == "stack" else (block.tap, block.pool)
        parts[key].append(_normalised(values) if normalise else values)
    whole = np.concatenate([np.mean(values, axis=0, dtype=np.float32) for values in parts.values()], axis=1)
    return _normalised(whole) if normalise else whole


def _check_combine(how: str) -> None:
    if how not in COMBINE:
        raise ValueError(f"combine must be one of {', '.join(map(repr, COMBINE))}, got {how!r}")


def _normalised(values: np.ndarray) -> np.ndarray:
    """Rows divided by their L2 norms; a row of zeros stays."""
    norms = np.sqrt(np.einsum("nd,nd->n", values, values, dtype=np.float64))[:, None]
    return (values / np.where(norms > 0, norms, 1)).astype(np.float32)


def extract(
    model: nn.Module,
    images: Sequence[Image.Image | str | Path],
    taps: Sequence[str] = ("pool5",),
    scales: Sequence[int] = (256, 384, 512),
    *,
    pool: str | Sequence[str] = "mean",
    combine: str = "stack",
    flip: bool = True,
    normalise: bool = True,
    preprocessing: Preprocessing | None = None,
    batch_size: int = 8,
) -> np.ndarray:
    """One feature vector an image: (len(images), D), float32. Whole images, no crops.

    Args:
        images: pictures of any sizes and modes, or their paths.
        combine, normalise: as `how` and `normalise` of :func:`combine_blocks`.

    The other arguments are those of :class:`Extractor`.

    Raises:
        ValueError, TypeError: an argument does not fit; the text names it.

    Source: Simonyan & Zisserman, appendix B: taps=("penultimate",), several scales, flip.
    """
    _check_combine(combine)
    extractor = Extractor(model, taps, scales, pool=pool, flip=flip, preprocessing=preprocessing, batch_size=batch_size)
    return combine_blocks(extractor(images), extractor.blocks, combine, normalise)
