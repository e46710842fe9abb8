"""MatConvNet's simple networks (.mat), by scipy in a process of its own.

A list `layers` of structs with name, type, and `weights`, {filters, biases}, or older `filters` and `biases`; FC
layers are convolutions. Filters lie as (H, W, in, out). The mean is in the file: meta.normalization.averageImage.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from vggfast.io import Group, read_isolated
from vggfast.preprocessing import Preprocessing
from vggfast.weights.formats._chain import Chain
from vggfast.weights.formats._parts import Raw
from vggfast.weights.formats._sequence import with_article
from vggfast.weights.formats.keras import channels_last_as_ours

_KINDS = {"weight": "filters", "bias": "biases"}


def read(path: Path) -> Raw:
    """A network of `layers`, at the top of the file or in `net`."""
    content = read_isolated(path, "matlab")
    top = content if "layers" in content else content.get("net")
    if _field(top, "layers") is None:
        raise ValueError(f"it has no list 'layers', but {', '.join(content) or 'nothing'}")
    layers = _items(_field(top, "layers"))
    if any(_field(layer, "block") is not None for layer in layers):
        raise ValueError("it is a DagNN, whose layers are blocks between variables: only simple networks are read")
    meta = _field(top, "meta", top)
    normalization = _field(meta, "normalization")
    alone = not any(_text(layer, "type") == "pool" for layer in layers)
    chain = Chain(path, _size(normalization), alone)
    for name, layer in zip(_names(layers), layers, strict=True):
        _meet(chain, name, layer, last=layer is layers[-1])
    mean, origin = _mean(_field(normalization, "averageImage"))
    classes = list(map(str, _items(_field(_field(meta, "classes"), "description"))))
    return chain.raw(_layout, Preprocessing(mean), origin, extra={"classes": classes} if classes else {})


def _names(layers: list[Any]) -> list[str]:
    """What the layers are called: by their number where the file gives no name, or one name to several."""
    names = [_text(layer, "name") for layer in layers]
    times = Counter(names)
    return [f"{name} ({i})" if name and times[name] > 1 else name or f"layer{i}" for i, name in enumerate(names, 1)]


def _meet(chain: Chain, name: str, layer: Any, last: bool) -> None:
    """The next layer; what MatConvNet itself does not read of one is of no matter."""
    kind, label = _text(layer, "type") or "layer of no type", f"layer {name}"
    if kind == "conv":
        _conv(chain, label, name, layer)
    elif kind == "relu":
        leak = _numbers(layer, "leak", [0])
        chain.activation(label, f"leaky ReLU (leak {leak[0]:g})" if any(leak) else "relu")
    elif kind == "pool":
        _pool(chain, label, layer)
    elif kind in ("lrn", "normalize"):
        size, k, alpha, beta = _numbers(layer, "param", [5, 1, 1, 0.5], (4,))
        chain.lrn(label, size=size, k=k, alpha=alpha * size, beta=beta)  # ours is divided by size
    elif kind == "softmax":
        chain.activation(label, "softmax")
    elif kind != "dropout" and not (kind == "softmaxloss" and last):
        chain.add(label, with_article(kind))


def _conv(chain: Chain, label: str, name: str, layer: Any) -> None:
    tensors = {kind: (f"{name} {kind}", np.asarray(value)) for kind, value in _weights(layer).items()}
    chain.tensors |= dict(tensors.values())
    found = {kind: tensors[name] for kind, name in _KINDS.items() if name in tensors}
    if lost := [name for kind, name in _KINDS.items() if kind not in found]:
        return chain.refuse(f"{label} has no {lost[0]}")
    if not found["bias"][1].size:  # it has none by [], too
        del found["bias"], chain.tensors[f"{name} biases"]
    shape = found["weight"][1].shape
    shape = (*shape, *(1,) * (4 - len(shape)))  # MATLAB drops extents of 1 at the end
    height, width, inputs, outputs = shape
    dilation = _numbers(layer, "dilate", [1])
    chain.conv(
        label, found, (outputs, inputs, height, width), strides=_both(_numbers(layer, "stride", [1])),
        pads=_pads(layer), dilation=_both(dilation), groups=1,
    )  # fmt: skip
    return None


def _pool(chain: Chain, label: str, layer: Any) -> None:
    if (method := _text(layer, "method", "max")) != "max":
        return chain.add(label, f"a pooling by {method}")
    pads, up = _pads(layer), False
    if pads == [0, 1, 0, 1]:  # as files that were Caffe's have it
        pads, up = [0] * 4, True
    chain.max_pool(label, _both(_numbers(layer, "pool", [])), _both(_numbers(layer, "stride", [1])), pads, up)
    return None


def _pads(layer: Any) -> list[Any]:
    """(top, bottom, left, right), of which MatConvNet takes one for all or two, for both axes, too."""
    pads = _numbers(layer, "pad", [0], (1, 2, 4))
    return [pads[0], pads[0], pads[1], pads[1]] if len(pads) == 2 else pads * 4 if len(pads) == 1 else pads


def _both(values: list[Any]) -> list[Any]:
    return values * 2 if len(values) == 1 else values


def _numbers(struct: Any, name: str, default: list[Any], counts: tuple[int, ...] = ()) -> list[Any]:
    """A field's numbers, of which there must be one of `counts`; `default` where it is missing or empty."""
    value = _field(struct, name)
    if value is None or not np.size(value):
        return default
    found = np.ravel(value)
    if found.dtype.kind not in "biuf" or (counts and len(found) not in counts):
        many = f"{' or '.join(map(str, counts))} numbers" if counts else "numbers"
        raise ValueError(f"{name} of layer {_text(struct, 'name')} must be {many}, got {found.tolist()}")
    return found.tolist()


def _text(struct: Any, name: str, default: str = "") -> str:
    value = _field(struct, name, default)
    return value if isinstance(value, str) else default


def _size(normalization: Any) -> tuple[int, int] | None:
    """H and W of the images, where the file says them."""
    found = _numbers(normalization, "imageSize", [])
    return (int(found[0]), int(found[1])) if len(found) >= 2 else None


def _plain(value: Any) -> Any:
    """What MATLAB's 1x1 arrays hold: a struct, a cell's content or a text."""
    while isinstance(value, np.ndarray) and value.size == 1 and value.dtype.kind in "OU":
        value = value.flat[0]
    return value


def _field(struct: Any, name: str, default: Any = None) -> Any:
    """A field of a struct, or of the file itself; arrays of numbers and lists keep their shape."""
    struct = _plain(struct)
    return _plain(struct.get(name, default) if isinstance(struct, Group) else default)


def _items(cell: Any) -> list[Any]:
    """The items of a list; a list of one is that one by itself."""
    if cell is None:
        return []
    return [_plain(item) for item in (cell.flat if isinstance(cell, np.ndarray) and cell.dtype == object else [cell])]


def _weights(layer: Any) -> dict[str, np.ndarray]:
    values = _items(_field(layer, "weights"))
    if values:
        return dict(zip((*_KINDS.values(), *(f"weights{{{i}}}" for i in range(3, 99))), values, strict=False))
    return {kind: _field(layer, kind) for kind in _KINDS.values() if _field(layer, kind) is not None}


def _mean(image: Any) -> tuple[tuple[float, ...], str]:
    """The mean colour, or the mean image's, and where it comes from."""
    if image is None or np.size(image) == 0:
        return (123.68, 116.779, 103.939), "the convention of MatConvNet"
    if np.size(image) == 3:
        image = np.reshape(image, 3)
    if np.shape(image)[-1:] != (3,):
        raise ValueError(f"averageImage must have shape (H, W, 3), or be three numbers, got {np.shape(image)}")
    colours = image.reshape(-1, 3)
    origin = "averageImage" if (colours == colours[0]).all() else "the mean colour of averageImage, which is an image"
    return tuple(map(float, colours.mean(0))), f"the file ({origin})"


def _layout(place: str, kind: str, tensor: Tensor) -> Tensor:
    if kind != "weight":
        return tensor.flatten()
    while tensor.dim() < 4:  # MATLAB drops extents of 1 at the end
        tensor = tensor[..., None]
    return channels_last_as_ours(place, kind, tensor)
