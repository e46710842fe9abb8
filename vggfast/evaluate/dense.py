"""Dense evaluation: the whole image at each scale, the class score map averaged, the softmax of image and mirror image.

Source: Simonyan & Zisserman, section 3.2.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vggfast import ops
from vggfast.data.transforms import Preprocessing, rescale
from vggfast.models import VGG


@torch.inference_mode()
def dense(
    model: VGG,
    images: Sequence[Image.Image],
    preprocessing: Preprocessing,
    scales: Sequence[int],
    *,
    flip: bool = True,
    pool: str = "mean",
    batch_size: int = 32,
) -> Tensor:
    """Posteriors (len(images), classes), float32 on the CPU, averaged over the scales.

    Args:
        model: any network with a head; its FC layers run as convolutions, on the device where it is.
        images: RGB images of any sizes.
        preprocessing: what the network was trained with.
        scales: lengths of the shorter side to which each image is rescaled.
        flip: average with the posteriors of the mirror image.
        pool: how a score map becomes scores, "mean" (the paper) or "sum".
        batch_size: images of one size that run together.

    Raises:
        ValueError: no image, no scale, or one at which the head does not fit; the text names it.
    """
    least = 32 * model.arguments["pool_size"]
    if not scales or min(scales) < least:
        raise ValueError(f"scales is {list(scales)}: one or more of at least {least} are wanted")
    if not images:
        raise ValueError("images is empty: at least one image is wanted")
    network = model.to_conv_head().eval()  # modules of its own: the caller's keep their training mode
    posteriors = [torch.zeros(())] * len(images)
    device = next(model.parameters()).device

    def scores(batch: Tensor) -> Tensor:
        return ops.sum_pool(network.score_map(batch), reduce=pool).softmax(1)

    for scale in scales:
        by_size = defaultdict(list)
        for index, image in enumerate(images):
            resized = rescale(image, scale)
            by_size[resized.size].append((index, resized))
        for group in by_size.values():
            for begin in range(0, len(group), batch_size):
                indices, resized_images = zip(*group[begin : begin + batch_size], strict=True)
                pixels = [preprocessing.tensor(np.asarray(image, dtype=np.float32)) for image in resized_images]
                batch = torch.stack(pixels).contiguous(memory_format=torch.channels_last).to(device)
                result = scores(batch)
                if flip:
                    result = (result + scores(batch.flip(3))) / 2
                for index, row in zip(indices, result.cpu(), strict=True):
                    posteriors[index] = posteriors[index] + row / len(scales)
    return torch.stack(posteriors)
