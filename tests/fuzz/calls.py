"""Calls of the ops that are right, of any shapes and options."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor

Random = random.Random
EXTENTS = (1, 1, 2, 2, 3, 4, 5, 7, 8, 9, 16, 17)


def draw(random: Random, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(random.getrandbits(32))
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def _dtype(random: Random) -> torch.dtype:
    return random.choice([torch.float32, torch.float32, torch.float64, torch.bfloat16, torch.float16])


def image_shape(random: Random, least: int = 1) -> tuple[int, ...]:
    n, c = random.choice([0, 1, 1, 2, 3]), random.choice(EXTENTS)
    return n, c, max(random.choice(EXTENTS), least), max(random.choice(EXTENTS), least)


Call = tuple[str, dict[str, Tensor], dict[str, Any]]  # of the op of that name: tensors, and other arguments


def _conv(random: Random) -> Call:
    pool = random.random() < 0.4
    x = image_shape(random, 2 if pool else 1)
    dtype, cout, kernel = _dtype(random), random.choice(EXTENTS), random.choice([3, 3, 1])
    tensors = {"x": draw(random, x, dtype), "weight": draw(random, (cout, x[1], kernel, kernel), dtype)}
    if random.random() < 0.7:
        tensors["bias"] = draw(random, (cout,), dtype)
    options = {"relu": random.random() < 0.5} | ({"pool": pool} if kernel == 3 else {})
    return f"conv{kernel}x{kernel}", tensors, options


def _pool(random: Random) -> Call:
    up = random.random() < 0.5
    return "max_pool2x2", {"x": draw(random, image_shape(random, 1 if up else 2), _dtype(random))}, {"ceil_mode": up}


def _lrn(random: Random) -> Call:
    options = {"size": random.choice([1, 2, 3, 5, 9, 30]), "alpha": random.choice([1e-4, 0.5, 2.0]),
               "beta": random.choice([0.75, 0.5, 1.0, 1.3]), "k": random.choice([1.0, 2.0])}  # fmt: skip
    return "local_response_norm", {"x": draw(random, image_shape(random), _dtype(random))}, options


def _sum(random: Random) -> Call:
    x = draw(random, image_shape(random), _dtype(random))
    return "sum_pool", {"x": x}, {"reduce": random.choice(["sum", "mean"])}


def _posteriors(random: Random) -> Call:
    views = random.choice([1, 2, 3])
    n, *rest = image_shape(random)
    return "mean_posteriors", {"maps": draw(random, (n * views, *rest), _dtype(random))}, {"views": views}


def _linear(random: Random) -> Call:
    large = random.random() < 0.1  # enough for our own kernels
    n, i = random.choice([0, 1, 2, 5, 16, 17]), 2048 if large else random.choice(EXTENTS)
    o, dtype = 1025 if large else random.choice(EXTENTS), torch.float32 if large else _dtype(random)
    tensors = {"x": draw(random, (n, i), dtype), "weight": draw(random, (o, i), dtype)}
    if random.random() < 0.7:
        tensors["bias"] = draw(random, (o,), dtype)
    return "linear", tensors, {}


def _images(random: Random) -> Call:
    n, h, w = random.choice([0, 1, 2, 3]), random.choice(EXTENTS), random.choice(EXTENTS)
    generator = torch.Generator().manual_seed(random.getrandbits(32))

    def whole(low: int, high: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.randint(low, high, shape, generator=generator).to(dtype)

    tensors = {"images": whole(0, 256, (n, h, w, 3), torch.uint8)}
    if random.random() < 0.6:
        tensors["corners"] = whole(*random.choice([(-3, 9), (-(2**31), 2**31 - 1)]), (n, 2), torch.int32)
    if random.random() < 0.6:
        tensors["flips"] = whole(0, 2, (n,), random.choice([torch.bool, torch.uint8]))
    if random.random() < 0.6:
        tensors["shifts"] = draw(random, (n, 3))
    size = random.choice([1, 3, (2, 5), (9, 1)])
    options = {"size": size, "mean": (1.0, 20.0, 300.0), "std": (1.0, 0.5, -2.0), "dtype": _dtype(random)}
    return "prepare_images", tensors, options


CALLS = (_conv, _conv, _conv, _pool, _lrn, _sum, _posteriors, _linear, _images)
