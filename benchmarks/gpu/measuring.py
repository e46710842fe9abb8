"""Checks and times candidates of one case, names their kernels, and measures the ceilings they are held against."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import timing
import torch
from torch import Tensor

from gpu import choice
from gpu.candidates import Candidate, reason

# Largest relative L2 error against the exact answer for the same rounded inputs: some roundings of the result, or of
# the factors (tf32). float32's sums of thousands of products stay well under theirs.
LIMITS = {"bf16": 1e-2, "fp16": 2e-3, "tf32": 2e-3, "fp32": 1e-5}
PRODUCT = 8192  # rows and columns of the large matrix product
COPY = 2 << 30  # bytes
MARK = "atan_kernel"  # no candidate has one


def relative_error(result: Tensor, reference: Tensor) -> float:
    """Relative L2 error; infinite where the shapes differ, not a number where the result has one."""
    if result.shape != reference.shape:
        return float("inf")
    off = (result.to(reference.dtype) - reference).double().norm()
    return (off / reference.double().norm()).item()


def checked(
    candidates: Mapping[str, Candidate], exact: Callable[[str], Tensor], dtype: str
) -> tuple[dict[str, float], dict[str, str]]:
    """({name: error}, {name: why it is not timed}): wrong answers and failures do not stop the others."""
    errors, reasons = {}, {}
    for expected in dict.fromkeys(candidate.exact for candidate in candidates.values()):
        reference = exact(expected)
        for name, candidate in candidates.items():
            if candidate.exact != expected:
                continue
            try:
                errors[name] = relative_error(candidate.once(), reference)
            except Exception as error:  # of any library
                reasons[name] = reason(error)
                continue
            if not errors[name] <= LIMITS[dtype]:
                reasons[name] = f"wrong: relative error must be at most {LIMITS[dtype]:.0e}, got {errors[name]:.1e}"
    return errors, reasons


def timed(
    candidates: Mapping[str, Candidate], reasons: Mapping[str, str], rounds: int, flush: Callable[[], Any]
) -> dict[str, list[float]]:
    """Samples of every candidate that is right, all of them taking turns."""
    samplers = {
        name: lambda calls, candidate=candidate: candidate.sample(calls, flush)
        for name, candidate in candidates.items()
        if name not in reasons
    }
    return timing.in_turns(samplers, rounds)


def kernels(candidates: Mapping[str, Candidate]) -> dict[str, list[str]]:
    """The kernels of one call of each candidate with their microseconds, as the profiler has them.

    One profile for all, as each start takes a while: a kernel that nobody else has stands before each candidate's.
    """
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    mark = torch.ones(1, device=choice.DEVICE)
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for candidate in candidates.values():
            mark.atan_()
            candidate.once()
            torch.cuda.synchronize()
    events = [(event.time_range.start, event.time_range.elapsed_us(), event.name) for event in profiler.events()
              if event.device_type == DeviceType.CUDA]  # fmt: skip
    return split(events, list(candidates))


def split(events: list[tuple[float, float, str]], names: list[str]) -> dict[str, list[str]]:
    """Events (start, microseconds, kernel) as {name: kernels in their order}; MARK begins the next name's."""
    found: list[list[str]] = []
    for _, microseconds, kernel in sorted(events):
        if MARK in kernel:
            found.append([])
        elif found:
            found[-1].append(f"{kernel}: {microseconds:.1f} us")
    return dict(zip(names, found, strict=True))


def ceilings(dtype: str, rounds: int, flush: Callable[[], Any]) -> dict[str, float]:
    """TFLOP/s of a large matrix product on random numbers of this dtype, GB/s of a copy (read and written)."""
    like = {"dtype": choice.torch_dtype(dtype), "device": choice.DEVICE}
    a, b, c = (torch.randn(PRODUCT, PRODUCT, **like) for _ in range(3))
    source = torch.randint(0, 256, (COPY,), dtype=torch.uint8, device=choice.DEVICE)
    target = torch.empty_like(source)
    found = timed(
        {"product": Candidate(lambda: torch.mm(a, b, out=c), ""), "copy": Candidate(lambda: target.copy_(source), "")},
        {}, rounds, flush,
    )  # fmt: skip
    seconds = {name: timing.median_and_spread(samples)[0] for name, samples in found.items()}
    return {"tflops": 2 * PRODUCT**3 / seconds["product"] / 1e12, "gbytes": 2 * COPY / seconds["copy"] / 1e9}
