"""Features of images for other tasks, their files, and linear SVMs on them (the paper's appendix B).

Needs the extra ``vggfast[train]``.
"""

from vggfast.features.extractor import COMBINE, PENULTIMATE, POOLS, Block, Extractor, combine_blocks, extract
from vggfast.features.files import FeatureFile, extract_dataset, join, load_features, save_features
from vggfast.features.svm import SvmResult, caltech_protocol, random_splits

__all__ = [
    "COMBINE",
    "PENULTIMATE",
    "POOLS",
    "Block",
    "Extractor",
    "FeatureFile",
    "SvmResult",
    "caltech_protocol",
    "combine_blocks",
    "extract",
    "extract_dataset",
    "join",
    "load_features",
    "random_splits",
    "save_features",
]
