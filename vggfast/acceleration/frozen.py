"""torchvision's FrozenBatchNorm2d on our kernels: a class that there is only where torchvision's is."""

from __future__ import annotations

import functools
import importlib
from typing import Any

from torch import Tensor, nn

from vggfast.graph import know
from vggfast.layers import runs_batch_norm
from vggfast.ops.norm import batch_norm_nhwc

_NAME = "FrozenBatchNorm2d"


@functools.cache
def ours_of(kind: Any) -> type[nn.Module]:
    """The subclass of torchvision's class that computes large channels_last maps in one pass, others as that does."""

    class Frozen(kind):
        def forward(self, x: Tensor) -> Tensor:
            if not runs_batch_norm(self, x):
                return super().forward(x)
            channels = self.running_mean, self.running_var, self.weight, self.bias
            return batch_norm_nhwc(x, *channels, False, 0.0, self.eps, False, False)

    Frozen.__module__, Frozen.__name__, Frozen.__qualname__ = __name__, _NAME, _NAME
    return know(Frozen)


def is_ours(kind: type[nn.Module]) -> bool:
    return kind.__module__ == __name__


def __getattr__(name: str) -> Any:
    if name == _NAME:  # pickles name it
        return ours_of(getattr(importlib.import_module("torchvision.ops.misc"), _NAME))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
