"""TF-slim's checkpoints of TensorFlow (version 1, one file, and 2, an index and data), by its reader.

The names are vgg_16/conv1/conv1_1/weights ... vgg_16/fc8/biases; vgg_19 and vgg_a likewise. Weights lie as
(H, W, in, out), those of the FC layers too.
"""

from __future__ import annotations

import re
from pathlib import Path

from vggfast.io import read_isolated
from vggfast.preprocessing import Preprocessing
from vggfast.weights.formats._parts import Raw
from vggfast.weights.formats.keras import channels_last_as_ours

_HEAD = {"fc1": "fc6", "fc2": "fc7", "fc3": "fc8"}
_KINDS = {"weight": "weights", "bias": "biases"}
_SCOPE = re.compile(r"(.+)/(conv1/conv1_1|fc6)/weights$")
# What a training checkpoint has beside the weights: the step, and the optimisers' state of each weight.
_OF_TRAINING = r"(^|/)(global_step|(Momentum|RMSProp|Adam)(_\d)?)$"


def read(path: Path) -> Raw:
    """A checkpoint, by its file or the prefix of its files."""
    prefix = path.with_suffix("") if path.suffix == ".index" else path
    tensors = read_isolated(prefix, "tensorflow", skip=_OF_TRAINING)
    found = filter(None, map(_SCOPE.match, tensors))
    scope = next((match[1] for match in found), "vgg_16")
    preprocessing, origin = Preprocessing((123.68, 116.78, 103.94)), "the convention of TF-slim"
    if f"{scope}/mean_rgb" in tensors:
        preprocessing, origin = Preprocessing(tuple(map(float, tensors.pop(f"{scope}/mean_rgb")))), "the file"
    note = f"the file holds weights alone; that its layers are those of TF-slim's {scope} is told by their names"
    return Raw(
        tensors, lambda *of: _name(scope, *of), channels_last_as_ours, preprocessing, origin, notes=[note]
    )  # fmt: skip


def _name(scope: str, key: str, place: str, kind: str) -> str | None:
    if place.startswith("bn"):
        return None
    return f"{scope}/{_HEAD.get(place) or f'{place[:5]}/{place}'}/{_KINDS[kind]}"
