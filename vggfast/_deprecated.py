"""Public names that have moved: the old ones work for one release, with a warning that says the new one."""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

_T = TypeVar("_T")


def renamed(module: str, names: Mapping[str, str]) -> Callable[[str], Any]:
    """The ``__getattr__`` of a module whose `names` have moved.

    Args:
        module: its own name, ``__name__``.
        names: an old name to where the object is now, "package.module:name".
    """

    def getattr_(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        where, _, new = names[name].partition(":")
        warnings.warn(f"{module}.{name} is now {where}.{new}", DeprecationWarning, stacklevel=2)
        return getattr(importlib.import_module(where), new)

    return getattr_


def renamed_attributes(**names: str) -> Callable[[type[_T]], type[_T]]:
    """A decorator of a class whose attributes are now called otherwise: old="new"."""

    def getter(old: str, new: str) -> property:
        def get(self: Any) -> Any:
            warnings.warn(f"{old} of {type(self).__name__} is now {new}", DeprecationWarning, stacklevel=2)
            return getattr(self, new)

        return property(get, doc=f"The former name of {new}.")

    def decorate(cls: type[_T]) -> type[_T]:
        for old, new in names.items():
            setattr(cls, old, getter(old, new))
        return cls

    return decorate


def renamed_argument(old: str, new: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator of a function whose keyword `old` is now `new`."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if old in kwargs:
                if new in kwargs:
                    raise TypeError(f"{function.__name__} got both {new} and {old}, its former name")
                warnings.warn(f"{old} of {function.__name__} is now {new}", DeprecationWarning, stacklevel=2)
                kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        return call

    return decorate
