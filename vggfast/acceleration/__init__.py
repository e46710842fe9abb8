"""Our layers in anybody's model: :data:`accelerate`, with its `report` and `restore`."""

from __future__ import annotations

from typing import Any, TypeVar

from torch import nn

from vggfast._checks import check_flag, check_flag_or_none
from vggfast.acceleration import formats
from vggfast.acceleration.choice import become, check_model, choose, class_of, modules_of, set_exact, twin_of
from vggfast.acceleration.table import Report, Row, table
from vggfast.graph import shared_copy

__all__ = ["Report", "Row", "accelerate"]

Model = TypeVar("Model", bound=nn.Module)


class _Accelerate:
    """``vggfast.accelerate(model)``: the model with each layer that vggfast has kernels for on these.

    Modules keep all that they have (parameters, hooks, names, training mode) and change their class alone, to a
    subclass of torch's: 3x3 convolutions with a padding of 1 and 1x1 convolutions, both of stride 1, without groups or
    dilation; 2x2 max-pools; local response normalisation; linear layers of at least 2^21 weights; batch norm of large
    maps; and each ``nn.Sequential`` in which convolution or batch norm, ReLU and max-pool stand in a row, which then
    run as one op. All else stays, also whatever has a forward of its own. ``docs/guides/accelerate.md`` says more.

    Args:
        model: any module; one within DataParallel or DistributedDataParallel too.
        inplace: True changes `model` and returns it. False leaves it as it is, and returns another tree of modules that
            shares its parameters and buffers (of modules alone: what a function's closure or an object that is no
            module holds, stays the given model's).
        exact: True has the model's convolutions sum their products as they are, forward and backward, so that a
            gradient that is zero outside a cell leaves exact zeros outside of what the cell sees; False has them
            computed by the fastest algorithm. Both whatever :func:`vggfast.set_exact` says, which None leaves it to,
            but in layers to which an earlier call gave another value.

    Returns:
        The model. Within a call of it, layers hand maps on as channels_last where there are several of them and its
        code has no ``Tensor.view``; what it returns is contiguous, as torch's, unless it was given channels_last maps.

    Raises:
        TypeError: `model` is no module, compiled by torch.compile or torch.jit, or has a lazy module that never ran,
            or `inplace` or `exact` is none of what they may be; the text names it.
    """

    def __call__(self, model: Model, *, inplace: bool = False, exact: bool | None = None) -> Model:
        check_model(model)
        exact = check_flag_or_none(exact, "exact")
        found = _target_of(model, inplace)
        chosen = [(module, choose(path, module)[0]) for path, module in modules_of(found)]
        for module, kind in chosen:
            if kind is not None and class_of(module) is not kind:
                become(module, kind)
            if exact is not None:
                set_exact(module, exact)
        formats.hand_on(found)
        return found

    def report(self, model: nn.Module, x: Any = None) -> Report:
        """What is taken of a model, whether it is accelerated already or not. ``print`` shows it as a table.

        Args:
            model: as for a call; it is not changed.
            x: an example of its input, a tuple of all of them where there are several. With one, the model runs once in
                evaluation mode, its hooks too, and rows have their share of the multiply-adds.

        Raises:
            TypeError: as a call.
        """
        return table(model, self(model), x)

    def restore(self, model: Model, *, inplace: bool = False) -> Model:
        """The model with torch's own classes, for tools that look at types: the inverse of a call.

        Args:
            model: any module; a network of ours too.
            inplace: as for a call.

        Raises:
            TypeError: as a call.
        """
        check_model(model)
        found = _target_of(model, inplace)
        for _, module in modules_of(found):
            kind = twin_of(class_of(module))
            if kind is not None:
                set_exact(module, None)
                become(module, kind)
            formats.stop(module)
        return found


def _target_of(model: Model, inplace: bool) -> Model:
    return model if check_flag(inplace, "inplace") else shared_copy(model)


accelerate = _Accelerate()
