"""What weights are before training, by name.

Source: Simonyan & Zisserman, section 3.1; Glorot & Bengio, 2010; He et al., 2015.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import nn


def _normal(std: float) -> Callable[[nn.Conv2d | nn.Linear], Any]:
    return lambda module: nn.init.normal_(module.weight, 0.0, std)


def _kaiming_as_torchvision(module: nn.Conv2d | nn.Linear) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    else:
        nn.init.normal_(module.weight, 0.0, 0.01)


INITS: dict[str, Callable[[nn.Conv2d | nn.Linear], Any]] = {
    "glorot": lambda module: nn.init.xavier_uniform_(module.weight),
    "he": lambda module: nn.init.kaiming_normal_(module.weight, nonlinearity="relu"),
    "paper": _normal(0.01),
    "paper-literal": _normal(math.sqrt(0.01)),
    "torchvision": _kaiming_as_torchvision,
}


def initialise(model: nn.Module, init: str) -> None:
    """Draws every conv and FC weight anew by `init` (see :class:`VGG`); biases 0, batch norm 1 and 0."""
    if init not in INITS:
        raise ValueError(f"init must be one of {', '.join(map(repr, INITS))}, got {init!r}")
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            INITS[init](module)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
