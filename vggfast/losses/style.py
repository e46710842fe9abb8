"""The distance between Gram matrices of maps, and style transfer's sum of it and a distance between maps.

Sources: Gatys, Ecker & Bethge, Image Style Transfer Using Convolutional Neural Networks, 2016; Johnson, Alahi &
Fei-Fei, Perceptual Losses for Real-Time Style Transfer and Super-Resolution, 2016.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from os import PathLike

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vggfast._checks import check_number
from vggfast.losses._base import FeatureLoss, LayerLoss, check_layers, in_full, pair
from vggfast.ops._library import wide

STYLE_LAYERS = {f"relu{stage}_1": 0.2 for stage in range(1, 6)}  # as Gatys et al.
CONTENT_LAYERS = {"relu4_2": 1.0}


def gram_matrix(maps: Tensor) -> Tensor:
    """(N, C, C) of maps (N, C, H, W): the products of two channels, summed over places, divided by C * H * W.

    Of at least 32 bits. Source: Johnson, Alahi & Fei-Fei, section 3.2.
    """
    n, c, h, w = maps.shape
    with in_full(maps):
        rows = wide(maps).permute(0, 2, 3, 1).reshape(n, h * w, c)  # as maps lie in channels_last
        return rows.transpose(1, 2) @ rows / (c * h * w)


def _grams(maps: Mapping[str, Tensor], layers: Iterable[str]) -> dict[str, Tensor]:
    return {layer: gram_matrix(maps[layer]) for layer in layers}


def _variation(x: Tensor) -> Tensor:
    """The mean absolute difference of neighbours in a column, and that in a row; 0 where an image is one pixel high or
    wide, and none has a neighbour."""
    sides = [dim for dim in (2, 3) if x.shape[dim] > 1]
    return sum((x.diff(dim=dim).abs().mean() for dim in sides), start=x.new_zeros(()))


def _distance(ours: Tensor, theirs: Tensor) -> Tensor:
    """The squared Frobenius norm of the difference of Gram matrices, averaged over images."""
    return (ours - theirs).square().sum((1, 2)).mean()


class Style(LayerLoss):
    """The weighted sum over layers of the squared distance between two images' Gram matrices, averaged over images.

    A layer's is the squared Frobenius norm of the difference of :func:`gram_matrix`: Johnson et al.'s style loss, and
    four times Gatys et al.'s E where both images have one size.

    Args:
        layers: weights by name of the layer; None is relu1_1, relu2_1, ... relu5_1, 0.2 each.
        net, normalize, check_range: as of :class:`vggfast.losses.Perceptual`.

    Shapes: x (N, 3, H, W) and y (N, 3, any sizes), N of either may be 1; the result is a scalar of float32, or of the
    loss' dtype if that is wider. Gradients flow to x, and to y where it requires them.

    Raises:
        FileNotFoundError, ValueError, TypeError: an argument or an image that does not fit; the text names it.
    """

    same_size = False

    def __init__(
        self,
        layers: Mapping[str, float] | None = None,
        net: str | PathLike[str] | nn.Module = "vgg16",
        normalize: bool = True,
        check_range: bool = True,
    ) -> None:
        super().__init__(STYLE_LAYERS if layers is None else layers, net, normalize, check_range)

    def summaries(self, x: Tensor, name: str) -> dict[str, Tensor]:
        return _grams(self.maps(x, name), self.layers)

    def distance(self, ours: Tensor, theirs: Tensor) -> Tensor:
        return _distance(ours, theirs)


class ContentStyle(FeatureLoss):
    """Style transfer's loss: an image has the content of one image and the style of another.

    content_weight * content + style_weight * style + tv_weight * variation: the content term is the sum over its
    layers of the mean squared difference of maps, the style term that of :class:`Style`, and the variation the mean
    absolute difference of neighbouring pixels, in a column and in a row.

    Args:
        content_layers, style_layers: weights by name of the layer; None is relu4_2, and Style's.
        content_weight, style_weight, tv_weight: of the three terms.
        net, normalize, check_range: as of :class:`vggfast.losses.Perceptual`.

    Raises:
        FileNotFoundError, ValueError, TypeError: an argument or an image that does not fit; the text names it.
    """

    def __init__(
        self,
        content_layers: Mapping[str, float] | None = None,
        style_layers: Mapping[str, float] | None = None,
        net: str | PathLike[str] | nn.Module = "vgg16",
        *,
        content_weight: float = 1.0,
        style_weight: float = 1.0,
        tv_weight: float = 0.0,
        normalize: bool = True,
        check_range: bool = True,
    ) -> None:
        content = check_layers(CONTENT_LAYERS if content_layers is None else content_layers, "content_layers")
        style = check_layers(STYLE_LAYERS if style_layers is None else style_layers, "style_layers")
        weights = {"content_weight": content_weight, "style_weight": style_weight, "tv_weight": tv_weight}
        for name, weight in weights.items():
            if not 0 <= check_number(weight, name) < math.inf:
                raise ValueError(f"{name} must be at least 0 and finite, got {weight}")
        super().__init__(net, {**content, **style}, normalize, check_range)
        self.content_layers, self.style_layers = content, style
        self.content_weight, self.style_weight, self.tv_weight = weights.values()

    def target(self, content: Tensor, style: Tensor) -> ContentStyle:
        """Keeps the maps of `content` and the Gram matrices of `style`, until other targets or other weights come.

        Args:
            content: (N, 3, H, W), as the images to come.
            style: (N, 3, any sizes). N of either may be 1.

        Returns:
            The loss.
        """
        self._keep("content", content, self.maps)
        self._keep("style", style, lambda x, name: _grams(self.maps(x, name), self.style_layers))
        return self

    def terms(self, x: Tensor) -> dict[str, Tensor]:
        """Scalars "content", "style" and "variation" of x, without their weights."""
        maps = self.maps(x, "x")
        content, style = self._of_target("content", x), self._of_target("style", x, same_size=False)
        grams = _grams(maps, self.style_layers)
        with in_full(x):
            contents = [w * F.mse_loss(*pair(maps[name], content[name])) for name, w in self.content_layers.items()]
            styles = [w * _distance(*pair(grams[name], style[name])) for name, w in self.style_layers.items()]
            variation = _variation(wide(x.to(self.net.weight.dtype)))
            return {"content": torch.stack(contents).sum(), "style": torch.stack(styles).sum(), "variation": variation}

    def forward(self, x: Tensor) -> Tensor:
        """The weighted sum of the terms."""
        terms = self.terms(x)
        content, style = self.content_weight * terms["content"], self.style_weight * terms["style"]
        return content + style + self.tv_weight * terms["variation"]
