"""What each op of :mod:`vggfast.ops` means, in plain torch: the same names and signatures, no kernels of ours."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, relu: bool = False, pool: bool = False) -> Tensor:
    y = F.conv2d(x, weight, bias, padding=1)
    y = F.relu(y) if relu else y
    return F.max_pool2d(y, 2) if pool else y


def conv1x1(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, relu: bool = False) -> Tensor:
    y = F.conv2d(x, weight, bias)
    return F.relu(y) if relu else y


def max_pool2x2(x: Tensor, *, ceil_mode: bool = False) -> Tensor:
    return F.max_pool2d(x, 2, ceil_mode=ceil_mode)


def local_response_norm(x: Tensor, size: int = 5, alpha: float = 1e-4, beta: float = 0.75, k: float = 2.0) -> Tensor:
    return F.local_response_norm(x, size, alpha, beta, k)


def sum_pool(x: Tensor, *, reduce: str = "mean") -> Tensor:
    return x.mean((2, 3)) if reduce == "mean" else x.sum((2, 3))


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.linear(x, weight, bias)
