"""An op's Autograd kernel: :func:`torch.library.register_autograd` that also serves ``torch.func``.

torch's own registration refuses ``torch.func.grad`` and drops forward-mode tangents without a word. This one is a
single-level function, which is what functorch makes of any op: each ``grad``, ``jvp`` or ``vmap`` around the call runs
it once with the tensors of its own level, and the call inside goes on to the next.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._functorch.autograd_function import enable_single_level_autograd_function
from torch.autograd.forward_ad import _set_fwd_grad_enabled, unpack_dual
from torch.autograd.function import _SingleLevelFunction

from vggfast._checks import check_dense

# An op's arguments, its outputs, and the arguments' tangents, None for none, to the outputs' tangents.
Jvp = Callable[[Sequence[Any], Any, Sequence[Tensor | None]], Any]


def make_kernel(
    op: torch._ops.OpOverload, setup_context: Callable, backward: Callable, jvp: Jvp | None = None
) -> Callable:
    """The kernel for dispatch key Autograd; `setup_context` and `backward` as register_autograd takes them.

    Without `jvp` forward mode is refused.
    """

    def below(keyset, args):
        with torch._C._AutoDispatchBelowAutograd():
            return op.redispatch(keyset & torch._C._after_autograd_keyset, *args)

    class Generated(_SingleLevelFunction):
        @staticmethod
        def forward(ctx, *args_and_keyset):
            *args, keyset = args_and_keyset
            with torch.enable_grad(), _set_fwd_grad_enabled(True):  # for the transforms around this one
                result = below(keyset, args)
            setup_context(ctx=ctx, inputs=tuple(args), output=result)
            return result

        @staticmethod
        def backward(ctx, *grads):
            for grad in grads:
                if grad is not None:
                    check_dense(grad, f"the gradient of {op.name()}")
            result = backward(ctx, *grads)
            return (*result, None) if isinstance(result, tuple) else (result, None)

    class WithTangents(Generated):  # apart, for it keeps all arguments
        @staticmethod
        def forward(ctx, *args_and_keyset):
            ctx.args, ctx.outputs = args_and_keyset[:-1], Generated.forward(ctx, *args_and_keyset)
            return ctx.outputs

        @staticmethod
        def jvp(ctx, *tangents):
            args = [unpack_dual(arg).primal if isinstance(arg, Tensor) else arg for arg in ctx.args]
            outputs = ctx.outputs
            del ctx.args, ctx.outputs
            assert jvp is not None
            return jvp(args, outputs, tangents[:-1])

    for kind in (Generated, WithTangents):
        kind.__name__ = kind.__qualname__ = op.name().replace("::", "_")

    def kernel(keyset, *args):
        args = filled(op._schema, args)
        tensors = [arg for arg in args if isinstance(arg, Tensor)]
        forward_mode = any(unpack_dual(t).tangent is not None for t in tensors)
        if forward_mode and jvp is None:
            raise NotImplementedError(f"{op.name()} has no forward-mode derivative: use reverse mode (backward)")
        if not (forward_mode or (torch.is_grad_enabled() and any(t.requires_grad for t in tensors))):
            return below(keyset, args)
        with enable_single_level_autograd_function():
            return (WithTangents if forward_mode else Generated).apply(*args, keyset)  # type: ignore[attr-defined]

    return kernel


def filled(schema: torch.FunctionSchema, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """An op's arguments with those at the end that torch leaves out where they have their defaults."""
    return (*args, *(argument.default_value for argument in schema.arguments[len(args) :]))


def product_rule(
    op: Callable[..., Tensor], args: Sequence[Any], tangents: Sequence[Tensor | None], factors: Sequence[int]
) -> Tensor:
    """The tangent of an op that is linear in each of these arguments, given by position; some of them have one."""
    parts = [op(*args[:i], tangents[i], *args[i + 1 :]) for i in factors if tangents[i] is not None]
    return functools.reduce(operator.add, parts)
