"""ONNX's QuantizeLinear and DequantizeLinear: their settings, and what they give of constants.

What they give of a constant is computed where a layer reads it, so that no graph can fill the memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from vggfast.quantisation import Rounding, check_scale

OPERATORS = ("QuantizeLinear", "DequantizeLinear")
# What else computes in 8 bits.
OTHERS = (
    "QLinearConv", "QLinearMatMul", "QGemm", "QLinearAdd", "QLinearGlobalAveragePool", "QLinearAveragePool",
    "QLinearSoftmax", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear", "DynamicQuantizeMatMul",
    "MatMulIntegerToFloat",
)  # fmt: skip
ALLOWED = "a quantised network must have QuantizeLinear and DequantizeLinear (QDQ) with constant scales"
_BYTES = (np.uint8, np.int8)


@dataclass(frozen=True, eq=False)
class Parameters:
    """Of a node: steps of `scale`, and what stands for 0.

    Attributes:
        node: what errors call it, with its operator.
        scale: a number, or one for each place of `axis`.
        zero_point: as many, of the type of the whole numbers; None for 0.
        axis: of the values.
        kind: the type of the whole numbers where the zero point does not say it.
    """

    node: str
    scale: np.ndarray
    zero_point: np.ndarray | None
    axis: int
    kind: np.dtype | None

    def __post_init__(self) -> None:
        if self.scale.dtype != np.float32 or not self.scale.size or self.scale.ndim > 1:
            raise ValueError(
                f"{self.node}, must have scales of float32, one or a row, got {self.scale.dtype} of shape "
                f"{self.scale.shape}"
            )
        for value in (self.scale.min(), self.scale.max()):
            check_scale(float(value), f"the scale of {self.node},")
        if self.zero_point is not None and self.zero_point.size != self.scale.size:
            raise ValueError(
                f"{self.node}, must have as many zero points as scales, {self.scale.size}, got {self.zero_point.size}"
            )

    def rounding(self) -> tuple[str, Rounding]:
        """That of an activation, and what it is in the file's terms.

        Raises:
            ValueError: it has several scales, or is to whole numbers of other types than of 8 bits.
        """
        kind = self.type()
        if kind not in _BYTES:
            raise ValueError(f"{self.node}, must round to uint8 or int8, got {kind}")
        if self.scale.size != 1:
            raise ValueError(f"{self.node}, must have one scale for all that a layer reads, got {self.scale.size}")
        zero_point = 0 if self.zero_point is None else int(self.zero_point.item())
        said = f"{kind} with zero point {zero_point}"
        return said, Rounding(float(self.scale.item()), zero_point - int(np.iinfo(kind).min))

    def type(self) -> np.dtype:
        if self.zero_point is not None:
            return self.zero_point.dtype
        return self.kind or np.dtype(np.uint8)

    def along(self, values: np.ndarray, each: np.ndarray) -> np.ndarray:
        """Scales or zero points, spread over values."""
        if each.size == 1:
            return each.reshape(())
        if not -values.ndim <= self.axis < values.ndim:
            raise ValueError(f"{self.node}, must have one of the {values.ndim} axes, got axis {self.axis}")
        axis = self.axis % values.ndim
        if values.shape[axis] != each.size:
            raise ValueError(
                f"{self.node}, must have {values.shape[axis]} scales along axis {self.axis}, got {each.size}"
            )
        return each.reshape([-1 if other == axis else 1 for other in range(values.ndim)])


class Lazy:
    """A constant that is computed when it is read."""

    def array(self) -> np.ndarray:
        raise NotImplementedError

    def moved(self, operator: str, settings: dict[str, Any]) -> Lazy:
        """Behind an Identity or a Transpose. Raises ValueError for what else may be done to constants."""
        raise ValueError


@dataclass(frozen=True, eq=False)
class Whole(Lazy):
    """Whole numbers of 8 bits that a QuantizeLinear gives."""

    read: Callable[[], np.ndarray]
    parameters: Parameters

    def array(self) -> np.ndarray:
        values, parameters = self.read(), self.parameters
        kind = parameters.type()
        if kind not in _BYTES or values.dtype != np.float32:
            raise ValueError(f"{parameters.node}, must round float32 to uint8 or int8, got {values.dtype} to {kind}")
        limits = np.iinfo(kind)
        with np.errstate(all="ignore"):
            whole = np.rint(values / parameters.along(values, parameters.scale))
        if parameters.zero_point is not None:
            whole += parameters.along(values, parameters.zero_point)
        return np.nan_to_num(whole).clip(limits.min, limits.max).astype(kind)


@dataclass(frozen=True, eq=False)
class Dequantised(Lazy):
    """What a DequantizeLinear gives: (whole number - zero point) * scale.

    Attributes:
        perm: the axes' order; None for that of the whole numbers, an empty one for its reverse.
    """

    read: Callable[[], np.ndarray]
    parameters: Parameters
    perm: tuple[int, ...] | None = None

    def array(self) -> np.ndarray:
        parameters, whole = self.parameters, self._less_zero_point()
        with np.errstate(over="ignore"):
            values = whole.astype(np.float32) * parameters.along(whole, parameters.scale)
        return values.transpose(self._axes(values.ndim))

    def _axes(self, count: int) -> tuple[int, ...]:
        """Of the whole numbers, in the order in which they lie here."""
        if self.perm is None:
            return tuple(range(count))
        axes = self.perm or tuple(range(count))[::-1]
        if sorted(axes) != list(range(count)):
            raise ValueError(
                f"what {self.parameters.node}, gives, must be transposed by {count} axes, got {list(axes)}"
            )
        return axes

    def _less_zero_point(self) -> np.ndarray:
        whole, parameters = self.read(), self.parameters
        if whole.dtype not in (*_BYTES, np.int32):
            raise ValueError(f"{parameters.node}, must read int8, uint8 or, as a bias, int32, got {whole.dtype}")
        zero_point = parameters.zero_point
        if zero_point is None or not zero_point.any():
            return whole
        if zero_point.dtype != whole.dtype:
            raise ValueError(f"{parameters.node}, must have zero points of {whole.dtype}, got {zero_point.dtype}")
        return whole.astype(np.int64) - parameters.along(whole, zero_point.astype(np.int64))

    def moved(self, operator: str, settings: dict[str, Any]) -> Lazy:
        if operator == "Identity":
            return self
        if operator != "Transpose" or self.perm is not None:
            raise ValueError
        return replace(self, perm=tuple(settings["perm"] or ()))

    def scales(self, outputs: int) -> np.ndarray | None:
        """(outputs,), where its values are -128 to 127 times one scale, or one for each place of this axis, or None."""
        whole, scale = self._less_zero_point(), self.parameters.scale
        axes = self._axes(whole.ndim)
        if whole.dtype == np.int32 or whole.min() < -128 or whole.max() > 127:
            return None
        if scale.size == 1:
            return np.repeat(scale.reshape(1), whole.shape[axes[outputs]])
        return scale if self.parameters.axis % whole.ndim == axes[outputs] else None


def fold(operator: str, first: Any, read: Callable[[], np.ndarray], parameters: Parameters) -> Lazy:
    """What an operator gives of a constant.

    Args:
        first: the constant, as the graph keeps it.
        read: what reads it.
    """
    if isinstance(first, Dequantised if operator == "DequantizeLinear" else Lazy):
        raise ValueError(f"{parameters.node}, must read a tensor of the file")
    return (Dequantised if operator == "DequantizeLinear" else Whole)(read, parameters)
