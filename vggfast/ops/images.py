"""Input preparation: decoded pictures to what a network's first layer reads, in one pass."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from vggfast import _native
from vggfast._checks import check_memory, check_tensors, check_whole, described, is_recorded
from vggfast._deprecated import renamed_argument
from vggfast.ops import _library as lib
from vggfast.ops._backends import OF_DEVICE, backend_of

_COLOURS = 3
_OPTIONS = ("sizes", "corners", "flips", "shifts", "out")
_CPU = torch.device("cpu")
_MOST_PIXELS = 1 << 24  # of a side, as csrc/cpu/ops/crops.cpp says
_MOST_COLOUR = 1e30  # so that sums and quotients stay finite in float32


def _check_images(images: Tensor) -> None:
    if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[3] != _COLOURS or 0 in images.shape[1:3]:
        raise ValueError(
            "images must be torch.uint8 of shape (N, H, W, 3) with H and W of at least 1, "
            f"got {images.dtype} of shape {tuple(images.shape)}"
        )
    if images.device.type not in (*OF_DEVICE, "meta"):
        raise ValueError(f"images must be on a device with kernels, one of {', '.join(OF_DEVICE)}, got {images.device}")


def _check_option(t: Tensor | None, name: str, device: torch.device, dtype: torch.dtype, *shape: int) -> None:
    if t is not None and (t.dtype != dtype or tuple(t.shape) != shape or t.device != device):
        raise ValueError(
            f"{name} must be {dtype} of shape {shape} on {device}, "
            f"got {t.dtype} of shape {tuple(t.shape)} on {t.device}"
        )


def _check_options(
    n: int, device: torch.device, corners: Tensor | None, flips: Tensor | None, shifts: Tensor | None
) -> None:
    _check_option(corners, "corners", device, torch.int32, n, 2)
    _check_option(flips, "flips", device, torch.uint8, n)
    _check_option(shifts, "shifts", device, torch.float32, n, _COLOURS)


def _output(images, corners, flips, shifts, height, width, mean, std, dtype) -> Tensor:
    _check_images(images)
    _check_options(images.shape[0], images.device, corners, flips, shifts)
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
    options = [None if t is None else lib.contiguous(t) for t in (corners, flips, shifts)]
    backend.run("prepare_images", lib.contiguous(images), *options, list(mean), list(std), y)
    return y.to(dtype)


def _setup(ctx, inputs, output):
    raise ValueError("shifts requires a gradient: prepare_images has none")


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
    converts=False,
)


def _extents(size: int | Sequence[int]) -> tuple[int, int]:
    """`size` as the height and width that it says."""
    try:
        height, width = size if isinstance(size, Sequence) else (size, size)
    except ValueError:
        raise ValueError(f"size must be one number or two, got {size}") from None
    return check_whole(height, "size", 1, _MOST_PIXELS), check_whole(width, "size", 1, _MOST_PIXELS)


def _normalisation(mean: Sequence[float], std: Sequence[float]) -> tuple[list[float], list[float]]:
    """`mean` and `std` as three floats each."""
    found = []
    for name, values in (("mean", mean), ("std", std)):
        try:
            numbers = [float(value) for value in values]
        except (TypeError, ValueError):
            raise TypeError(f"{name} must be 3 numbers, got {described(values)}") from None
        if len(numbers) != _COLOURS:
            raise ValueError(f"{name} must have 3 values, got {len(numbers)}")
        if not all(abs(number) < _MOST_COLOUR for number in numbers):
            raise ValueError(f"{name} must be numbers under {_MOST_COLOUR:g}, got {numbers}")
        found.append(numbers)
    if not all(found[1]):
        raise ValueError(f"std must have no 0, got {found[1]}")
    return found[0], found[1]


def _flips(flips: Tensor | None) -> Tensor | None:
    return flips.view(torch.uint8) if flips is not None and flips.dtype == torch.bool else flips


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
    check_tensors(*_OPTIONS, images=images, corners=corners, flips=flips, shifts=shifts)
    if dtype not in lib.DTYPES:
        raise TypeError(f"dtype must be one of {', '.join(map(str, lib.DTYPES))}, got {dtype}")
    return prepare_op(images, corners, _flips(flips), shifts, *_extents(size), *_normalisation(mean, std), dtype)


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
    height, width = _extents(size)
    if dtype not in (torch.float32, torch.bfloat16):
        raise TypeError(f"dtype must be torch.float32 or torch.bfloat16, got {dtype}")
    mean, std = _normalisation(mean, std)
    if not isinstance(pictures, Sequence | np.ndarray):
        raise TypeError(f"pictures must be a sequence of arrays, got {described(pictures)}")
    shape = (len(pictures), _COLOURS, height, width)
    options = {"sizes": sizes, "corners": corners, "flips": flips, "shifts": shifts}
    check_tensors(*_OPTIONS, **options, out=out)
    if is_recorded():
        raise TypeError("a call of crop_images cannot be traced or exported: use prepare_images")
    options["flips"] = _flips(flips)
    _check_option(sizes, "sizes", _CPU, torch.int32, shape[0], 2)
    _check_options(shape[0], _CPU, corners, options["flips"], shifts)
    for name, t in options.items():
        if t is not None:
            check_memory(t, name)
            if t.requires_grad and torch.is_grad_enabled():
                raise ValueError(f"{name} requires a gradient: crop_images has none")
    if out is not None:
        _check_out(out, dtype, shape)
    y = _native.empty(shape, dtype, torch.channels_last) if out is None else out
    core = _native.load()
    views = [None if t is None else _native.view(lib.contiguous(t), name) for name, t in options.items()]
    core.cpu.crop_images(pictures, *views, mean, std, _native.view(y, "out"), core.Context(_native.threads()))
    if out is not None and not out.is_inference():
        torch.autograd.graph.increment_version(out)
    return y


def _check_out(out: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    if tuple(out.shape) != shape or out.dtype != dtype or out.device != _CPU:
        raise ValueError(
            f"out must be {dtype} of shape {shape} on cpu, got {out.dtype} of shape {tuple(out.shape)} on {out.device}"
        )
    check_memory(out, "out")
    if not out.is_contiguous(memory_format=torch.channels_last):
        raise ValueError(f"out must be channels_last, got strides {out.stride()} for shape {shape}")
    if out.is_neg():
        raise ValueError("out must not be a negated view: what is written to it would be lost")
    if out.requires_grad and torch.is_grad_enabled():
        raise ValueError("out requires a gradient: crop_images has none")
