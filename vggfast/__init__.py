"""vggfast: VGG networks on hand-written kernels, run, trained and evaluated as in the paper."""

from vggfast import ops
from vggfast._native import set_exact
from vggfast._version import __version__
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

__all__ = [
    "VGG",
    "VGG11",
    "VGG13",
    "VGG16",
    "VGG19",
    "Engine",
    "__version__",
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
