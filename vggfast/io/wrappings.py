"""What people wrap a network's state_dict in: a checkpoint around it, and prefixes of its names.

What is unwrapped is never a guess: of two state_dicts in a checkpoint the caller says which, and names are those of the
network only where all of them are behind one prefix.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

# Parts of names, which DataParallel, torch.compile, FSDP and activation checkpointing put in.
_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
# A name behind its prefix: of a VGG, and of a layer of its features saved alone.
_OF_NETWORK = re.compile(r"((?:[^.]+\.)*?)((?:features|classifier|pre_logits|head\.fc)\..+)")
_OF_SEQUENCE = re.compile(r"((?:[^.]+\.)*?)(\d+\.\w+)")
# The beginnings of what has tensors by the network's names in a checkpoint, and is no network.
_ASIDE = ("optim", "exp_avg", "momentum_buffer")
_DEEPEST = 4


def state_dict_in(content: object, source: object, key: str | None = None) -> dict[str, Tensor]:
    """The tensors of the one state_dict in a checkpoint, by the names that the network itself gives them.

    Args:
        content: a state_dict, or a mapping with one in it, such as {"state_dict": ..., "epoch": 3}.
        source: where it is from, for errors: a path, or an argument's name.
        key: which state_dict, where there are several: its key, "model_ema" or "state_dict.teacher"; the last parts of
            it may be a prefix of names.

    Raises:
        ValueError: there is no state_dict or there are several, or one has no plain tensors; the text names it.
    """
    found = dict(_state_dicts(content))
    if key is not None:
        at = next((at for at in sorted(found, key=len, reverse=True) if f"{key}.".startswith(at and f"{at}.")), None)
        if at is None and len(found) == 1:
            at, key = next(iter(found)), f"{next(iter(found))}.{key}"
        if at is None:
            raise ValueError(f"key must be one of {listed(found)} in {source}, got {key!r}")
        key = key[len(at) :].strip(".") or None
    elif len(found) == 1:
        at = next(iter(found))
    elif found:
        raise ValueError(f"{source} holds several state_dicts, {listed(found)}: key, or convert's --key, says which")
    else:
        has = (listed(map(str, content)) or "nothing") if isinstance(content, Mapping) else type(content).__name__
        raise ValueError(f"{source} holds no state_dict: it must be a mapping from names to tensors, got {has}")
    tensors = tensors_of(found[at], source)
    names = plain_names({name: tensor.shape for name, tensor in tensors.items()}, source, key)
    return {ours: tensors[theirs] for ours, theirs in names.items()}


def _state_dicts(
    content: object, path: tuple[str, ...] = (), without: set[tuple[int, int]] | None = None
) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """Each mapping from names to tensors, with its key. `without` keeps those that have none: (mapping, depth)."""
    without = set() if without is None else without
    if not isinstance(content, Mapping) or len(path) > _DEEPEST or (id(content), len(path)) in without:
        return
    arrays = [name for name, value in content.items() if isinstance(value, Tensor | np.ndarray)]
    if any(isinstance(name, str) and "." in name for name in arrays) or (not path and 0 < len(arrays) == len(content)):
        yield ".".join(path), content
        return
    found = False
    for name, value in content.items():
        if isinstance(name, str) and not name.lower().startswith(_ASIDE):
            for each in _state_dicts(value, (*path, name), without):
                found = True
                yield each
    if not found:
        without.add((id(content), len(path)))


def tensors_of(content: Mapping[Any, Any], source: object) -> dict[str, Tensor]:
    """The tensors of a mapping, which must all be plain ones. Raises ValueError with the name of another."""
    tensors = {}
    for name, value in content.items():
        if not isinstance(name, str):
            raise ValueError(f"{source} must have names of tensors, got {name!r}")
        if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
            value = torch.from_numpy(value.astype(value.dtype.newbyteorder("=")))
        if not isinstance(value, Tensor):
            raise ValueError(
                f"{source}: {name} must be a tensor, got {'None' if value is None else type(value).__name__}"
            )
        if type(value) not in (Tensor, nn.Parameter) or value.layout is not torch.strided or value.is_quantized:
            what = f"{type(value).__name__} of {value.dtype} and {value.layout}"
            raise ValueError(f"{source}: {name} must be a plain tensor, got a {what}")
        if value.is_meta:
            raise ValueError(f"{source}: {name} must have values, got a tensor on the meta device")
        tensors[name] = value.detach()
    return tensors


def plain_names(shapes: Mapping[str, Sequence[int]], source: object, key: str | None = None) -> dict[str, str]:
    """The names in a state_dict by those that a VGG itself gives; each by itself where they are no VGG's.

    Args:
        shapes: by name.
        source: for errors.
        key: a prefix of names, whose others are left out.

    Raises:
        ValueError: no name has this prefix.
    """
    names = [name for name in shapes if key is None or name.startswith(f"{key}.")]
    if not names and key is not None:
        raise ValueError(f"key must be a prefix of names in {source} ({listed(shapes)}), got {key!r}")
    names = [name[len(key) + 1 if key else 0 :] for name in names]
    whole = f"{key}." if key else ""
    counted = [name for name in names if name != "n_averaged"]  # the counter of torch's AveragedModel
    if counted and all(name.startswith("module.") for name in counted):
        names = counted
    bare = [".".join(part for part in name.split(".") if part not in _WRAPPERS) for name in names]
    plain = _behind_prefix(_OF_NETWORK, bare)
    if plain is None and (plain := _behind_prefix(_OF_SEQUENCE, bare)) is not None:
        first = next((name for name, ours in zip(names, plain, strict=True) if ours == "0.weight"), None)
        features = first is not None and len(shapes[whole + first]) == 4
        plain = [f"features.{name}" for name in plain] if features else None
    if plain is None or len(set(plain)) < len(plain):
        plain = names
    return {ours: whole + theirs for ours, theirs in zip(plain, names, strict=True)}


def _behind_prefix(pattern: re.Pattern[str], names: Sequence[str]) -> list[str] | None:
    """What is behind the prefix of all names; None where they have no common one.

    One with a number is no prefix but a place in a sequence, whose other layers may have no tensors.
    """
    found = [pattern.fullmatch(name) for name in names]
    prefixes = {match[1] if match else None for match in found}
    if len(prefixes) != 1 or None in prefixes or any(part.isdigit() for part in found[0][1].split(".")):  # type: ignore[index]
        return None
    return [match[2] for match in found if match]


def listed(names: Any, most: int = 4) -> str:
    """The first of some names, and how many more there are."""
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
