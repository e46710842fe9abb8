"""The argument `weights` of the functions with torchvision's names: its forms, and what of it a network takes."""

from __future__ import annotations

import functools
import importlib
import json
import re
import warnings
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vggfast.io import WeightFile, check_finite, listed, state_dict_in
from vggfast.preprocessing import Preprocessing
from vggfast.quantisation import QUANTISATION, Quantisation, widened

_FORMS = "weights must be a path, a state_dict or a torchvision weights enum (torchvision.models.VGG16_Weights.DEFAULT)"
_LAST = "classifier.6.weight"


def in_one_form(weights: Any, pretrained: Any, name: str) -> Any:
    """`weights`, where it may also be said in torchvision's older ways: None, a path, a state_dict, or an enum.

    Args:
        weights: one of these; True or False as `pretrained`; or an enum's name, "DEFAULT" or "VGG16_Weights.DEFAULT",
            where no file has it.
        pretrained: torchvision's before version 0.13: True for IMAGENET1K_V1, False for None. None where it is absent.
        name: of the network, such as "vgg16_bn".

    Raises:
        ValueError, TypeError: both are given, they are none of these, or they are another network's; the text says it.
        ImportError: an enum is named, and torchvision is not there.
    """
    if pretrained is not None:
        if weights is not None:
            raise ValueError(f"pretrained must be left out where weights are given, got {pretrained!r}")
        if not isinstance(pretrained, bool):
            raise TypeError(f"pretrained must be True or False, got {pretrained!r}")
        weights = pretrained
    if isinstance(weights, bool):
        weights = "IMAGENET1K_V1" if weights else None
    expected = f"{name.upper()}_Weights"
    named = isinstance(weights, str) and re.fullmatch(r"(?:(\w+_Weights)\.)?(DEFAULT|IMAGENET1K_\w+)", weights)
    if named and not Path(weights).is_file():
        weights = _member(named[1] or expected, named[2])
    kind = type(weights).__name__
    if kind.endswith("_Weights") and kind != expected:
        raise ValueError(f"weights of {name} must be of {expected}, got {weights}")
    return weights


def by_place(build: Callable[..., Any]) -> Callable[..., Any]:
    """A function that takes `weights` and `progress` without their names too, as torchvision's before 0.13."""

    @functools.wraps(build)
    def wrapped(*first: Any, **arguments: Any) -> Any:
        if len(first) > 2:
            what = f"{build.__name__} takes weights and progress without their names"
            raise TypeError(f"{what}, got {len(first)} arguments")
        return build(**dict(zip(("weights", "progress"), first, strict=False)), **arguments)

    return wrapped


def _member(kind: str, member: str) -> Any:
    """Of an enum of torchvision's."""
    try:
        members = getattr(importlib.import_module("torchvision.models"), kind, None)
    except (ImportError, RuntimeError) as error:  # the second where it was built for another torch
        raise ImportError(
            f"weights {kind}.{member} come from the package torchvision, which cannot be imported ({error}): "
            "install the one that is built for your torch, or give a file"
        ) from error
    if members is None or member not in members.__members__:
        allowed = "an enum of torchvision's" if members is None else f"one of {', '.join(members.__members__)}"
        raise ValueError(f"weights must be {allowed}, got {kind}.{member}")
    return members[member]


def state_dict_of(
    weights: Any, progress: bool = True, key: str | None = None, allow_non_finite: bool = False
) -> dict[str, Tensor]:
    """The state_dict behind a path, a mapping, or an object with torchvision's ``get_state_dict``.

    Args:
        weights: one of these; a checkpoint around the state_dict, and prefixes of all names, are taken off.
        progress: whether a download shows its progress.
        key: which state_dict, where there are several (see :func:`vggfast.io.state_dict_in`).
        allow_non_finite: take infinities, NaN and negative variances out of a file.

    Raises:
        FileNotFoundError, ValueError, TypeError: no such file, or no weights there; the text names it.
        OSError: they could not be downloaded.
    """
    return read_weights(weights, progress, key, allow_non_finite)[0]


def read_weights(
    weights: Any, progress: bool = True, key: str | None = None, allow_non_finite: bool = True
) -> tuple[dict[str, Tensor], Preprocessing | None, Quantisation | None]:
    """As :func:`state_dict_of`, and what the network takes, and its scales of 8 bits, where a file says them."""
    if isinstance(weights, str | PathLike):
        if not Path(weights).is_file():
            raise FileNotFoundError(f"{weights}: no such weight file; {_FORMS}")
        file = WeightFile(Path(weights), key, allow_non_finite=allow_non_finite)
        tensors, arguments, quantisation = file.tensors(), file.arguments, None
        if isinstance(arguments, Mapping) and arguments.get(QUANTISATION) is not None:
            try:
                tensors, quantisation = widened(tensors, arguments[QUANTISATION])
            except ValueError as error:
                raise ValueError(f"{file.path}: {error}") from error
        return tensors, _preprocessing_in(file), quantisation
    if isinstance(weights, Mapping):
        return state_dict_in(weights, "weights", key), None, None
    if not hasattr(weights, "get_state_dict"):
        raise TypeError(f"{_FORMS}, got {type(weights).__name__}")
    try:
        found = weights.get_state_dict(progress=progress, check_hash=True)
    except OSError as error:
        raise OSError(f"{weights} could not be downloaded: {error}") from error
    except Exception as error:  # of torch's kinds, where what an earlier download left is no weight file
        folder = Path(torch.hub.get_dir(), "checkpoints")
        raise ValueError(f"{weights} cannot be read: remove its file from {folder}, and it comes anew") from error
    return state_dict_in(found, weights, key), None, None


def _preprocessing_in(file: WeightFile) -> Preprocessing | None:
    """Of a file of ours, or of one that we wrote for torchvision."""
    try:
        extra = {**(file.arguments or {}).get("extra", {})}
        stored = extra.get("preprocessing", json.loads(file.metadata.get("preprocessing", "null")))
        return None if stored is None else Preprocessing.from_dict(stored)
    except Exception as error:  # a damaged file's may be of any type
        raise ValueError(f"{file.path}: its preprocessing must be a Preprocessing's values") from error


def classes_in(state: Mapping[str, Tensor]) -> int | None:
    """How many there are of a network with these tensors; None where it has no FC layers."""
    return len(state[_LAST]) if _LAST in state and state[_LAST].dim() else None


def fill(
    model: nn.Module, state: Mapping[str, Tensor], source: object, name: str, allow_non_finite: bool = False
) -> None:
    """Copies a state_dict into a network of ours, whose dtypes stay.

    Convolutions that have no biases in any layer get zeros for them. FC layers are left out, with a warning, where the
    network has none; those of the linear head are the dense head's too, and the other way round.

    Args:
        model: the network.
        state: the tensors.
        source, name: what they are from and what the network is, for errors.
        allow_non_finite: take infinities, NaN and negative variances.

    Raises:
        ValueError: a tensor is missing, left over, not finite, or of another shape; the text names it.
    """
    expected = model.state_dict()
    state = dict(state)
    heads, wanted = ([key for key in each if key.startswith("classifier.")] for each in (state, expected))
    if heads and not wanted:
        warnings.warn(f"{source}: the FC layers are left out, as the network has none (head='none')", stacklevel=3)
        state = {key: tensor for key, tensor in state.items() if key not in heads}
    biases = {key for key in expected if key.startswith("features.") and key.endswith(".bias")
              and expected[f"{key[:-4]}weight"].dim() == 4}  # fmt: skip
    optional = {key for key in expected if key.endswith("num_batches_tracked")}
    absent = optional | (set() if biases & state.keys() else biases)
    state = {**{key: torch.zeros_like(expected[key]) for key in absent}, **state}
    for key in {*heads} & state.keys() & expected.keys():
        shape = expected[key].shape
        if (state[key].shape[:1], state[key].numel()) == (shape[:1], shape.numel()):
            state[key] = state[key].reshape(shape)
    if what := misfit(state, expected):
        raise ValueError(f"{source} must have the tensors of {name}: {what}{_hint(state, expected)}")
    if not allow_non_finite:
        check_finite(source, state)  # as the FC layers of VGG16_Weights.IMAGENET1K_FEATURES are not
    model.load_state_dict(state)
    for key, tensor in expected.items():
        if not (allow_non_finite or tensor.isfinite().all()):
            raise ValueError(f"{source}: {key} must be finite in {tensor.dtype}, and has values that are too large")


def _hint(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """What takes a state_dict that does not fit, where that is known."""
    first = next(iter(expected))
    prefixes = [theirs.removesuffix(f".{first}") for theirs in state if theirs.endswith(f".{first}")]
    if prefixes:
        return f" (key={prefixes[0]!r} takes what is behind this prefix alone)"
    missing = expected.keys() - state.keys()
    alone = missing and missing == {key for key in expected if key.startswith("classifier.")}
    return " (head='none' takes convolutions alone)" if alone else ""


def misfit(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """What of a state_dict does not fit a network's own, in words; "" where all does."""
    missing, left_over = [key for key in expected if key not in state], [key for key in state if key not in expected]
    if missing or left_over:
        named = (("missing:", missing), ("left over:", left_over))
        return "; ".join(f"{kind} {listed(each)}" for kind, each in named if each)
    for key, tensor in state.items():
        if tensor.shape != expected[key].shape:
            return f"{key} must have shape {tuple(expected[key].shape)}, got {tuple(tensor.shape)}"
        if expected[key].is_floating_point() and not tensor.is_floating_point():
            return f"{key} must have a floating-point dtype, got {tensor.dtype}"
    return ""
