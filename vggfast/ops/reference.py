"""What each op of :mod:`vggfast.ops` means, in plain torch: the same names and signatures, no kernels of ours."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, relu: bool = False, pool: bool = False) -> Tensor:
    y = F.conv2d(x, weight, bias, padding=1)
    y = F.relu(y) if relu else y
    return F.max_pool2d(y, 2) if pool else y


def conv1x1(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, relu: bool = False) -> Tensor:
    y = F.conv2d(x, weight, bias)
    return F.relu(y) if relu else y


def batch_norm(
    x: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    relu: bool = False,
    pool: bool = False,
) -> Tensor:
    y = F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
    y = F.relu(y) if relu else y
    return F.max_pool2d(y, 2) if pool else y


def max_pool2x2(x: Tensor, *, ceil_mode: bool = False) -> Tensor:
    return F.max_pool2d(x, 2, ceil_mode=ceil_mode)


def local_response_norm(x: Tensor, size: int = 5, alpha: float = 1e-4, beta: float = 0.75, k: float = 2.0) -> Tensor:
    return F.local_response_norm(x, size, alpha, beta, k)


def sum_pool(x: Tensor, *, reduce: str = "mean") -> Tensor:
    return x.mean((2, 3)) if reduce == "mean" else x.sum((2, 3))


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.linear(x, weight, bias)


def mean_posteriors(maps: Tensor, *, views: int = 1) -> Tensor:
    posteriors = maps.mean((2, 3)).softmax(1)
    return posteriors.reshape(views, -1, maps.shape[1]).mean(0)


def prepare_images(
    images: Tensor,
    size: int | tuple[int, int],
    *,
    corners: Tensor | None = None,
    flips: Tensor | None = None,
    shifts: Tensor | None = None,
    mean: Sequence[float] = (0.0, 0.0, 0.0),
    std: Sequence[float] = (1.0, 1.0, 1.0),
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    height, width = (size, size) if isinstance(size, int) else size
    crops = []
    for i, image in enumerate(images.to(torch.float64)):
        top, left = (0, 0) if corners is None else corners[i].tolist()
        rows = torch.arange(top, top + height, device=images.device).clamp(0, image.shape[0] - 1)
        columns = torch.arange(left, left + width, device=images.device).clamp(0, image.shape[1] - 1)
        crop = image[rows][:, columns]
        crop = crop.flip(1) if flips is not None and flips[i] else crop
        crop = crop if shifts is None else crop + shifts[i]
        crops.append((crop - crop.new_tensor(mean)) / crop.new_tensor(std))
    stacked = torch.stack(crops) if crops else images.new_empty((0, height, width, 3), dtype=torch.float64)
    return stacked.permute(0, 3, 1, 2).to(dtype)
