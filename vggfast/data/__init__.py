"""Images on their way to a network: data sets, transforms, batches. Needs the extra ``vggfast[train]``."""

from vggfast.data.batches import Batch, Batches
from vggfast.data.datasets import ImageSet, open_dataset, open_image
from vggfast.data.transforms import Augmentation, CentreCrop, Preprocessing, colour_statistics, rescale

__all__ = [
    "Augmentation",
    "Batch",
    "Batches",
    "CentreCrop",
    "ImageSet",
    "Preprocessing",
    "colour_statistics",
    "open_dataset",
    "open_image",
    "rescale",
]
