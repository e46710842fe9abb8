"""The rules for rounding errors, and what they compare."""

import contextlib
import copy

import numpy as np
import torch


@contextlib.contextmanager
def conv_precision(name: str):
    """torch's own switch for float32 convolutions on a GPU: "ieee" or "tf32"."""
    switches = (torch.backends.cudnn.conv, torch.backends.cudnn.rnn)  # torch needs the two to be equal
    before = [switch.fp32_precision for switch in switches]
    for switch in switches:
        switch.fp32_precision = name
    try:
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.fp32_precision = value


def relative_error(got, want) -> float:
    """Relative L2 error; absolute where all of `want` is 0."""
    got, want = (np.asarray(t.detach().cpu().double() if torch.is_tensor(t) else t, np.longdouble) for t in (got, want))
    assert got.shape == want.shape
    scale = np.sqrt((want * want).sum())
    return float(np.sqrt(((got - want) ** 2).sum()) / (scale or 1))


def assert_as_accurate_as_torch(ours, torchs, exact):
    """The project's rule: an error of at most twice torch's own, plus one rounding."""
    assert ours.dtype == torchs.dtype
    assert relative_error(ours, exact) <= 2 * relative_error(torchs, exact) + torch.finfo(ours.dtype).eps


def assert_as_accurate_as_winograd(ours, exact):
    """The rule for 3x3 convolutions that are not direct."""
    assert relative_error(ours, exact) < 1e-5


def assert_rounded_once(ours, exact):
    """The rule for 16 bits: sums in float32, and one rounding of the result."""
    assert relative_error(ours, exact) <= torch.finfo(ours.dtype).eps / 2 + 1e-6


def assert_as_accurate_as_tf32(ours, exact):
    """The rule for products of two factors, each rounded to 11 bits."""
    assert relative_error(ours, exact) < 2.0**-8  # twice 2^-11, and what a few terms of unlike sign make of it


def assert_as_accurate_as_bf16x3(ours, exact):
    """The rule for products of two factors, each of two pieces of bfloat16, which leave up to 2^-15 of each product."""
    few = exact.numel() < 1000  # numbers, whose sums' terms may be of unlike sign
    assert relative_error(ours, exact) < (2.0**-13 if few else 1e-5)


def assert_same_bits(a, b):
    """Equal values, signs of zero and places of NaN."""
    assert a.dtype == b.dtype
    assert a.shape == b.shape
    assert torch.equal(torch.nan_to_num(a), torch.nan_to_num(b))
    assert torch.equal(a.isnan(), b.isnan())
    assert torch.equal(a.signbit() & ~a.isnan(), b.signbit() & ~b.isnan())


def results(op, inputs, **options) -> list[torch.Tensor]:
    """An op's output, and the gradients with respect to every input for a fixed gradient of small numbers."""
    inputs = [None if t is None else t.detach().requires_grad_() for t in inputs]
    y = op(*inputs, **options)
    steps = torch.arange(y.numel(), device=y.device)
    gy = (steps * 7 % 11 - 5).reshape(y.shape).to(y.dtype) / 4
    return [y.detach(), *torch.autograd.grad(y, [t for t in inputs if t is not None], gy)]


def integers(*shape, dtype=torch.float64) -> torch.Tensor:
    """Small whole numbers: their sums of products are exact in any order, and ties are many."""
    return torch.randint(-3, 4, shape).to(dtype)


def in_format(t: torch.Tensor, name: str) -> torch.Tensor:
    return t.contiguous(memory_format=getattr(torch, name))


def plain_torch(module: torch.nn.Module) -> torch.nn.Module:
    """The same network, hand-made of torch's own layers; its parameters are copies."""
    nn = torch.nn
    if isinstance(module, nn.Conv2d):
        twin = nn.Conv2d(module.in_channels, module.out_channels, module.kernel_size, module.stride, module.padding)
        twin.bias = None
    elif isinstance(module, nn.MaxPool2d):
        twin = nn.MaxPool2d(module.kernel_size, module.stride, ceil_mode=module.ceil_mode)
    elif isinstance(module, nn.LocalResponseNorm):
        twin = nn.LocalResponseNorm(module.size, module.alpha, module.beta, module.k)
    elif isinstance(module, nn.Linear):
        twin = nn.utils.skip_init(nn.Linear, module.in_features, module.out_features, module.bias is not None)
    elif isinstance(module, nn.Sequential):
        return nn.Sequential(*(plain_torch(child) for child in module))
    else:
        return copy.deepcopy(module)
    for name, parameter in module.named_parameters():
        setattr(twin, name, torch.nn.Parameter(parameter.detach().clone(), parameter.requires_grad))
    return twin
