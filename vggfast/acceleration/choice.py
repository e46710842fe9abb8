"""Which modules of a tree become ours, and why others do not."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized

from vggfast._checks import described
from vggfast._registries import announce
from vggfast.acceleration import frozen
from vggfast.graph import check, is_frozen_batch_norm, is_optimized, layers, recognise_one
from vggfast.nn import BatchNorm2d, Conv1x1, Conv3x3, FusedSequential, Linear, LocalResponseNorm, MaxPool2x2
from vggfast.ops._backends import OF_DEVICE
from vggfast.ops._library import DTYPES
from vggfast.ops.fc import LEAST_WEIGHTS

Class = type[nn.Module]
TWINS: dict[Class, Class] = {
    Conv3x3: nn.Conv2d,
    Conv1x1: nn.Conv2d,
    MaxPool2x2: nn.MaxPool2d,
    BatchNorm2d: nn.BatchNorm2d,
    LocalResponseNorm: nn.LocalResponseNorm,
    Linear: nn.Linear,
    FusedSequential: nn.Sequential,
}
_WITH_OTHERS: dict[Class, str] = {
    nn.SyncBatchNorm: "only in an nn.Sequential, in evaluation mode",
    nn.ReLU: "only behind one of ours in an nn.Sequential",
}
_LAYERS = (nn.Conv2d, nn.MaxPool2d, nn.BatchNorm2d, nn.LocalResponseNorm, nn.Linear)


def twin_of(kind: Class) -> Class | None:
    """The class, torch's or torchvision's, that one of ours stands in for."""
    return kind.__bases__[0] if frozen.is_ours(kind) else TWINS.get(kind)


def modules_of(model: nn.Module, path: str = "model") -> Iterator[tuple[str, nn.Module]]:
    """Each module of a tree once, with its path; nothing within what torch.jit compiled."""
    within: set[nn.Module] = set()
    for name, module in model.named_modules(prefix=path):
        if isinstance(module, torch.jit.ScriptModule):
            within.update(each for each in module.modules() if each is not module)
        if module not in within:
            yield name, module


def check_model(model: object) -> None:
    """Raises TypeError where a model cannot be changed: it is none, or compiled, or has lazy layers."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a module, got {described(model)}")
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError(f"model must not be compiled by torch.jit, got {type(model).__name__}: give the module itself")
    for path, module in modules_of(model):
        if is_optimized(module) or module._compiled_call_impl is not None:
            raise TypeError(f"{path} must not be compiled yet, got {type(module).__name__}: compile what comes back")
        tensors = (*module._parameters.items(), *module._buffers.items())
        if lazy := [name for name, tensor in tensors if tensor is not None and is_lazy(tensor)]:
            raise TypeError(f"{path} must have a {lazy[0]}, got a {type(module).__name__} that never ran: run it once")


def class_of(module: nn.Module) -> Class:
    """A module's class, without what parametrisations put before it."""
    kind = type(module)
    return kind.__bases__[0] if is_parametrized(module) else kind


def become(module: nn.Module, kind: Class) -> None:
    """Changes a module's class in place: all that refers to it, and all that it has, stays."""
    if kind in TWINS:
        announce(kind)
    now = type(module)
    if now is class_of(module):
        module.__class__ = kind
        return
    names = vars(now).keys() - {"__dict__", "__weakref__"}  # the parametrised tensors are properties of its own class
    module.__class__ = type(f"Parametrized{kind.__name__}", (kind,), {name: vars(now)[name] for name in names})


def set_exact(module: nn.Module, exact: bool | None) -> None:
    """Has a convolution of ours compute by direct sums, by the fastest algorithm, or (None) as the process is set."""
    if isinstance(module, Conv3x3 | Conv1x1):
        vars(module).pop("_exact", None)
        if exact is not None:
            module._exact = exact


def choose(path: str, module: nn.Module) -> tuple[Class | None, str]:
    """The class of ours that a module can have, or None and why."""
    kind = class_of(module)
    if twin_of(kind) is not None:
        return kind, ""
    if isinstance(module, torch.jit.ScriptModule):
        return None, "torch.jit compiled it"
    if isinstance(module, nn.Sequential):
        return _sequence(path, module)
    torchvisions = (kind,) if is_frozen_batch_norm(kind) else ()
    base = next((each for each in (*_LAYERS, *torchvisions) if isinstance(module, each)), None)
    if base is None:
        return None, _WITH_OTHERS.get(kind, "no kernel of ours")
    try:
        layer = recognise_one(module, path, hooks=False).layer
    except TypeError as error:
        return None, _reason(path, module, error)
    if kind is not base:
        return None, f"a subclass of {base.__name__}"
    match layer:
        case layers.Conv(weight, _):
            return _where_kernels_run(weight, Conv3x3 if weight.shape[2] == 3 else Conv1x1)
        case layers.MaxPool():
            return MaxPool2x2, ""
        case layers.BatchNorm() if is_parametrized(module):
            return None, "its tensors are computed"
        case layers.BatchNorm(mean):
            return _where_kernels_run(mean, frozen.ours_of(kind) if torchvisions else BatchNorm2d)
        case layers.Lrn():
            return LocalResponseNorm, ""
        case layers.Linear(weight, _) if weight.numel() >= LEAST_WEIGHTS:
            return _where_kernels_run(weight, Linear)
        case layers.Linear():
            return None, f"fewer than {LEAST_WEIGHTS} weights, for which torch's is as fast"
    return None, "a convolution must be 3x3 with a padding of 1, or 1x1 without"


def _sequence(path: str, module: nn.Sequential) -> tuple[Class | None, str]:
    if class_of(module) is not nn.Sequential:
        return None, "a subclass of Sequential"
    try:
        check(path, module, hooks=False)
    except TypeError as error:
        return None, _reason(path, module, error)
    fused = (Conv3x3, Conv1x1, BatchNorm2d)
    norms = (nn.BatchNorm2d, nn.SyncBatchNorm)
    if any(type(child) in norms or choose(path, child)[0] in fused for child in module.children()):
        return FusedSequential, ""
    return None, "nothing in it to run as one"


def _where_kernels_run(weight: torch.Tensor, kind: Class) -> tuple[Class | None, str]:
    if weight.dtype not in DTYPES:
        return None, f"of {weight.dtype}"
    if weight.device.type not in (*OF_DEVICE, "meta"):
        return None, f"on {weight.device.type}"
    return kind, ""


def _reason(path: str, module: nn.Module, error: TypeError) -> str:
    """What an error of vggfast.graph says of a module, without calling it by name again."""
    text = str(error).removeprefix(f"{path} is {' '.join(str(module).split())}: ")
    return text.removeprefix(f"{path} is {type(module).__name__}, ").partition(": what it computes")[0]
