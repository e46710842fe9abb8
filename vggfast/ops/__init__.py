"""The layers of VGG as torch ops, forward and backward, on our own kernels.

Each is differentiable to any order, works under autocast, vmap, ``torch.compile(fullgraph=True)`` and
``torch.export``, takes contiguous and channels_last tensors and keeps their format.
:mod:`vggfast.ops.reference` says what each means in plain torch.

On the CPU, bfloat16 and float16 are computed in float32 and each result is rounded once, and under
``torch.autocast("cpu")`` all ops give float32. Where the instruction set has tiles (``amx``), convolutions of bfloat16
and their gradients run in bfloat16 with sums in float32, and so does ``linear``; autocast to bfloat16 casts these to
it, and leaves all other ops in the dtype that they meet.
"""

from vggfast._deprecated import renamed
from vggfast.ops import reference
from vggfast.ops.conv import conv1x1, conv3x3
from vggfast.ops.fc import linear
from vggfast.ops.images import crop_images, prepare_images
from vggfast.ops.lrn import local_response_norm
from vggfast.ops.norm import batch_norm
from vggfast.ops.pool import max_pool2x2
from vggfast.ops.scores import mean_posteriors, sum_pool

__all__ = [
    "batch_norm",
    "conv1x1",
    "conv3x3",
    "crop_images",
    "linear",
    "local_response_norm",
    "max_pool2x2",
    "mean_posteriors",
    "prepare_images",
    "reference",
    "sum_pool",
]

__getattr__ = renamed(__name__, {"class_scores": "vggfast.ops:mean_posteriors"})
