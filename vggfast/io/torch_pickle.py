"""Pickles of torch's files, read without their code: they make plain values and the tensors that their file holds.

A pickle is a program. Here it may make containers, numbers, texts and tensors, and change containers; what it asks for
is bounded by its own length.
"""

from __future__ import annotations

import io
import math
import pathlib
import pickle
import pickletools
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

_STORAGES = {
    "Double": torch.float64, "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16,
    "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
    "Bool": torch.bool, "ComplexFloat": torch.complex64, "ComplexDouble": torch.complex128, "Untyped": torch.uint8,
}  # fmt: skip
# Of operations, tuples in a tuple, values that are copied, and axes.
_MOST_OPERATIONS, _MOST_NESTED, _MOST_COPIED, _MOST_AXES = 500_000, 5_000, 8 << 20, 64
_COUNTED = (list, tuple, set, frozenset, dict, str, bytes, bytearray)
# What torch makes other tensors by, in words.
_OTHERS = {
    "_rebuild_sparse_tensor": "a sparse tensor", "_rebuild_qtensor": "a quantised tensor",
    "_rebuild_meta_tensor_no_storage": "a tensor on the meta device", "_rebuild_nested_tensor": "a nested tensor",
    "_rebuild_wrapper_subclass": "a tensor of a class of its own",
}  # fmt: skip


class _Storage(NamedTuple):
    """Values of a file, as one axis."""

    values: Tensor


def _operations(stream: Any) -> Iterator[Any]:
    """One pickle's operations and their arguments."""
    try:
        for operation, argument, _ in pickletools.genops(stream):
            yield operation.name, argument
    except ValueError as error:
        why = "a name in it is no UTF-8" if isinstance(error, UnicodeError) else error
        raise ValueError(f"its pickle is broken: {why}") from error


def check_operations(stream: Any) -> None:
    """Reads one pickle's operations, none of which may ask for memory that it does not fill."""
    for count, (name, argument) in enumerate(_operations(stream)):
        if name.endswith("PUT") and isinstance(argument, int) and argument > count:
            raise ValueError(f"its pickle keeps the {argument}th of {count} values")
        if count == _MOST_OPERATIONS:
            raise ValueError(f"its pickle has more than {_MOST_OPERATIONS} operations")


def unpickled(text: bytes, values_of: Callable[[str, torch.dtype, int], Tensor], most: int | None) -> Any:
    """What a pickle holds.

    Args:
        text: the pickle.
        values_of: the values of a storage by its key, dtype and number of values.
        most: bytes that all its tensors may have; None where they are not wanted, but only their storages.
    """
    check_operations(io.BytesIO(text))
    return _Unpickler(text, values_of, most).load()


class _Dtype:
    """numpy's dtype of numbers or texts, of which a pickle says the order of bytes last."""

    def __init__(self, code: str, *_: Any) -> None:
        self.dtype = np.dtype(str(code)[:8])
        if self.dtype.kind not in "fiubcSU":
            raise ValueError("it holds a NumPy array of other things than numbers")

    def __setstate__(self, state: Any) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array(np.ndarray):
    """numpy's array as a pickle makes it: empty at first, and then of a state that is checked."""

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, fortran, content = state
        array = _array(content, kind, shape, "F" if fortran else "C")
        super().__setstate__((1, array.shape, array.dtype, bool(fortran), content))  # type: ignore[arg-type]


class _Values:
    """An object whose class is not loaded: its attributes alone."""

    def __setstate__(self, state: Any) -> None:
        self.__dict__.update(state)


class _Parameter:
    """Of torch's tensors by a class of theirs: the tensor."""

    def __new__(cls, data: Any = None, *_: Any) -> Any:
        return data


def _array(content: Any, kind: Any, shape: Any, order: Any = "C") -> np.ndarray:
    if not isinstance(kind, _Dtype) or not isinstance(content, bytes | bytearray):
        raise ValueError("it holds a NumPy array of other things than numbers")
    if math.prod(shape) * kind.dtype.itemsize != len(content):
        raise ValueError(f"it holds an array of numpy's of shape {shape} in {len(content)} bytes")
    return np.ndarray(tuple(shape), kind.dtype, content, order="F" if order == "F" else "C")


def _bytes(text: Any = "", encoding: str = "latin1") -> bytes:
    """Of what a text says, or of bytes; a number of them is not taken."""
    if isinstance(text, str):
        return text.encode("latin1" if encoding.startswith("latin") else "utf-8")
    return b"".join((text,))


def _container(kind: Callable[..., Any]) -> Callable[..., Any]:
    def made(*of: Any) -> Any:
        if not all(type(part) in (list, tuple, set, frozenset, dict, OrderedDict) for part in of):
            raise ValueError(f"its pickle makes a {kind.__name__} of what is no list")
        return kind(*of)

    return made


# What a pickle may call, by its name: each makes a value and does nothing else.
_MAKERS: dict[str, Callable[..., Any]] = {
    **{f"collections.{kind.__name__}": _container(kind) for kind in (OrderedDict, Counter)},
    **{f"builtins.{kind.__name__}": _container(kind) for kind in (set, list, dict, frozenset)},
    "collections.defaultdict": lambda *_: defaultdict(None), "builtins.complex": complex, "builtins.slice": slice,
    "builtins.bytearray": lambda *of: bytearray(_bytes(*of)), "builtins.bytes": _bytes, "_codecs.encode": _bytes,
    "argparse.Namespace": _Values,
    **{f"builtins.{name}": lambda *of: of for name in ("range", "xrange")},
    **{f"datetime.{name}": lambda *of: of for name in ("date", "datetime", "timedelta", "timezone")},
    "torch.Size": _container(tuple), "torch.device": lambda *of: ":".join(map(str, of)),
    "torch.serialization._get_layout": lambda name: name,
    "torch.Tensor": _Parameter, "torch.nn.parameter.Parameter": _Parameter, "torch.nn.parameter.Buffer": _Parameter,
    "torch._utils._rebuild_parameter": _Parameter, "torch._utils._rebuild_parameter_with_state": _Parameter,
    "numpy.dtype": _Dtype, "numpy.ndarray": lambda *_: None,
    "numpy.core.multiarray.scalar": lambda kind, content: _array(content, kind, ())[()],
    "numpy.core.multiarray._reconstruct": lambda *_: np.ndarray.__new__(_Array, (0,)),
    "numpy.core.numeric._frombuffer": _array,
    **{
        f"{module}.{kind}": lambda *parts: pathlib.PurePath(*parts)
        for module in ("pathlib", "pathlib._local")
        for kind in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
    },
}  # fmt: skip
_RENAMED = {"__builtin__": "builtins", "numpy._core.multiarray": "numpy.core.multiarray",
            "numpy._core.numeric": "numpy.core.numeric"}  # fmt: skip


def _signed(tensor: Tensor, signs: Any = None, *_: Any) -> Tensor:
    """A tensor of values that are kept with another sign, which torch does for views of complex conjugates."""
    kept = dict(signs or {})
    tensor = tensor.conj() if kept.get("conj") else tensor
    return tensor.neg() if kept.get("neg") else tensor


_READER: Any = pickle._Unpickler  # of whose parts its type declarations say nothing


class _Unpickler(_READER):
    """The reader of pickles that is written in Python, whose operations can be bounded."""

    dispatch = dict(_READER.dispatch)  # noqa: RUF012

    def __init__(self, text: bytes, values_of: Callable[[str, torch.dtype, int], Tensor], most: int | None) -> None:
        super().__init__(io.BytesIO(text))
        self._values_of, self._most, self._copied = values_of, most, 0
        self._nested: dict[int, tuple[int, Any]] = {}  # by id: how many tuples are in a tuple, and itself

    def persistent_load(self, place: Any) -> _Storage:
        match place:
            case ("storage", torch.dtype() as dtype, str(key), str(), int(count), *rest) if rest in ([], [None]):
                return _Storage(self._values_of(key, dtype, count))
        raise ValueError("its pickle refers to what is no storage")

    def find_class(self, module: str, name: str) -> Any:
        """What stands for a global."""
        if module in ("torch", "torch.storage") and name.endswith("Storage") and name[:-7] in _STORAGES:
            return _STORAGES[name[:-7]]
        if module == "torch" and isinstance(dtype := getattr(torch, name, None), torch.dtype):
            return dtype
        if module == "torch._utils" and name in _OTHERS:
            raise ValueError(f"it holds {_OTHERS[name]}: save plain tensors instead")
        if module == "torch._utils" and name in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3"):
            return self._tensor
        if module == "torch._tensor" and name == "_rebuild_from_type_v2":
            return self._with_attributes
        found = _MAKERS.get(f"{_RENAMED.get(module, module)}.{name}")
        if found is None:
            raise ValueError(
                f"it holds an object of {module}.{name}, whose code would run: save the network's state_dict alone"
            )
        return found

    def _tensor(self, storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Tensor:
        """The tensor of some values of a storage; `rest`: whether it requires a gradient, hooks, dtype, signs."""
        numbers = (offset, *size, *stride) if isinstance(size, tuple) and isinstance(stride, tuple) else (-1,)
        if not isinstance(storage, _Storage) or not all(type(number) is int and number >= 0 for number in numbers):
            raise ValueError("its pickle makes a tensor of what is no storage, or of a negative size")
        if len(size) != len(stride) or len(size) > _MOST_AXES:
            raise ValueError(f"a tensor of {len(size)} axes has {len(stride)} strides")
        values = storage.values
        if self._most is None:
            return values
        dtype, *signs = rest[2:] if len(rest) > 2 and isinstance(rest[2], torch.dtype) else (values.dtype, *rest[2:])
        values = values.view(dtype)  # storages of _rebuild_tensor_v3 have none
        last = offset + sum((extent - 1) * step for extent, step in zip(size, stride, strict=True))
        if math.prod(size) and last >= len(values):
            raise ValueError(f"a tensor of shape {tuple(size)} reaches past the {len(values)} values of its storage")
        self._most -= math.prod(size) * values.element_size()
        if self._most < 0:
            raise ValueError("its tensors are larger together than a file of its size may hold")
        found = values.as_strided(size, stride, offset) if math.prod(size) else values.new_empty(size)
        return _signed(found, *signs)

    def _with_attributes(self, make: Any, kind: Any, args: Any, _: Any) -> Any:
        """A tensor with attributes, which are not wanted."""
        if kind is not _Parameter or make not in (self._tensor, _Parameter):
            raise ValueError("it holds a tensor of a class of its own: save plain tensors instead")
        return make(*args)

    def load_build(self) -> None:
        state, made = self.stack.pop(), self.stack[-1]
        if isinstance(made, _Dtype | _Array | _Values):  # of others, such as Parameters, it is not wanted
            made.__setstate__(state)

    def load_reduce(self) -> None:
        self._copied += sum(len(part) for part in self.stack[-1] if isinstance(part, _COUNTED))
        if self._copied > _MOST_COPIED:
            raise ValueError("its pickle copies its values again and again")
        _READER.load_reduce(self)

    def load_setitem(self) -> None:
        self._check_dictionary(self.stack[-3])
        _READER.load_setitem(self)

    def load_setitems(self) -> None:
        self._check_dictionary(self.metastack[-1][-1])
        _READER.load_setitems(self)

    def _check_dictionary(self, made: Any) -> None:
        if not isinstance(made, dict):
            raise ValueError("its pickle sets items of what is no dictionary")

    def _nesting(load: Callable[[Any], None]) -> Callable[[Any], None]:  # noqa: N805
        """`load`, where no tuple has so many tuples in it that its hash takes the whole stack, or for ever."""

        def checked(self: Any) -> None:
            load(self)
            made = self.stack[-1]
            if isinstance(made, tuple | frozenset):
                count = sum(self._nested.get(id(part), (1,))[0] for part in made if isinstance(part, tuple | frozenset))
                if count > _MOST_NESTED:
                    raise ValueError(f"its pickle has more than {_MOST_NESTED} tuples in a tuple")
                if count:
                    self._nested[id(made)] = count + 1, made

        return checked

    for code in (pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3, pickle.FROZENSET, pickle.OBJ, pickle.INST):
        dispatch[code[0]] = _nesting(dispatch[code[0]])
    dispatch[pickle.REDUCE[0]] = dispatch[pickle.NEWOBJ[0]] = _nesting(load_reduce)
    dispatch |= {pickle.BUILD[0]: load_build, pickle.SETITEM[0]: load_setitem, pickle.SETITEMS[0]: load_setitems}
    del dispatch[pickle.NEWOBJ_EX[0]]
