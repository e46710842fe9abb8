"""vggfast: VGG networks on hand-written kernels, run, trained and evaluated as in the paper."""

import importlib
from typing import TYPE_CHECKING, Any

from vggfast import _signals, ops  # noqa: F401  signals are taken before torch is imported, which takes seconds
from vggfast._native import set_exact
from vggfast._version import __version__
from vggfast.acceleration import accelerate
from vggfast.engine import Engine
from vggfast.models import (
    VGG,
    VGG11,
    VGG13,
    VGG16,
    VGG19,
    vgg11,
    vgg11_bn,
    vgg13,
    vgg13_bn,
    vgg16,
    vgg16_bn,
    vgg19,
    vgg19_bn,
)
from vggfast.preprocessing import Preprocessing

if TYPE_CHECKING:
    from vggfast.weights import load

__all__ = [
    "VGG",
    "VGG11",
    "VGG13",
    "VGG16",
    "VGG19",
    "Engine",
    "Preprocessing",
    "__version__",
    "accelerate",
    "load",
    "ops",
    "set_exact",
    "vgg11",
    "vgg11_bn",
    "vgg13",
    "vgg13_bn",
    "vgg16",
    "vgg16_bn",
    "vgg19",
    "vgg19_bn",
]

# They need the extra vggfast[train].
_LAZY = ("data", "evaluate", "features", "localisation", "losses", "style_transfer", "weights")


def __getattr__(name: str) -> Any:
    if name == "load":
        return importlib.import_module("vggfast.weights").load
    if name in _LAZY:
        return importlib.import_module(f"vggfast.{name}")
    raise AttributeError(f"module 'vggfast' has no attribute {name!r}")
