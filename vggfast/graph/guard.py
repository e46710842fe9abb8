"""Whether a module runs the code of its class, and no other: no subclass's, no hook's, nothing put in its place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from inspect import getattr_static
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.modules import module as _module
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from vggfast._checks import PLAIN

# The methods that a call passes through. A subclass may have the others of nn.Module of its own.
_CALLED = ("__call__", "_wrapped_call_impl", "_call_impl", "__getattribute__", "__getattr__", "forward")
_HARMLESS = {"reset_parameters", "__constants__"}
# Classes of torchvision's, an optional package: module and name. Of the methods above each has a forward of its own.
_FROZEN = ("torchvision.ops.misc", "FrozenBatchNorm2d")
_TORCHVISIONS = {("torchvision.models.vgg", "VGG"), _FROZEN}

_Class = TypeVar("_Class", bound=nn.Module)
_REPLACED = object()
_known: dict[type[nn.Module], dict[str, Any]] = {}


def know(kind: type[_Class]) -> type[_Class]:
    """A decorator: the guard trusts this class, as its code is now, but for what others have put there before."""
    above = kind.__mro__[: kind.__mro__.index(nn.Module)]
    own = {name for each in above for name in vars(each) if not hasattr(nn.Module, name)} - _HARMLESS
    code = {name: getattr_static(kind, name, None) for name in (*_CALLED, *own)}
    _known[kind] = {name: each if _is_of_a_library(each) else _REPLACED for name, each in code.items()}
    return kind


def _is_of_a_library(code: object) -> bool:
    room = getattr(code, "__globals__", {}).get("__name__", "torch")  # what is no function of Python's has none
    return room.partition(".")[0] in ("torch", "torchvision", "vggfast")


def is_bare(module: nn.Module) -> bool:
    """Whether nobody watches or replaces this module's own forward."""
    return not (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
    )


def runs_no_others(model: nn.Module) -> bool:
    """Whether a step of training calls no code but libraries' in this model: no hook on a module or a parameter, and no
    method of somebody's own."""
    return (
        not any_global_hooks()
        and all(is_bare(each) and next(_replaced(each), None) is None and _is_library(each) for each in model.modules())
        and not any(each._backward_hooks or each._post_accumulate_grad_hooks for each in model.parameters())
    )


def _is_library(module: nn.Module) -> bool:
    return all(_is_of_a_library(getattr_static(type(module), name, None)) for name in _CALLED)


def is_optimized(module: object) -> bool:
    """Whether torch.compile made it of a module. Its class is not imported, for that takes seconds."""
    return (type(module).__module__, type(module).__name__) == ("torch._dynamo.eval_frame", "OptimizedModule")


def any_global_hooks() -> bool:
    return bool(
        _module._global_forward_hooks
        or _module._global_forward_pre_hooks
        or _module._global_backward_hooks
        or _module._global_backward_pre_hooks
    )


def check(path: str, module: nn.Module | None, backward: bool = False, hooks: bool = True) -> None:
    """Raises TypeError where a module may compute something else than its class says.

    Args:
        path: the module's name in the text.
        module: the module itself; its children are not looked at.
        backward: whether gradients count too, and so hooks on them.
        hooks: False lets any hook pass, for a reader that keeps them.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"{path} must be a module, got {kind_of(module)}")
    _raise_first(path, module, _oddities(module, backward, hooks))


def kind_of(value: object) -> str:
    """Of what class a value is, for errors; of a VGG also whose."""
    kind = type(value)
    return "None" if value is None else f"{kind.__module__}.VGG" if kind.__name__ == "VGG" else kind.__name__


def check_hooks(path: str, module: nn.Module) -> None:
    """The part of :func:`check` that looks at hooks."""
    _raise_first(path, module, _hooks(module, backward=False))


def check_replaced(path: str, module: nn.Module) -> None:
    """The part of :func:`check` that looks at what was put into the module itself in place of its class' code."""
    _raise_first(path, module, _replaced(module))


def _raise_first(path: str, module: nn.Module, oddities: Iterator[str]) -> None:
    for strange in oddities:
        name = type(module).__name__
        raise unknown(path, f"{name}, {strange}", "what it computes only the model itself knows, so call the model")


def unknown(path: str, module: object, why: str) -> TypeError:
    """The error for a module that is not known, or not known in its place."""
    try:
        text = str(module)
    except Exception:  # others' code, which may look at what is missing
        text = type(module).__name__
    return TypeError(f"{path} is {' '.join(text.split())}: {why}")


def _oddities(module: nn.Module, backward: bool, hooks: bool) -> Iterator[str]:
    kind = known_class(module)
    if kind is None:
        yield "a class that is not known"
        return
    above = type(module).__mro__[: type(module).__mro__.index(kind)]
    names = {name for each in above for name in vars(each) if hasattr(kind, name) or name == "training"}
    if own := {name for name in names if _counts(name, module)}:
        mode = ", and which is in training mode" if own <= {"train", "eval"} and module.training else ""
        yield f"a {kind.__name__} whose {_all(own)} is its own{mode}"
    if patched := {name for name, code in _known[kind].items() if getattr_static(kind, name, None) is not code}:
        yield f"and the {_all(patched)} of that class was replaced"
    yield from _replaced(module)
    if hooks:
        yield from _hooks(module, backward)


def _replaced(module: nn.Module) -> Iterator[str]:
    methods = {name for name in vars(module) if callable(getattr(type(module), name, None))}
    if replaced := {name for name in methods if _counts(name, module)}:
        yield f"whose {_all(replaced)} was replaced"


def _hooks(module: nn.Module, backward: bool) -> Iterator[str]:
    hooks = {"forward hook": module._forward_hooks, "forward pre-hook": module._forward_pre_hooks}
    everybody = [_module._global_forward_hooks, _module._global_forward_pre_hooks]
    if backward:
        hooks |= {"backward hook": module._backward_hooks, "backward pre-hook": module._backward_pre_hooks}
        everybody += [_module._global_backward_hooks, _module._global_backward_pre_hooks]
    for name, found in hooks.items():
        for hook in found.values():
            if backward or _recomputed(hook) is None:
                yield f"with a {name} ({getattr(hook, '__qualname__', type(hook).__name__)})"
    if any(everybody):
        yield "and there is a hook on all modules (register_module_forward_hook or one like it)"


def _counts(name: str, module: nn.Module) -> bool:
    """Whether a method of this name has a say in what a module computes in evaluation mode."""
    if name in ("train", "eval"):
        return _trains_on(module)
    return name in (*_CALLED, "training") or not (hasattr(nn.Module, name) or name in _HARMLESS)


def _trains_on(module: nn.Module) -> bool:
    """Whether something in a module is in training mode, or comes into it by eval() where that is its own."""
    if any(each.training for each in module.modules()):
        return True
    module.eval()
    training = [each for each in module.modules() if each.training]
    for each in training:
        each.training = False
    return bool(training)


def _all(names: set[str]) -> str:
    return ", ".join(sorted(names))


def known_class(module: nn.Module) -> type[nn.Module] | None:
    """The nearest class that is trusted among those that a module is of."""
    for kind in type(module).__mro__:
        if kind in _known:
            return kind
        if (kind.__module__, kind.__qualname__) in _TORCHVISIONS:
            own = [name for name in _CALLED if name in vars(kind)]
            code = getattr(vars(kind).get("forward"), "__globals__", {})
            return know(kind) if own == ["forward"] and code.get("__name__") == kind.__module__ else None
    return None


def is_frozen_batch_norm(kind: type) -> bool:
    """Whether a class is torchvision's FrozenBatchNorm2d, by its name."""
    return (kind.__module__, kind.__qualname__) == _FROZEN


# ---- tensors ---------------------------------------------------------------------------------------------------------


def tensor_of(path: str, module: nn.Module, name: str) -> Tensor | None:
    """A module's tensor as its forward reads it in evaluation mode, without a gradient.

    One that a parametrisation or a hook of weight_norm, spectral_norm or prune computes is computed now.

    Raises:
        TypeError: it is no plain tensor, or not there; the text names it.
    """
    computed = (_recomputed(hook, name) for hook in module._forward_pre_hooks.values())
    compute = next(filter(None, computed), None)
    training = [each for each in module.modules() if each.training]
    try:
        if type(module) is not known_class(module):  # a property, whose parametrisation may look at the mode
            for each in training:
                each.training = False
        value = getattr(module, name) if compute is None else compute(module)
    except AttributeError:
        raise unknown(path, module, f"it must have {name}, which was deleted") from None
    finally:
        for each in training:
            each.training = True
    if value is None:
        return None
    if not isinstance(value, FakeTensor) and (type(value) not in PLAIN or value.layout is not torch.strided):
        raise unknown(path, module, f"{name} must be a strided tensor, got {type(value).__name__} of {value.layout}")
    return value.detach()


def _recomputed(hook: object, name: str | None = None) -> Callable[[nn.Module], Tensor] | None:
    """What computes a tensor anew, where a hook of torch's does so before each call."""
    match hook:
        case WeightNorm() if name in (None, hook.name) and type(hook) is WeightNorm:
            return hook.compute_weight
        case SpectralNorm() if name in (None, hook.name) and type(hook) is SpectralNorm:
            return lambda module: hook.compute_weight(module, do_power_iteration=False)
        case BasePruningMethod() if name in (None, hook._tensor_name):
            standard = (type(hook).apply_mask, type(hook).__call__)
            return hook.apply_mask if standard == (BasePruningMethod.apply_mask, BasePruningMethod.__call__) else None
    return None
