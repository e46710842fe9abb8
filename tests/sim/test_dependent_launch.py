"""Kernels that start before the one before them has ended, on the simulated GPU; what it catches of planted kernels,
csrc/tests/sim/test_sim_dependent_launch.cpp says."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.support.backends import Simulated
from vggfast import ops

pytestmark = pytest.mark.backends("sim")
ROOT = Path(__file__).parents[2]
EARLY = r"which kernel max_pool2x2_kernel has written, before griddepcontrol\.wait"


def nhwc(*shape):
    return torch.randn(shape).bfloat16().to(memory_format=torch.channels_last)


def made_by_a_kernel(gpu, *shape):
    """A tensor that the last kernel has written."""
    cout, cin, h, w = shape
    made = torch.empty(shape, dtype=torch.bfloat16, memory_format=torch.channels_last)
    gpu.run("max_pool2x2", nhwc(cout, cin, 2 * h, 2 * w), made, None)
    return made


def convolution(gpu, cin, weight, fixed):
    x, y = nhwc(1, cin, 8, 8), torch.empty(1, 64, 8, 8, dtype=torch.bfloat16, memory_format=torch.channels_last)
    gpu.run("conv_fprop", x, weight, None, False, False, y, None, fixed_weights=fixed)
    return x, y


def block1(gpu, first, second, fixed):
    x, y = nhwc(1, 3, 4, 4), torch.empty(1, 64, 2, 2, dtype=torch.bfloat16, memory_format=torch.channels_last)
    gpu.run("conv_block1", x, first, None, second, None, y, fixed_weights=fixed)


@pytest.mark.parametrize("cin", [3, 64], ids=["stem", "hopper"])
def test_fixed_weights_are_read_early(backend, sim, cin):
    """So that they may not be those that the kernel before writes. Weights that are not fixed are waited for."""
    gpu = Simulated(sim)
    with pytest.raises(sim.Fault, match=EARLY):
        convolution(gpu, cin, made_by_a_kernel(gpu, 64, cin, 3, 3), fixed=True)
    weight = made_by_a_kernel(gpu, 64, cin, 3, 3)
    sim.synchronize()
    results = [convolution(gpu, cin, weight, fixed=True), convolution(gpu, cin, weight, fixed=False)]
    for x, y in results:
        assert torch.equal(y, ops.conv3x3(x, weight, None))
    x, y = convolution(gpu, cin, made_by_a_kernel(gpu, 64, cin, 3, 3), fixed=False)
    assert y.isfinite().all()


def test_weights_packed_for_the_call_are_waited_for(backend, sim):
    gpu = Simulated(sim)
    x, weight = torch.randn(1, 32, 8, 8).to(memory_format=torch.channels_last), torch.randn(64, 32, 3, 3)
    y = torch.empty(1, 64, 8, 8, memory_format=torch.channels_last)
    sim.clear_counters()
    gpu.run("conv_fprop", x, weight, None, False, False, y, None, tf32=True, fixed_weights=True)
    assert set(sim.counters()) == {"pack_weights_kernel", "conv_fprop_hopper_kernel"}
    assert y.isfinite().all()


@pytest.mark.parametrize("made", ["first", "second"])
def test_fixed_weights_of_block_1(backend, sim, made):
    gpu = Simulated(sim)
    first, second = nhwc(64, 3, 3, 3), nhwc(64, 64, 3, 3)

    def call(fixed):
        kernel_made = made_by_a_kernel(gpu, 64, 3 if made == "first" else 64, 3, 3)
        weights = (kernel_made, second) if made == "first" else (first, kernel_made)
        block1(gpu, *weights, fixed)

    call(fixed=False)
    with pytest.raises(sim.Fault, match=EARLY):
        call(fixed=True)


@pytest.mark.parametrize(("value", "said"), [
    ("0", "ran"), ("1", "ran"),
    ("yes", "ValueError: VGGFAST_CUDA_DEPENDENT_LAUNCH must be 0 or 1, got 'yes'"),
])  # fmt: skip
def test_the_switch(backend, sim, value, said):
    code = """
import torch
from tests.support.backends import Simulated, simulator
x, y = torch.zeros(1, 8, 2, 2).contiguous(memory_format=torch.channels_last), torch.empty(1, 8, 1, 1)
Simulated(simulator()).run("max_pool2x2", x, y, None)
print("ran")
"""
    environment = {**os.environ, "VGGFAST_CUDA_DEPENDENT_LAUNCH": value}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert said in (done.stdout + done.stderr).splitlines()
