"""Layers as data: what a network computes in evaluation mode, the same for every back end."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Conv:
    """3x3 or 1x1, stride 1, same padding. Batch norm is folded into it."""

    weight: Tensor  # (Cout, Cin, K, K), of any strides
    bias: Tensor | None


@dataclass(frozen=True)
class BatchNorm:
    """In evaluation mode. :func:`vggfast.graph.fold` makes it part of the convolution before it."""

    mean: Tensor
    var: Tensor
    weight: Tensor | None
    bias: Tensor | None
    eps: float


@dataclass(frozen=True)
class WindowConv:
    """A square convolution without padding, stride 1: an FC layer on each window of a map."""

    weight: Tensor  # (outputs, C, K, K)
    bias: Tensor | None


@dataclass(frozen=True)
class Scaled:
    """Values in units of `scale`."""

    values: Tensor | None
    scale: float


@dataclass(frozen=True)
class ScaledConv(Conv):
    """On a back end that can: one whose input may be e4m3, or whose output may leave as e4m3, in units of a scale."""

    wide_bias: Tensor | None = None  # float32
    reading: Scaled | None = None  # for an input of e4m3: the weight in e4m3, and what products of the two count
    leaving: Scaled | None = None  # for an output of e4m3: the bias, float32, and what the output counts


@dataclass(frozen=True)
class Relu:
    pass


@dataclass(frozen=True)
class MaxPool:
    """2x2, stride 2."""

    ceil_mode: bool


@dataclass(frozen=True)
class Lrn:
    size: int
    alpha: float
    beta: float
    k: float


@dataclass(frozen=True)
class Flatten:
    """(N, C, H, W) to rows (N, C * size * size) of its average over a size x size grid, in (C, row, column) order."""

    size: int
    by_pixel: bool = False  # a back end's own order: (row, column, C), as the rows lie in NHWC


@dataclass(frozen=True)
class Windows:
    """To rows, one for each place of a size x size window: (N * places, C * size * size), places in raster order."""

    size: int
    by_pixel: bool = False  # as Flatten's


@dataclass(frozen=True)
class Linear:
    weight: Tensor  # (outputs, inputs)
    bias: Tensor | None


@dataclass(frozen=True)
class Quantised:
    """A convolution or FC layer of 8 bits. Its input x, at least 0, lies as whole numbers min(round(x / source), 255),
    ties to even. Its output is unit * (their int32 sum of products with the weight) + bias, float32."""

    weight: Tensor  # int8, contiguous
    bias: Tensor | None  # float32
    unit: Tensor  # (outputs,), float32: what a product counts
    source: float  # what the input counts, a float32


@dataclass(frozen=True)
class QuantisedConv(Quantised):
    """See :class:`Conv`."""


@dataclass(frozen=True)
class QuantisedLinear(Quantised):
    """See :class:`Linear`."""


@dataclass(frozen=True)
class RowMean:
    """Rows (N * places, C) to their average over the places, (N, C)."""


@dataclass(frozen=True)
class AveragePool:
    """Of maps to size x size places."""

    size: int


@dataclass(frozen=True)
class Rows:
    """(N, ...) to rows (N, values)."""


@dataclass(frozen=True)
class Elementwise:
    """Another function of each value than ReLU. No engine has it."""


Layer = Conv | Relu | MaxPool | Lrn | Flatten | Windows | Linear | RowMean
# What a tree of modules has beside them; None where a module does nothing in evaluation mode.
Found = Layer | BatchNorm | WindowConv | AveragePool | Rows | Elementwise | None
