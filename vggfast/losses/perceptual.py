"""The distance between maps of a frozen network.

Source: Johnson, Alahi & Fei-Fei, Perceptual Losses for Real-Time Style Transfer and Super-Resolution, 2016.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from os import PathLike
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vggfast._checks import described
from vggfast.losses._base import LayerLoss, in_pieces, pieces


class _MeanAbsolute(torch.autograd.Function):
    """The mean of |a - b|, which keeps a byte a value for the backward. torch's keeps the difference, and passes over
    memory seven times instead of three."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        signs = torch.empty_like(a, dtype=torch.int8)
        total = a.new_zeros(())
        for x, y, sign in pieces(a, b, signs):
            difference = x - y
            total += torch.linalg.vector_norm(difference, 1)
            sign.copy_(difference.sign_())
        ctx.save_for_backward(signs)
        return total / a.numel()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        (signs,) = ctx.saved_tensors
        found = signs * (gradient / signs.numel())
        return found if ctx.needs_input_grad[0] else None, -found if ctx.needs_input_grad[1] else None


def mean_absolute(a: Tensor, b: Tensor) -> Tensor:
    """``F.l1_loss(a, b)``."""
    return _MeanAbsolute.apply(a, b) if a.numel() and in_pieces(a, b) else F.l1_loss(a, b)


CRITERIA: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"l1": mean_absolute, "l2": F.mse_loss}
_LAYERS = {"relu3_3": 1.0}


class Perceptual(LayerLoss):
    """The weighted sum over layers of a distance between two images' maps.

    Args:
        layers: weights by name of the layer: conv1_1, relu1_1, pool1 ... relu5_3, where a conv's map is that behind its
            batch norm; None is relu3_3.
        net: "vgg16" or "vgg16-conv", the published convolutions, which ``vggfast weights get vgg16-conv`` fetches; a
            file of ours; or a VGG or a slice of its features, ours or torchvision's, of which the loss takes a copy.
        criterion: "l1", the mean absolute difference of a layer; "l2", the mean squared one; or a function of two maps
            (N, C, h, w) that returns a scalar, a tensor without dimensions.
        normalize: images are RGB (or gray) in [0, 1], and are brought to what the network was trained on: to the
            model's `preprocessing`, or torchvision's for a whole network of torchvision (its features alone are a
            plain Sequential, which needs ``.preprocessing = vggfast.Preprocessing.torchvision()``). False: they are
            that already.
        check_range: raise an error where values are outside of [0, 1] by more than 0.5; on a GPU in the first call
            alone.

    Shapes: x and y (N, 3, H, W), N of either may be 1; the result is a scalar of float32, or of the loss' dtype if
    that is wider. Gradients flow to x, and to y where it requires them; the network has none.

    Raises:
        FileNotFoundError, ValueError, TypeError: an argument or an image that does not fit; the text names it.
    """

    def __init__(
        self,
        layers: Mapping[str, float] | None = None,
        net: str | PathLike[str] | nn.Module = "vgg16",
        criterion: str | Callable[[Tensor, Tensor], Tensor] = "l1",
        normalize: bool = True,
        check_range: bool = True,
    ) -> None:
        if isinstance(criterion, str) and criterion not in CRITERIA:
            raise ValueError(f"criterion must be 'l1', 'l2' or a function of two maps, got {criterion!r}")
        if not callable(criterion) and not isinstance(criterion, str):
            raise TypeError(f"criterion must be 'l1', 'l2' or a function of two maps, got {described(criterion)}")
        if isinstance(criterion, type):
            raise TypeError(
                f"criterion must be a function of two maps, got the class {criterion.__name__}: give an instance"
            )
        super().__init__(_LAYERS if layers is None else layers, net, normalize, check_range)
        self.criterion = criterion

    def summaries(self, x: Tensor, name: str) -> dict[str, Tensor]:
        return self.maps(x, name)

    def distance(self, ours: Tensor, theirs: Tensor) -> Tensor:
        if isinstance(self.criterion, str):
            return CRITERIA[self.criterion](ours, theirs)
        found = self.criterion(ours, theirs)
        if not isinstance(found, Tensor) or found.dim():
            raise TypeError(f"criterion must return a scalar tensor of two maps, as a mean is, got {described(found)}")
        return found
