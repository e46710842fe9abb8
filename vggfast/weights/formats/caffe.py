"""Caffe's networks (.caffemodel), by the protobuf library with the fields of Caffe's schema that are needed.

The file says the layers itself, `layer` or, before 2015, `layers`, and what they read (bottom) and give (top). A
prototxt beside it comes before it, as in Caffe: STEM.prototxt, STEM_deploy.prototxt or deploy.prototxt. Weights lie as
ours. The authors' own files are of this kind: they take BGR, 0 to 255, less a mean that the file does not hold.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from vggfast.io import listed
from vggfast.preprocessing import Preprocessing
from vggfast.weights.formats._caffe_text import Fields, from_binary, from_text
from vggfast.weights.formats._chain import Chain
from vggfast.weights.formats._parts import Raw
from vggfast.weights.formats._sequence import with_article

_CONVENTION = "the convention of Caffe's VGGs"
_PICTURES = ("data", "imagedata", "windowdata", "memorydata", "hdf5data", "dummydata", "input")
# Of training, beside the way to the scores.
_ASIDE = (
    "accuracy", "silence", "softmaxwithloss", "softmaxloss", "euclideanloss", "hingeloss", "infogainloss",
    "multinomiallogisticloss", "sigmoidcrossentropyloss", "contrastiveloss",
)  # fmt: skip
_MOST_TEXT = 256 << 10  # of a prototxt
_ACROSS = 1  # the axis of channels


def read(path: Path) -> Raw:
    """A trained network's file."""
    trained = from_binary(path.read_bytes())
    net, notes = trained, []
    candidates = (f"{path.stem}.prototxt", f"{path.stem}_deploy.prototxt", "deploy.prototxt")
    if beside := next((file for name in candidates if (file := path.with_name(name)).is_file()), None):
        if (size := beside.stat().st_size) > _MOST_TEXT:
            raise ValueError(f"{beside} must have at most {_MOST_TEXT >> 10} KiB, got {size >> 10}")
        try:
            net = from_text(beside.read_text(encoding="utf-8-sig", errors="replace"))
            notes.append(f"its layers are those of {beside.name}")
        except ValueError as error:
            raise ValueError(f"{beside} cannot be read: {error}") from error
    layers = _layers(net, deployed=beside is not None)
    if not layers:
        raise ValueError(f"{beside.name if beside else 'it'} has no layers")
    blobs = {_one(layer, "name"): layer.get("blobs", []) for layer in _layers(trained)}
    alone = not any(_kind(layer) == "pooling" for layer in layers)
    names = [_one(layer, "name") for layer in _layers(trained) if layer.get("blobs")]
    if twice := next((name for name, times in Counter(names).items() if times > 1), None):
        raise ValueError(f"it has two layers of the name {twice} with weights")
    walk = _Walk(Chain(path, _size(net, layers), alone, flat=alone), blobs)
    walk.chain.notes += notes
    for layer in _in_order(layers):
        walk.meet(layer)
    return walk.raw()


def _one(fields: Mapping[str, Any], name: str, default: Any = None) -> Any:
    return fields[name][-1] if fields.get(name) else default


def _kind(layer: Fields) -> str:
    """A layer's type in lower case and one word, which is the same in both versions."""
    return str(_one(layer, "type", "layer of no type")).lower().replace("_", "")


def _layers(net: Fields, deployed: bool = False) -> list[Fields]:
    """Those of a network; of a prototxt, those that run when it is deployed, in the stages and the level it says."""
    state: Fields = _one(net, "state", {})
    stages, level = set(state.get("stage", [])), _one(state, "level", 0)

    def is_met(rule: Fields) -> bool:
        within = _one(rule, "min_level", level) <= level <= _one(rule, "max_level", level)
        named = all(stage in stages for stage in rule.get("stage", []))
        unnamed = not any(stage in stages for stage in rule.get("not_stage", []))
        return _one(rule, "phase", "TEST") == "TEST" and within and named and unnamed

    def runs(layer: Fields) -> bool:
        included = layer.get("include", [])
        return not any(map(is_met, layer.get("exclude", []))) and (not included or any(map(is_met, included)))

    return [layer for layer in (*net.get("layers", []), *net.get("layer", [])) if not deployed or runs(layer)]


def _size(net: Fields, layers: list[Fields]) -> tuple[int, int] | None:
    """H and W of the input, where something says them."""
    shapes = [net.get("input_dim", []), *(shape.get("dim", []) for shape in net.get("input_shape", []))]
    for layer in layers:
        memory, pictures = (_one(layer, name, {}) for name in ("memory_data_param", "transform_param"))
        shapes += [shape.get("dim", []) for shape in _one(layer, "input_param", {}).get("shape", [])]
        shapes.append([1, 1, _one(memory, "height", 0), _one(memory, "width", 0)])
        shapes.append([1, 1, *[_one(pictures, "crop_size", 0)] * 2])
    return next(((shape[2], shape[3]) for shape in shapes if len(shape) == 4 and min(shape) > 0), None)


def _in_order(layers: list[Fields]) -> Iterator[Fields]:
    """From what holds the pictures on, as long as each tensor is read once; else a layer of a type that says so.

    A layer that writes what it reads makes another tensor of the same name.
    """
    made: dict[str, Any] = {}  # by blob, its tensor at this point: what made it, or its name
    readers: dict[Any, list[int]] = {}
    sources: dict[Any, str] = {}
    for i, layer in enumerate(layers):
        kind, bottoms, tops = _kind(layer), layer.get("bottom", []), layer.get("top", [])
        reads = [made.get(blob, blob) for blob in bottoms]
        for tensor in reads if kind not in _ASIDE else ():
            readers.setdefault(tensor, []).append(i)
            if not isinstance(tensor, tuple):
                sources[tensor] = str(tensor)
        for blob in tops:
            made[blob] = reads[0] if kind == "split" and reads else (i, blob)
            if not bottoms and kind in _PICTURES:
                sources[i, blob] = blob
        if kind == "split":
            readers[reads[0]].pop()
    found = [tensor for tensor in sources if readers.get(tensor)]
    if len(found) != 1:
        others = [f"layer {_one(layer, 'name')}, {with_article(str(_one(layer, 'type')))}" for layer in layers
                  if not layer.get("bottom") and _kind(layer) not in _PICTURES]  # fmt: skip
        read = ", ".join([*(sources[tensor] for tensor in found), *others]) or "none"
        raise ValueError(f"it must have one input that layers read, got {read}")
    if isinstance(found[0], tuple):
        yield layers[found[0][0]]
    at = found[0]
    while after := readers.get(at):
        layer = layers[after[0]]
        kind, name = _one(layer, "type"), _one(layer, "name")
        if len(after) != 1:
            names = listed(str(_one(layers[i], "name")) for i in after)
            yield {"name": [sources.get(at, at[1])], "type": [f"tensor read by {names}"]}
            return
        if len(layer.get("bottom", [])) != 1 or len(layer.get("top", [])) != 1:
            yield {"name": [name], "type": [f"{kind} with several inputs or outputs"]}
            return
        yield layer
        at = (after[0], layer["top"][0])


class _Walk:
    """One going along the layers.

    Attributes:
        chain: what they make.
    """

    def __init__(self, chain: Chain, blobs: Mapping[str, list[np.ndarray]]) -> None:
        self.chain, self._blobs, self._met = chain, blobs, set[str]()
        self._norm: dict[str, Any] | None = None  # a BatchNorm whose Scale may come
        self._preprocessing, self._origin = Preprocessing.caffe(), _CONVENTION
        self._prepared_by = ""

    def meet(self, layer: Fields) -> None:
        """The next layer."""
        name, kind = str(_one(layer, "name")), _kind(layer)
        label = f"layer {name}"
        self._met.add(name)
        if self._norm and kind != "scale":
            self._end_norm()
        if kind in _PICTURES:
            self._read_pictures(label, layer)
        elif read := getattr(self, f"_read_{kind}", None):
            read(label, layer)
        elif kind != "split":
            self.chain.add(label, with_article(str(_one(layer, "type"))))

    def raw(self) -> Raw:
        if self._norm:
            self._end_norm()
        for name in self._blobs.keys() - self._met:
            self.chain.tensors |= {f"{name}[{i}]": value for i, value in enumerate(self._blobs[name])}
        return self.chain.raw(_layout, self._preprocessing, self._origin, self._prepared_by)

    def _settings(self, label: str, layer: Fields, param: str, **defaults: Any) -> dict[str, Any]:
        """A layer's settings over Caffe's own; fillers and engines say nothing about what is computed.

        Those that are repeated are lists. Others than `defaults` are refused.
        """
        found = dict(defaults)
        for name, values in _one(layer, param, {}).items():
            if name in defaults:
                found[name] = values if isinstance(defaults[name], list) else values[-1]
            elif "filler" not in name and name not in ("engine", "force_nd_im2col", "moving_average_fraction"):
                self.chain.refuse(f"{label} has the setting {name} {values[-1]}, which no layer of a VGG has")
        return found

    def _spatial(self, found: Mapping[str, Any], name: str, default: int, short: str = "") -> list[int]:
        """(H, W) of a setting that is given once, by axis, or under two names."""
        short = short or name
        values = found[name] if isinstance(found[name], list) else [found[name]]
        values = [default] if not values or values == [None] else values
        both = values * 2 if len(values) == 1 else values
        return [
            both[i] if found.get(f"{short}_{axis}") is None else found[f"{short}_{axis}"] for i, axis in enumerate("hw")
        ]

    def _weights(self, label: str, layer: Fields, found: Mapping[str, Any]) -> dict[str, tuple[str, np.ndarray]] | None:
        name = str(_one(layer, "name"))
        blobs, kinds = self._blobs.get(name, []), ["weight", "bias"][: 1 + bool(found["bias_term"])]
        self.chain.tensors |= {f"{name}[{i}]": blob for i, blob in enumerate(blobs)}
        if len(blobs) < len(kinds):
            self.chain.refuse(f"{label} must have {len(kinds)} blobs ({', '.join(kinds)}), got {len(blobs)}")
            return None
        return {kind: (f"{name}[{i}]", blob) for i, (kind, blob) in enumerate(zip(kinds, blobs, strict=False))}

    # ---- by type, in lower case --------------------------------------------------------------------------------------

    def _read_pictures(self, label: str, layer: Fields) -> None:
        older: Fields = {}  # before transform_param, its settings were the source's
        for param in ("data_param", "image_data_param", "window_data_param"):
            settings = _one(layer, param, {})
            older |= {name: settings[name] for name in ("scale", "mean_file") if name in settings}
        found = {**older, **_one(layer, "transform_param", {})}
        means, scale = found.get("mean_value", []), _one(found, "scale", 1.0)
        if not scale > 0 or len(means) not in (0, 1, 3):
            self.chain.refuse(f"{label} must have a scale greater than 0 and 1 or 3 means, got {scale} and {means}")
        elif means or scale != 1:
            if not means:
                means = self._preprocessing.mean if "mean_file" in found else [0.0]
            self._preprocessing = Preprocessing(tuple(np.broadcast_to(means, 3).tolist()), (1 / scale,) * 3, "BGR")
            self._origin, self._prepared_by = f"the file ({label})", label
        if "mean_file" in found:
            self._origin += f"; {_one(found, 'mean_file')}, which {label} names, is not read"

    def _read_convolution(self, label: str, layer: Fields) -> None:
        found = self._settings(
            label, layer, "convolution_param", num_output=None, bias_term=True, pad=[], kernel_size=[], stride=[],
            dilation=[], group=1, axis=_ACROSS, pad_h=None, pad_w=None, kernel_h=None, kernel_w=None, stride_h=None,
            stride_w=None,
        )  # fmt: skip
        tensors = self._weights(label, layer, found)
        if tensors is None:
            return
        shape = tensors["weight"][1].shape
        if len(shape) != 4:
            return self.chain.refuse(f"{label} must have weights of 4 axes, got shape {shape}")
        self.chain.expect(
            label, num_output=(found["num_output"] or shape[0], shape[0]), axis=(found["axis"], _ACROSS),
            kernel_size=(self._spatial(found, "kernel_size", 0, "kernel"), list(shape[2:])),
        )  # fmt: skip
        top, left = self._spatial(found, "pad", 0)
        self.chain.conv(
            label, tensors, shape, strides=self._spatial(found, "stride", 1), pads=[top, top, left, left],
            dilation=self._spatial(found, "dilation", 1), groups=found["group"],
        )  # fmt: skip

    def _read_innerproduct(self, label: str, layer: Fields) -> None:
        found = self._settings(
            label, layer, "inner_product_param", num_output=None, bias_term=True, axis=_ACROSS, transpose=False
        )  # fmt: skip
        tensors = self._weights(label, layer, found)
        if tensors is None:
            return
        shape = tensors["weight"][1].shape
        if len(shape) < 2:
            return self.chain.refuse(f"{label} must have weights of 2 axes, got shape {shape}")
        self.chain.expect(
            label, num_output=(found["num_output"] or shape[-2], shape[-2]),
            axis=(found["axis"], _ACROSS), transpose=(found["transpose"], False),
        )  # fmt: skip
        self.chain.fc(label, tensors, shape[-1], shape[-2], flattens=True)

    def _read_dropout(self, label: str, layer: Fields) -> None:
        scaled = self._settings(label, layer, "dropout_param", dropout_ratio=0.5, scale_train=True)["scale_train"]
        self.chain.expect(label, scale_train=(scaled, True))  # else it scales when it does not train

    def _read_relu(self, label: str, layer: Fields) -> None:
        slope = self._settings(label, layer, "relu_param", negative_slope=0.0)["negative_slope"]
        self.chain.activation(label, f"leaky ReLU (negative_slope {slope:g})" if slope else "relu")

    def _read_pooling(self, label: str, layer: Fields) -> None:
        found = self._settings(
            label, layer, "pooling_param", pool="MAX", kernel_size=None, stride=None, pad=None, global_pooling=False,
            round_mode="CEIL", kernel_h=None, kernel_w=None, stride_h=None, stride_w=None, pad_h=None, pad_w=None,
        )  # fmt: skip
        if found["global_pooling"] and found["pool"] == "AVE":
            return self.chain.average(label, flat=False)
        if found["global_pooling"] or found["pool"] != "MAX":
            extent = "global pooling" if found["global_pooling"] else "pooling"
            return self.chain.add(label, f"a {extent} by {found['pool']}")
        top, left = self._spatial(found, "pad", 0)
        extents, strides = self._spatial(found, "kernel_size", 0, "kernel"), self._spatial(found, "stride", 1)
        self.chain.max_pool(label, extents, strides, [top, top, left, left], found["round_mode"] != "FLOOR")

    def _read_lrn(self, label: str, layer: Fields) -> None:
        found = self._settings(
            label, layer, "lrn_param", local_size=5, alpha=1.0, beta=0.75, norm_region="ACROSS_CHANNELS", k=1.0
        )  # fmt: skip
        self.chain.expect(label, norm_region=(found["norm_region"], "ACROSS_CHANNELS"))
        self.chain.lrn(label, size=found["local_size"], alpha=found["alpha"], beta=found["beta"], k=found["k"])

    def _read_batchnorm(self, label: str, layer: Fields) -> None:
        found = self._settings(label, layer, "batch_norm_param", use_global_stats=True, eps=1e-5)
        self.chain.expect(label, use_global_stats=(found["use_global_stats"], True))
        name = str(_one(layer, "name"))
        blobs = self._blobs.get(name, [])
        if len(blobs) != 3:
            return self.chain.refuse(f"{label} must have 3 blobs (mean, variance, their factor), got {len(blobs)}")
        factor = 1 / blobs[2].item() if blobs[2].item() else 0.0
        mean, variance = (blob.flatten() * np.float32(factor) for blob in blobs[:2])
        names = [f"{name} scale", f"{name} shift", f"{name}[0]", f"{name}[1]"]
        self._norm = {"layer": label, "names": names, "mean": mean, "variance": variance, "epsilon": found["eps"]}

    def _read_scale(self, label: str, layer: Fields) -> None:
        if self._norm is None:
            return self.chain.add(label, "a scale")
        found = self._settings(label, layer, "scale_param", axis=_ACROSS, num_axes=1, bias_term=False)
        self.chain.expect(label, axis=(found["axis"], _ACROSS), num_axes=(found["num_axes"], 1))
        name = str(_one(layer, "name"))
        blobs = self._blobs.get(name, [])
        if len(blobs) != 1 + found["bias_term"]:
            return self.chain.refuse(f"{label} must have {1 + found['bias_term']} blobs, got {len(blobs)}")
        self._norm["names"][:2] = [f"{name}[0]", f"{name}[1]"]
        self._norm |= dict(zip(("scale", "shift"), (blob.flatten() for blob in blobs), strict=False))
        self._end_norm()

    def _end_norm(self) -> None:
        norm, self._norm = self._norm, None
        self.chain.batch_norm(**(norm or {}))

    def _read_softmax(self, label: str, layer: Fields) -> None:
        self.chain.expect(label, axis=(self._settings(label, layer, "softmax_param", axis=_ACROSS)["axis"], _ACROSS))
        self.chain.activation(label, "softmax")

    def _read_flatten(self, label: str, layer: Fields) -> None:
        found = self._settings(label, layer, "flatten_param", axis=_ACROSS, end_axis=-1)
        self.chain.expect(label, axis=(found["axis"], _ACROSS), end_axis=(found["end_axis"], -1))
        self.chain.flatten(label)


def _layout(place: str, kind: str, tensor: Tensor) -> Tensor:
    """Blobs of before 2015 have four extents throughout: a bias (1, 1, 1, out), an FC layer (1, 1, out, in)."""
    if kind != "weight" or place.startswith("bn"):
        return tensor.flatten()
    if place.startswith("fc") and tensor.dim() == 4:
        return tensor[0, 0] if tensor.shape[:2] == (1, 1) else tensor.flatten(1)
    return tensor
