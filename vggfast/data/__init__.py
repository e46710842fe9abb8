"""Images on their way to a network: data sets, transforms, batches. Needs the extra ``vggfast[train]``."""

from vggfast.data.batches import Batch, Batches
from vggfast.data.colours import ColourStatistics, colour_statistics, measure_colours
from vggfast.data.decode import open_image
from vggfast.data.sources import ImageSet, open_dataset, open_splits
from vggfast.data.transforms import Augmentation, CentreCrop, Preprocessing, rescale

__all__ = [
    "Augmentation",
    "Batch",
    "Batches",
    "CentreCrop",
    "ColourStatistics",
    "ImageSet",
    "Preprocessing",
    "colour_statistics",
    "measure_colours",
    "open_dataset",
    "open_image",
    "open_splits",
    "rescale",
]
