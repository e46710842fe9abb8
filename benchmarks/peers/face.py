"""The one face of all engines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass
class Runner:
    """A built engine. `build(spec, cache, **options)` of each engine's module returns one.

    `prepare` turns float32 images (N, 3, H, W) into what a user of the engine would hold (layout, tensor type), `run`
    is what is timed, `result` turns its answer into an array (N, classes) or (N, C, h, w). `check` replaces the three
    where the answer to compare is not what `run` returns (a training step). `samples`, where the host's clock will not
    do, times as many calls as it is told and returns the seconds of each.
    """

    prepare: Callable[[np.ndarray], Any]
    run: Callable[[Any], Any]
    result: Callable[[Any], np.ndarray]
    check: Callable[[], np.ndarray] | None = None
    samples: Callable[[Callable[[], Any], int], list[float]] | None = None
