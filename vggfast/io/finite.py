"""Weights with which no network gives numbers: infinities, NaN, negative variances."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

_VARIANCE, _EPS = "running_var", 1e-5


def check_finite(path: object, tensors: Mapping[str, Tensor], names: Mapping[str, str] | None = None) -> None:
    """That weights are finite, and variances such that their roots with the epsilon of batch norm are.

    Args:
        path: the file, or what else they are from.
        tensors: by our names.
        names: the file's own by ours, where they differ.

    Raises:
        ValueError: they are not; the text names file and tensor, and how many values are not.
    """
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            continue
        said = name if names is None else names[name]
        values = tensor.float() if tensor.element_size() == 1 else tensor
        # A sum is finite only where all values are; it is fast, and may overflow.
        wide = torch.float32 if values.element_size() < 8 else torch.float64
        if not torch.isfinite(values.sum(dtype=wide)) and (odd := int((~torch.isfinite(values)).sum())):
            raise ValueError(_said(path, said, odd, tensor.numel(), "not finite"))
        if name.endswith(_VARIANCE) and (odd := int((values <= -_EPS).sum())):
            raise ValueError(_said(path, said, odd, tensor.numel(), "negative, as no variance is"))


def _said(path: object, name: str, odd: int, number: int, what: str) -> str:
    return (
        f"{path}: {odd} of the {number} values of {name} {'is' if odd == 1 else 'are'} {what}; "
        "allow_non_finite=True (--allow-non-finite of vggfast convert) takes them"
    )
