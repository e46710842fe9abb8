"""Input preparation: decoded pictures to what a network's first layer reads, in one pass."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from vggfast import _native
from vggfast._deprecated import renamed_argument
from vggfast.ops import _library as lib
from vggfast.ops._backends import OF_DEVICE, backend_of

_COLOURS = 3


def _check_images(images: Tensor) -> None:
    if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[3] != _COLOURS or 0 in images.shape[1:3]:
        raise ValueError(
            "images must be torch.uint8 of shape (N, H, W, 3) with H and W of at least 1, "
            f"got {images.dtype} of shape {tuple(images.shape)}"
        )
    if images.device.type not in (*OF_DEVICE, "meta"):
        raise ValueError(f"images must be on a device with kernels, one of {', '.join(OF_DEVICE)}, got {images.device}")


def _check_option(t: Tensor | None, name: str, images: Tensor, dtype: torch.dtype, *per_image: int) -> None:
    if t is None:
        return
    expected = (images.shape[0], *per_image)
    if t.dtype != dtype or tuple(t.shape) != expected or t.device != images.device:
        raise ValueError(
            f"{name} must be {dtype} of shape {expected} on {images.device}, "
            f"got {t.dtype} of shape {tuple(t.shape)} on {t.device}"
        )


def _output(images, corners, flips, shifts, height, width, mean, std, dtype) -> Tensor:
    _check_images(images)
    _check_option(corners, "corners", images, torch.int32, 2)
    _check_option(flips, "flips", images, torch.uint8)
    _check_option(shifts, "shifts", images, torch.float32, _COLOURS)
    if height < 1 or width < 1:
        raise ValueError(f"size must be at least 1 x 1, got {height} x {width}")
    shape = (images.shape[0], _COLOURS, height, width)
    if images.device.type in OF_DEVICE and type(images) is Tensor:
        return backend_of(images).empty(images, shape, dtype, torch.channels_last)
    return torch.empty(shape, dtype=dtype, device=images.device, memory_format=torch.channels_last)


def _run(images, corners, flips, shifts, height, width, mean, std, dtype):
    backend = backend_of(images)
    native = dtype if dtype in backend.dtypes else torch.float32
    y = _output(images, corners, flips, shifts, height, width, mean, std, native)
    options = [None if t is None else t.contiguous() for t in (corners, flips, shifts)]
    backend.run("prepare_images", images.contiguous(), *options, list(mean), list(std), y)
    return y.to(dtype)


def _setup(ctx, inputs, output):
    raise RuntimeError("shifts requires a gradient: prepare_images has none")


def _vmap(info, in_dims, *args):
    return lib.loop_over_examples(prepare_op, info, in_dims, args)


prepare_op = lib.register(
    "prepare_images(Tensor images, Tensor? corners, Tensor? flips, Tensor? shifts, SymInt height, SymInt width, "
    "float[] mean, float[] std, ScalarType dtype) -> Tensor",
    run=_run,
    fake=_output,
    vmap=_vmap,
    setup_context=_setup,
    backward=_setup,
    widens=False,
)


def _check_colours(mean: Sequence[float], std: Sequence[float]) -> None:
    for name, values in (("mean", mean), ("std", std)):
        if len(values) != _COLOURS:
            raise ValueError(f"{name} must have 3 values, got {len(values)}")


@renamed_argument("deviation", "std")
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
    """Crops, mirrors, shifts the colours of, and normalises decoded pictures: (pixel + shift - mean) / std.

    Args:
        images: uint8 (N, H, W, 3).
        size: of the crops: one number, or height and width.
        corners: int32 (N, 2), top row and left column of each crop (default: 0, 0). A crop that leaves its picture
            repeats the edge's pixels.
        flips: bool or uint8 (N,), which crops are mirrored left to right.
        shifts: float32 (N, 3), added to each pixel, in units of 0 to 255.
        mean, std: of the channels, in units of 0 to 255.
        dtype: of the result, a floating one.

    Returns:
        (N, 3, height, width), channels_last.

    Raises:
        ValueError, TypeError: a shape, dtype or device that does not fit; the text names it.

    Source: Simonyan & Zisserman, section 3.1.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if dtype not in lib.DTYPES:
        raise TypeError(f"dtype must be one of {', '.join(map(str, lib.DTYPES))}, got {dtype}")
    _check_colours(mean, std)
    flips = flips.view(torch.uint8) if flips is not None and flips.dtype == torch.bool else flips
    return prepare_op(
        images, corners, flips, shifts, height, width, list(map(float, mean)), list(map(float, std)), dtype
    )


@renamed_argument("deviation", "std")
def crop_images(
    pictures: Sequence[np.ndarray],
    size: int | tuple[int, int],
    *,
    sizes: Tensor | None = None,
    corners: Tensor | None = None,
    flips: Tensor | None = None,
    shifts: Tensor | None = None,
    mean: Sequence[float] = (0.0, 0.0, 0.0),
    std: Sequence[float] = (1.0, 1.0, 1.0),
    dtype: torch.dtype = torch.float32,
    out: Tensor | None = None,
) -> Tensor:
    """:func:`prepare_images` for pictures of differing sizes, each rescaled first; on the CPU, in one native call.

    A picture whose size changes is filtered as by PIL's ``Image.resize`` with ``BILINEAR``, in float32: a triangle as
    wide as an output pixel, at least an input pixel, to each side. Only what the crop needs is computed. A picture
    whose size stays is not filtered. Results are bit-equal for any number of threads (torch's) and any other pictures.

    Args:
        pictures: N uint8 arrays (H, W, 3), contiguous; parts of mapped files too.
        size: of the crops: one number, or height and width.
        sizes: int32 (N, 2), height and width of each whole picture once rescaled (default: as they are).
        corners: int32 (N, 2), top row and left column of each crop in its rescaled picture (default: 0, 0); it must
            lie within.
        flips: bool or uint8 (N,), which crops are mirrored left to right.
        shifts: float32 (N, 3), added to each pixel, in units of 0 to 255.
        mean, std: of the channels, in units of 0 to 255.
        dtype: of the result, float32 or bfloat16.
        out: (N, 3, height, width) of that dtype, channels_last, to be written to; allocated when None.

    Returns:
        (N, 3, height, width), channels_last.

    Raises:
        ValueError, TypeError: a shape, dtype or device that does not fit, or a crop that leaves its picture; the text
            names it.

    Source: Simonyan & Zisserman, section 3.1.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if height < 1 or width < 1:
        raise ValueError(f"size must be at least 1 x 1, got {height} x {width}")
    if dtype not in (torch.float32, torch.bfloat16):
        raise TypeError(f"dtype must be torch.float32 or torch.bfloat16, got {dtype}")
    _check_colours(mean, std)
    shape = (len(pictures), _COLOURS, height, width)
    y = _native.empty(shape, dtype, torch.channels_last) if out is None else out
    if tuple(y.shape) != shape or y.dtype != dtype:
        raise ValueError(f"out must be {dtype} of shape {shape}, got {y.dtype} of shape {tuple(y.shape)}")
    flips = flips.view(torch.uint8) if flips is not None and flips.dtype == torch.bool else flips
    core = _native.load()
    options = [None if t is None else _native.view(t) for t in (sizes, corners, flips, shifts)]
    core.cpu.crop_images(
        pictures, *options, list(map(float, mean)), list(map(float, std)), _native.view(y),
        core.Context(_native.threads()),
    )  # fmt: skip
    return y
