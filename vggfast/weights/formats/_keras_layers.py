"""Keras' layers, by their classes and settings, as the layers of a VGG."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from vggfast.preprocessing import Preprocessing
from vggfast.weights.formats._chain import Chain
from vggfast.weights.formats._keras_graph import Layer
from vggfast.weights.formats._sequence import with_article

# What changes no number when a network is run: of every layer, by its ending.
_HARMLESS = (
    "name", "trainable", "batch_input_shape", "batch_shape", "_initializer", "_regularizer", "_constraint", "momentum",
    "synchronized", "fused", "virtual_batch_size", "filters", "units",
)  # fmt: skip
# What does nothing but in training.
_INERT = (
    "Dropout", "SpatialDropout2D", "AlphaDropout", "GaussianDropout", "GaussianNoise", "ActivityRegularization",
    "Identity", "RandomFlip", "RandomRotation", "RandomZoom", "RandomTranslation", "RandomContrast",
)  # fmt: skip
_LAST = (-1, 3, [-1], [3])  # the axis of channels


class Reader:
    """One going along the layers of a model.

    Args:
        chain: what they make.
        variables: a layer's, in Keras' order.

    Attributes:
        chain: see above.
        hwc: whether the first FC layer reads a row.
    """

    def __init__(self, chain: Chain, variables: Callable[[Layer], list[np.ndarray]]) -> None:
        self.chain, self._variables = chain, variables
        self.hwc = False
        self._scale, self._offset = np.ones(1), np.zeros(1)  # of Rescaling and Normalization
        self._order = "RGB"
        self._prepared: list[str] = []  # what errors call them
        self._policies: set[str] = set()

    def meet(self, layer: Layer) -> None:
        """The next layer."""
        label = f"layer {layer.name}"
        if layer.config is None:
            return self.chain.add(label, layer.kind)
        read = getattr(self, f"_read_{layer.kind.lower()}", None)
        if read is None:
            if layer.kind not in _INERT:
                self.chain.add(label, with_article(layer.kind))
            return None
        self._note_policy(label, layer.config.get("dtype"))
        return read(label, layer)

    def preprocessing(self) -> tuple[Preprocessing, str, str]:
        """What the network takes, where that is from, and the layer that says it."""
        if not self._prepared:
            return Preprocessing.caffe(), "the convention of keras.applications", ""
        values = -self._offset / self._scale, 1 / self._scale
        mean, std = (tuple(map(float, np.broadcast_to(each, 3))) for each in values)
        return Preprocessing(mean, std, self._order), f"the file ({', '.join(self._prepared)})", self._prepared[0]

    def _note_policy(self, label: str, dtype: Any) -> None:
        """What a layer computes in, as "float32", or a policy of Keras 2 or 3."""
        name = dtype if dtype is None or isinstance(dtype, str) else dtype.get("config", {}).get("name")
        if name not in (None, "float32", "float64", "float16", "bfloat16", "mixed_float16", "mixed_bfloat16"):
            self.chain.refuse(f"{label} has the dtype policy {name or dtype}, which no network of ours has")
        elif name not in (None, "float32") and name not in self._policies:
            self._policies.add(name)
            self.chain.notes.append(f"{label} computes in {name}; the network here, in float32")

    def _settings(self, label: str, layer: Layer, **defaults: Any) -> dict[str, Any]:
        """A layer's settings, over what Keras takes where a file has none; others that have a value are refused.

        Those of upper case in `defaults` are to have this value.
        """
        known = {name.lower(): value for name, value in defaults.items()}
        found = {**known, **{name: value for name, value in (layer.config or {}).items() if value is not None}}
        for name, value in found.items():
            if name.upper() in defaults:
                self.chain.expect(label, **{name: (value, defaults[name.upper()])})
            elif name not in known and name != "dtype" and not name.endswith(_HARMLESS):
                self.chain.refuse(f"{label} has the setting {name}={value}, which no layer of a VGG has")
        return found

    def _values(self, label: str, layer: Layer, kinds: Mapping[str, str]) -> dict[str, tuple[str, np.ndarray]]:
        """A layer's variables: by kind of ours, the name, as "conv2d/kernel", and the array."""
        values = self._variables(layer)
        if len(values) != len(kinds):
            self.chain.refuse(
                f"{label} must have {len(kinds)} variables ({', '.join(kinds.values())}), got {len(values)}"
            )
        named = zip(kinds.items(), values, strict=False)
        return {kind: (f"{layer.name}/{name}", value) for (kind, name), value in named}

    def _weights(self, label: str, layer: Layer, settings: Mapping[str, Any]) -> dict[str, tuple[str, np.ndarray]]:
        kinds = {"weight": "kernel", **({"bias": "bias"} if settings["use_bias"] else {})}
        return self._values(label, layer, kinds)

    # ---- by class, in lower case -------------------------------------------------------------------------------------

    def _read_inputlayer(self, label: str, layer: Layer) -> None:
        pass

    def _read_conv2d(self, label: str, layer: Layer) -> None:
        found = self._settings(
            label, layer, DATA_FORMAT="channels_last", kernel_size=None, strides=[1, 1], padding="valid",
            dilation_rate=[1, 1], groups=1, activation="linear", use_bias=True,
        )  # fmt: skip
        tensors = self._weights(label, layer, found)
        kernel = tensors.get("weight", ("", np.empty(0)))[1]
        if kernel.ndim != 4:
            return self.chain.refuse(f"{label} must have a kernel of 4 axes, got shape {kernel.shape}")
        height, width, inputs, outputs = kernel.shape
        self.chain.expect(label, kernel_size=(_pair(found["kernel_size"] or [height, width]), [height, width]))
        pads = [0] * 4
        if found["padding"] == "same":  # what is odd stands at the end
            pads = [(height - 1) // 2, height // 2, (width - 1) // 2, width // 2]
        elif found["padding"] != "valid":
            self.chain.refuse(f"{label} must have padding 'same' or 'valid', got {found['padding']!r}")
        self.chain.conv(
            label, tensors, (outputs, inputs, height, width), strides=_pair(found["strides"]), pads=pads,
            dilation=_pair(found["dilation_rate"]), groups=found["groups"],
        )  # fmt: skip
        self._activation(label, found["activation"])

    def _read_dense(self, label: str, layer: Layer) -> None:
        found = self._settings(label, layer, activation="linear", use_bias=True)
        tensors = self._weights(label, layer, found)
        kernel = tensors.get("weight", ("", np.empty(0)))[1]
        if kernel.ndim != 2:
            return self.chain.refuse(f"{label} must have a kernel of 2 axes, got shape {kernel.shape}")
        self.hwc = self.hwc or not self.chain.has_fc
        self.chain.fc(label, tensors, *kernel.shape)
        self._activation(label, found["activation"])

    def _activation(self, label: str, activation: Any) -> None:
        known = isinstance(activation, str)
        self.chain.activation(label, activation if known else f"{_class_of(activation)} (not Keras' own)")

    def _read_activation(self, label: str, layer: Layer) -> None:
        self._activation(label, self._settings(label, layer, activation="linear")["activation"])

    def _read_relu(self, label: str, layer: Layer) -> None:
        self._settings(label, layer, MAX_VALUE=None, NEGATIVE_SLOPE=0, THRESHOLD=0)
        self.chain.activation(label, "relu")

    def _read_softmax(self, label: str, layer: Layer) -> None:
        self._settings(label, layer, AXIS=-1)
        self.chain.activation(label, "softmax")

    def _read_batchnormalization(self, label: str, layer: Layer) -> None:
        found = self._settings(label, layer, axis=-1, epsilon=1e-3, center=True, scale=True, RENORM=False)
        if found["axis"] not in _LAST:
            self.chain.refuse(f"{label} must have the axis of the channels, -1, got {found['axis']}")
        kinds = {"scale": "gamma", "shift": "beta", "mean": "moving_mean", "variance": "moving_variance"}
        if not found["scale"]:
            del kinds["scale"]
        if not found["center"]:
            del kinds["shift"]
        values = {kind: value for kind, (_, value) in self._values(label, layer, kinds).items()}
        names = [f"{layer.name}/{kind}" for kind in ("gamma", "beta", "moving_mean", "moving_variance")]
        if len(values) == len(kinds):
            self.chain.batch_norm(label, names, epsilon=found["epsilon"], **values)

    def _read_maxpooling2d(self, label: str, layer: Layer) -> None:
        found = self._settings(
            label, layer, DATA_FORMAT="channels_last", pool_size=[2, 2], strides=None, padding="valid"
        )  # fmt: skip
        up = found["padding"] == "same"
        if up and self.chain.size is None:
            self.chain.refuse(f"{label} must have padding 'valid' where the input has no fixed shape, got 'same'")
        elif not up:
            self.chain.expect(label, padding=(found["padding"], "valid"))
        extents = found["pool_size"]
        self.chain.max_pool(label, _pair(extents), _pair(found["strides"] or extents), [0] * 4, up)

    def _read_globalaveragepooling2d(self, label: str, layer: Layer) -> None:
        found = self._settings(label, layer, DATA_FORMAT="channels_last", keepdims=False)
        self.chain.average(label, flat=not found["keepdims"])

    def _read_flatten(self, label: str, layer: Layer) -> None:
        self._settings(label, layer, DATA_FORMAT="channels_last")
        self.chain.flatten(label)

    def _read_zeropadding2d(self, label: str, layer: Layer) -> None:
        found = self._settings(label, layer, DATA_FORMAT="channels_last", padding=[[1, 1], [1, 1]])
        self.chain.pad(label, [each for pair in _pair(found["padding"]) for each in _pair(pair)])

    def _read_rescaling(self, label: str, layer: Layer) -> None:
        found = self._settings(label, layer, scale=1.0, offset=0.0)
        self._prepare(label, layer, found["scale"], found["offset"])

    def _read_normalization(self, label: str, layer: Layer) -> None:
        found = self._settings(label, layer, axis=-1, mean=None, variance=None, INVERT=False)
        mean, variance = found["mean"], found["variance"]
        if mean is None:
            mean, variance = self._variables(layer)[:2]
        axis = found["axis"] if (layer.config or {}).get("axis", -1) is not None else None
        if axis not in _LAST and np.size(mean) != 1:
            self.chain.refuse(f"{label} must have the axis of the channels, -1, got {axis}")
        std = np.maximum(np.sqrt(np.asarray(variance, float)), 1e-7)
        self._prepare(label, layer, 1 / std, -np.asarray(mean, float) / std)

    def _read_reversal(self, label: str, layer: Layer) -> None:
        if self.chain.has_begun:
            return self.chain.add(label, "a reversal of the channels")
        self._scale, self._offset = self._scale[::-1], self._offset[::-1]
        self._order = "RGB" if self._order == "BGR" else "BGR"
        self._prepared.append(label)
        return None

    def _prepare(self, label: str, layer: Layer, scale: Any, offset: Any) -> None:
        """value * scale + offset, before everything else; what comes in first is 0 to 255."""
        if self.chain.has_begun:
            return self.chain.add(label, with_article(layer.kind))
        scale, offset = (np.asarray(each, float) for each in (scale, offset))
        fits = all(each.size in (1, 3) and each.shape[-1:] in ((), (each.size,)) for each in (scale, offset))
        if not fits or not (scale > 0).all() or not np.isfinite(scale).all() or not np.isfinite(offset).all():
            return self.chain.refuse(
                f"{label} must have scales greater than 0 and offsets, 1 or 3 of them along the channels, "
                f"got {scale.tolist()} and {offset.tolist()}"
            )
        scale, offset = scale.reshape(-1), offset.reshape(-1)
        self._scale, self._offset = self._scale * scale, self._offset * scale + offset
        self._prepared.append(label)
        return None


def _pair(value: Any) -> list[Any]:
    """Of H and W, where one number may be for both."""
    return list(value) if isinstance(value, list) else [value, value]


def _class_of(activation: Any) -> str:
    if not isinstance(activation, dict):
        return "nameless"
    config = activation.get("config")
    return str(config if isinstance(config, str) else activation.get("class_name"))


def input_size(layers: Sequence[Layer]) -> tuple[int, int] | None:
    """H and W of what the first layer reads, where it says them."""
    shape = layers[0].shape if layers else None
    if shape is None or len(shape) != 4 or not all(isinstance(extent, int) for extent in shape[1:3]):
        return None
    return shape[1], shape[2]  # type: ignore[return-value]
