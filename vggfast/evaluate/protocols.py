"""The paper's protocols in one call each; an :class:`vggfast.evaluate.Evaluator` is prepared once for many.

Source: Simonyan & Zisserman, section 3.2.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from vggfast.evaluate.evaluator import MEMORY, SCALES, Evaluator, ScoreMap
from vggfast.evaluate.images import Images
from vggfast.models import VGG
from vggfast.preprocessing import Preprocessing


def _evaluator(model: VGG, images: Images, preprocessing: Preprocessing | None, memory: int) -> Evaluator:
    if preprocessing is not None and isinstance(images, Tensor):
        raise ValueError("preprocessing is given, and images is a tensor, which is taken as normalised: leave it out")
    return Evaluator(model, preprocessing, memory)


def dense(
    model: VGG,
    images: Images,
    scales: Sequence[int] | None = SCALES,
    *,
    flip: bool = True,
    pool: str = "mean",
    preprocessing: Preprocessing | None = None,
    memory: int = MEMORY,
) -> Tensor:
    """Posteriors by the whole image at once: the FC layers run as convolutions, their map of class scores is averaged,
    and the softmax of image and mirror image are averaged, over the scales too.

    Args:
        model: any network with a head, on the device where it is to run.
        images: PIL images or paths of files, in a sequence, of any sizes; or an (N, C, H, W) floating tensor that is
            normalised already.
        scales: lengths of the shorter side to which each image is rescaled, aspect kept: pictures as PIL resamples them
            (bilinear, antialiased, to whole numbers), tensors by ``interpolate(mode="bilinear", antialias=True)``. None
            takes images at the size that they have.
        flip: whether the mirror image counts.
        pool: how a score map becomes scores, "mean" (the paper) or "sum", over its places.
        preprocessing: what the network was trained on; None takes `model.preprocessing`. Not for tensors.
        memory: bytes; see :class:`Evaluator`.

    Returns:
        (N, classes), float32, on the CPU.

    Raises:
        ValueError, TypeError, FileNotFoundError: no image, or one that does not open, or is too small for the head; no
            preprocessing; too little memory; the text names it and says what is allowed.
    """
    return _evaluator(model, images, preprocessing, memory).dense(images, scales, flip=flip, pool=pool)


def multi_crop(
    model: VGG,
    images: Images,
    scales: Sequence[int] | None = SCALES,
    *,
    grid: int = 5,
    flip: bool = True,
    crop: int | None = None,
    preprocessing: Preprocessing | None = None,
    memory: int = MEMORY,
) -> Tensor:
    """Posteriors averaged over crops: grid x grid at equal distances over the rescaled image, the outermost at its
    edges, and their mirror images, at each scale. The paper's 5 x 5 are 50 crops a scale.

    Args:
        grid: crops along each side; corner i is at round(i * (extent - crop) / (grid - 1)), a single one in the middle.
        crop: side of a crop in pixels; None takes 32 * pool_size, of which the head sees one place. The score map of a
            larger one is averaged.

    The other arguments, the result and the errors are those of :func:`dense`.
    """
    return _evaluator(model, images, preprocessing, memory).multi_crop(images, scales, grid=grid, flip=flip, crop=crop)


def posteriors(
    model: VGG,
    images: Images,
    protocol: str,
    scales: Sequence[int] | None = SCALES,
    *,
    flip: bool = True,
    preprocessing: Preprocessing | None = None,
    memory: int = MEMORY,
) -> Tensor:
    """Posteriors by a protocol of the paper's tables.

    Args:
        protocol: "single" (dense at one scale), "dense", "multi-crop" (5 x 5 crops), or "both": the mean of the last
            two. Each image is rescaled once for both.

    The other arguments, the result and the errors are those of :func:`dense`.
    """
    return _evaluator(model, images, preprocessing, memory).posteriors(images, protocol, scales, flip=flip)


def score_maps(
    model: VGG,
    images: Images,
    scale: int | None,
    *,
    flip: bool = True,
    preprocessing: Preprocessing | None = None,
    memory: int = MEMORY,
) -> list[ScoreMap]:
    """The maps of class scores that :func:`dense` averages, one an image, and where they lie.

    With `flip`, the mean of the image's map and its mirror image's, mirrored back. Where the picture's width is no
    multiple of 32, the latter sees up to 31 columns further to the right.

    Args:
        scale: length of the shorter side to which each image is rescaled, or None.

    The other arguments and the errors are those of :func:`dense`.
    """
    return _evaluator(model, images, preprocessing, memory).score_maps(images, scale, flip=flip)
