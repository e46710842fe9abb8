"""Images on their way to a network: data sets, transforms, batches. Needs the extra ``vggfast[train]``."""

from vggfast.data.batches import Batches
from vggfast.data.datasets import ImageSet, open_dataset, open_image
from vggfast.data.transforms import Augmentation, Preprocessing, colour_statistics, rescale

__all__ = [
    "Augmentation",
    "Batches",
    "ImageSet",
    "Preprocessing",
    "colour_statistics",
    "open_dataset",
    "open_image",
    "rescale",
]
