"""Images on their way to a network: data sets, transforms, batches. Needs the extra ``vggfast[train]``.

Nothing is imported before it is asked for, so that importing this is light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vggfast.data.batches import Batch, Batches
    from vggfast.data.cache import build_cache
    from vggfast.data.colours import ColourStatistics, colour_statistics, measure_colours
    from vggfast.data.decode import open_image
    from vggfast.data.sources import open_dataset, open_splits
    from vggfast.data.sources.base import ImageFiles, Images, ImageSet
    from vggfast.data.transforms import Augmentation, CentreCrop, rescale
    from vggfast.preprocessing import Preprocessing

__all__ = [
    "Augmentation",
    "Batch",
    "Batches",
    "CentreCrop",
    "ColourStatistics",
    "ImageFiles",
    "ImageSet",
    "Images",
    "Preprocessing",
    "build_cache",
    "colour_statistics",
    "measure_colours",
    "open_dataset",
    "open_image",
    "open_splits",
    "rescale",
]

_HOME = {
    "batches": ("Batch", "Batches"),
    "cache": ("build_cache",),
    "colours": ("ColourStatistics", "colour_statistics", "measure_colours"),
    "decode": ("open_image",),
    "sources": ("open_dataset", "open_splits"),
    "sources.base": ("ImageFiles", "ImageSet", "Images"),
    "transforms": ("Augmentation", "CentreCrop", "Preprocessing", "rescale"),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOME.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
