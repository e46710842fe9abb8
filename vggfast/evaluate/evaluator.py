"""A network ready for the paper's protocols: dense, multi-crop, both; class score maps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from vggfast import graph, ops
from vggfast._checks import check_sequence, check_whole
from vggfast.evaluate.head import Head, Piece
from vggfast.evaluate.images import Images, Picture, View, check, crops, pictures, whole
from vggfast.evaluate.trunk import Trunk
from vggfast.models import VGG
from vggfast.preprocessing import Preprocessing, preprocessing_of

SCALES = (256, 384, 512)
PROTOCOLS = ("single", "dense", "multi-crop", "both")
MEMORY = 2 << 30

# Shares of the memory: the convolutions, pictures and feature maps that wait, and the FC layers; of eighths.
_TRUNK, _WAITING, _HEAD = 5, 2, 1


class ScoreMap(NamedTuple):
    """Class scores over a picture.

    Attributes:
        scores: (classes, h, w), float32, on the CPU, before any softmax.
        size: height and width of the rescaled picture.
        stride, window: cell (i, j) sees rows stride * i ... stride * i + window of it, and columns likewise with j:
            32, and 32 * pool_size.
    """

    scores: Tensor
    size: tuple[int, int]
    stride: int
    window: int


class Sink(Protocol):
    """What becomes of the scores of one picture's views, all of one size."""

    views: list[View]

    def take(self, view: int, piece: Piece) -> None: ...

    def finish(self) -> None: ...


class Evaluator:
    """A network prepared once, for any number of calls.

    A snapshot of the model as ``model.eval()`` computes it, in float32, on the device where it is, packed for
    :class:`vggfast.Engine`. Build it again after the weights change. The model's training mode and parameters stay as
    they are.

    Args:
        model: any network with a head, linear or conv.
        preprocessing: what the network was trained on; None takes `model.preprocessing`. Tensors need none.
        memory: bytes of activations and workspaces, beside the weights, the caller's images and results. Batches are as
            large as they may be, and what is too large alone is computed in tiles, to the same result.

    Raises:
        ValueError: there is no head.
        TypeError: a layer that the engine has not, or that does something that is not known, or `preprocessing` is no
            Preprocessing; the text names it.
    """

    def __init__(self, model: VGG, preprocessing: Preprocessing | None = None, memory: int = MEMORY) -> None:
        network = graph.whole(model)
        if network.head is None:
            raise ValueError("model must have a head, got one without FC layers")
        self._preprocessing = preprocessing_of(model, preprocessing)
        self._memory = check_whole(memory, "memory", 0)
        self._trunk = Trunk(network, memory * _TRUNK // 8)
        self._head = Head(network.head, memory * _HEAD // 8)
        self._device = network.device

    # ---- the protocols -----------------------------------------------------------------------------------------------

    def dense(
        self, images: Images, scales: Sequence[int] | None = SCALES, *, flip: bool = True, pool: str = "mean"
    ) -> Tensor:
        """See :func:`vggfast.evaluate.dense`."""
        if pool not in ("mean", "sum"):
            raise ValueError(f"pool must be 'mean' or 'sum', got {pool!r}")
        return self._posteriors(images, scales, [lambda picture: whole(picture, flip)], pool)

    def multi_crop(
        self,
        images: Images,
        scales: Sequence[int] | None = SCALES,
        *,
        grid: int = 5,
        flip: bool = True,
        crop: int | None = None,
    ) -> Tensor:
        """See :func:`vggfast.evaluate.multi_crop`."""
        side = self._side(scales, grid, crop)
        return self._posteriors(images, scales, [lambda picture: crops(picture, grid, side, flip)])

    def posteriors(
        self, images: Images, protocol: str, scales: Sequence[int] | None = SCALES, *, flip: bool = True
    ) -> Tensor:
        """See :func:`vggfast.evaluate.posteriors`."""
        if protocol not in PROTOCOLS:
            raise ValueError(f"protocol must be one of {', '.join(map(repr, PROTOCOLS))}, got {protocol!r}")
        if protocol == "single" and scales is not None and len(scales) != 1:
            raise ValueError(f"scales must be one scale for the protocol 'single', got {list(scales)}")
        if protocol == "multi-crop":
            return self.multi_crop(images, scales, flip=flip)
        if protocol != "both":
            return self.dense(images, scales, flip=flip)
        side = self._side(scales, 5, None)
        return self._posteriors(
            images, scales, [lambda picture: whole(picture, flip), lambda picture: crops(picture, 5, side, flip)]
        )

    @torch.no_grad()
    def score_maps(self, images: Images, scale: int | None, *, flip: bool = True) -> list[ScoreMap]:
        """See :func:`vggfast.evaluate.score_maps`."""
        self._check(images, None if scale is None else [scale])
        maps: list[ScoreMap] = []

        def sinks() -> Iterator[Sink]:
            for picture in pictures(images, None if scale is None else [scale], self._preprocessing):
                self._check_size(picture, picture.size)
                places = self._head.places(*(extent // self._trunk.stride for extent in picture.size))
                scores = torch.zeros((self._head.classes, *places), dtype=torch.float32, device="cpu")
                maps.append(ScoreMap(scores, picture.size, self._trunk.stride, self._least))
                yield _MapSink(whole(picture, flip), scores)

        self._run(sinks())
        return maps

    # ---- how -------------------------------------------------------------------------------------------------------

    @property
    def _least(self) -> int:
        """Pixels along an axis of which the head sees one place."""
        return self._trunk.stride * self._head.size

    def _side(self, scales: Sequence[int] | None, grid: int, crop: int | None) -> int:
        """Of a crop."""
        check_whole(grid, "grid", 1)
        _check_whole_scales(scales)
        side = self._least if crop is None else check_whole(crop, "crop", 0)
        if side < self._least or (scales and side > min(scales)):
            allowed = f"{self._least} to {min(scales)}, the smallest of scales" if scales else f"at least {self._least}"
            raise ValueError(f"crop must be {allowed}, got {side}")
        return side

    def _check(self, images: Images, scales: Sequence[int] | None) -> None:
        check(images, self._preprocessing, self._trunk.in_channels)
        _check_whole_scales(scales)
        if scales is not None and (len(scales) == 0 or min(scales) < self._least):
            raise ValueError(f"scales must be one or more of at least {self._least}, got {list(scales)}")

    @torch.no_grad()
    def _posteriors(
        self,
        images: Images,
        scales: Sequence[int] | None,
        protocols: Sequence[Callable[[Picture], list[View]]],
        pool: str = "mean",
    ) -> Tensor:
        """Averaged over the scales and the protocols, each of which says what views of a picture it takes."""
        self._check(images, scales)
        result = torch.zeros((len(images), self._head.classes), dtype=torch.float32, device="cpu")
        weight = 1 / (len(protocols) * (1 if scales is None else len(scales)))
        self._run(
            _PosteriorSink(views_of(picture), self._head.classes, self._device, pool, result[picture.image], weight)
            for picture in pictures(images, scales, self._preprocessing)
            for views_of in protocols
        )
        return result

    def _run(self, sinks: Iterable[Sink]) -> None:
        """Computes the scores of all views of all sinks, and finishes these."""
        waiting, most = 0, self._memory * _WAITING // 8
        group: list[Sink] = []
        for sink in sinks:
            held = self._check_memory(sink.views[0], len(sink.views))
            if group and waiting + held > most:
                self._run_group(group)
                group, waiting = [], 0
            group.append(sink)
            waiting += held
        self._run_group(group)

    def _run_group(self, sinks: Sequence[Sink]) -> None:
        owners = [(sink, number) for sink in sinks for number in range(len(sink.views))]
        for piece in self._head(self._trunk.maps([sink.views[number] for sink, number in owners])):
            sink, number = owners[piece.map]
            sink.take(number, piece)
        for sink in sinks:
            sink.finish()

    def _check_size(self, picture: Picture, size: tuple[int, int]) -> None:
        if min(size) < self._least:
            raise ValueError(
                f"images[{picture.image}] must have at least {self._least} pixels along each side, "
                f"got {picture.size[0]} x {picture.size[1]}"
            )

    def _check_memory(self, view: View, count: int) -> int:
        """Bytes that wait for the head while such views of a picture are computed.

        Raises:
            ValueError: the view is too small for the head, or the memory for the view; the text says so.
        """
        picture, size = view.picture, (view.height, view.width)
        self._check_size(picture, size)
        held = picture.pixels.nbytes + count * self._trunk.map_bytes(*size)
        shares = (self._trunk.least(*size), _TRUNK), (held, _WAITING), (self._head.least, _HEAD)
        least = max(-(-bytes_ * 8 // eighths) for bytes_, eighths in shares)
        if least > self._memory:
            raise ValueError(
                f"memory must be at least {least} bytes for images[{picture.image}], of "
                f"{picture.size[0]} x {picture.size[1]} pixels, got {self._memory}"
            )
        return held


def _check_whole_scales(scales: Sequence[int] | None) -> None:
    if scales is not None:
        check_sequence(scales, "scales")
        for scale in scales:
            check_whole(scale, "scales", 0)


@dataclass
class _PosteriorSink:
    """Adds `weight` times the posteriors of a picture to `row`."""

    views: list[View]
    classes: int
    device: torch.device
    pool: str
    row: Tensor
    weight: float

    def __post_init__(self) -> None:
        self._sums = torch.zeros((len(self.views), self.classes), dtype=torch.float64, device=self.device)
        self._places = 0

    def take(self, view: int, piece: Piece) -> None:
        height, width = piece.scores.shape[:2]
        self._sums[view] += ops.sum_pool(piece.scores.permute(2, 0, 1)[None], reduce="sum")[0]
        self._places += height * width

    def finish(self) -> None:
        scores = self._sums * len(self.views) / self._places if self.pool == "mean" else self._sums
        self.row += self.weight * ops.mean_posteriors(scores.float()[:, :, None, None], views=len(self.views))[0].cpu()


@dataclass
class _MapSink:
    """Adds the average of the views' scores to `scores`, the mirror image's mirrored back."""

    views: list[View]
    scores: Tensor

    def take(self, view: int, piece: Piece) -> None:
        top, left, scores = piece.top, piece.left, piece.scores.permute(2, 0, 1).cpu()
        width = scores.shape[2]
        if self.views[view].mirrored:
            left, scores = self.scores.shape[2] - left - width, scores.flip(2)
        room = self.scores[:, top : top + scores.shape[1], left : left + width]
        room += scores / len(self.views)

    def finish(self) -> None:
        """Nothing is left to do."""
