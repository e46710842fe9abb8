"""Packed weights on the simulated GPU: what they are, how they are read, and for how long they are kept."""

import contextlib

import pytest
import torch
from torch import Tensor, nn

from tests.support.backends import Poisoned
from tests.support.comparisons import conv_precision
from vggfast.ops import _packed
from vggfast.ops.conv import conv, conv_dgrad

pytestmark = pytest.mark.backends("sim")
DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]
LAYOUTS = {
    "contiguous": lambda w: w.contiguous(),
    "channels_last": lambda w: w.to(memory_format=torch.channels_last),
    "outputs last": lambda w: w.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
    "strided": lambda w: w.repeat_interleave(2, 1)[:, ::2],
}
SIZES = [(1, 1, 1), (3, 5, 3), (64, 3, 3), (130, 33, 3), (40, 66, 1)]


def packs(sim):
    """Kernels that packed since the counters were cleared."""
    return sim.counters().get("pack_weights_kernel", {"launches": 0})["launches"]


def nhwc(*shape, dtype=torch.float32):
    return torch.randn(shape).to(dtype).contiguous(memory_format=torch.channels_last)


@pytest.fixture
def gpu(backend, sim):
    return Poisoned(sim)


# ---- packing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_is_packed(gpu, dtype, layout, mirrored):
    """A row for each output channel, its taps' input channels one after the other; zeros up to whole tiles."""
    for cout, cin, kernel in SIZES:
        weight = torch.randn(cout, cin, kernel, kernel).to(dtype)
        packed = _packed.pack(gpu, LAYOUTS[layout](weight), mirrored).view(dtype)
        seen = weight.transpose(0, 1).flip(2, 3) if mirrored else weight
        expected = seen.permute(0, 2, 3, 1).flatten(1)
        rows = packed.view(-(-len(expected) // 128) * 128, -1)
        assert torch.equal(rows[: len(expected), : expected.shape[1]], expected), (cout, cin, kernel)
        assert not rows[len(expected) :].any()
        assert not rows[:, expected.shape[1] :].any()


def test_tf32_is_rounded_to_the_nearest(gpu):
    weight = torch.randn(33, 40, 3, 3)
    packed = _packed.pack(gpu, weight, False, tf32=True).view(torch.float32).view(128, -1)[:33, :360]
    bits = (weight.permute(0, 2, 3, 1).flatten(1).contiguous().view(torch.int32) + 0x1000) & ~0x1FFF
    assert torch.equal(packed, bits.view(torch.float32))


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_a_block_reads_whole_runs_of_memory(gpu, sim, layout, mirrored):
    """So that no byte comes from the L2 but once."""
    weight = LAYOUTS[layout](torch.randn(128, 128, 3, 3).bfloat16())
    sim.set_blocks(8)  # of 16: only then it counts what each block reads once or more
    try:
        sim.clear_counters()
        _packed.pack(gpu, weight, mirrored)
        found = sim.counters()["pack_weights_kernel"]
    finally:
        sim.set_blocks(2**63 - 1)
    assert found["blocks"] == 16
    assert found["global_read"] == weight.nbytes
    assert weight.nbytes <= found["global_distinct"] <= 1.1 * weight.nbytes


def test_errors_name_the_argument(gpu):
    x, weight, y = nhwc(1, 16, 4, 4), torch.randn(8, 16, 3, 3), nhwc(1, 8, 4, 4)
    packed = torch.empty(64, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"packed must have at least \d+ bytes, got 64"):
        gpu.run("conv_fprop_prepacked", x, weight, None, False, False, y, None, packed)
    with pytest.raises(ValueError, match=r"workspace must have at least \d+ bytes, got 64"):
        gpu.run("conv_pack", weight, False, workspace=packed)
    with pytest.raises(ValueError, match=r"weight must have shape \(Cout, Cin, 3, 3\) or"):
        gpu.workspace("conv_pack", torch.randn(8, 16, 5, 5), False)
    with pytest.raises(ValueError, match="weight must be bfloat16, float16, float32 or float64, got int32"):
        gpu.workspace("conv_pack", torch.zeros(8, 16, 3, 3, dtype=torch.int32), False)


@pytest.mark.parametrize("tile", ["auto", "small"], ids=["hopper", "sm80"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, "tf32", torch.float32], ids=str)
def test_packed_before_or_for_the_call_is_the_same(gpu, sim, tile, dtype):
    tf32, dtype = dtype == "tf32", torch.float32 if dtype == "tf32" else dtype
    x, gy, weight = nhwc(2, 24, 5, 6, dtype=dtype), nhwc(2, 40, 5, 6, dtype=dtype), torch.randn(40, 24, 3, 3).to(dtype)
    x_mask = torch.randint(256, (2, 1, 5, 6, 3), dtype=torch.uint8)
    sim.cuda.set_conv_tile(tile)
    try:
        with conv_precision("tf32" if tf32 else "ieee"):
            y, mask = conv(x, weight, None, True, False, True)
            gx = conv_dgrad(gy, mask, weight, 5, 6, None, x_mask)
            assert _packed.packs(gpu, "conv_fprop", x, weight, None, True, False, y, mask)
            orders = [_packed.pack(gpu, weight, mirrored) for mirrored in (False, True)]
            again, bits, back = torch.empty_like(y), torch.empty_like(mask), torch.empty_like(gx)
            sim.clear_counters()
            gpu.run("conv_fprop_prepacked", x, weight, None, True, False, again, bits, orders[0])
            gpu.run("conv_dgrad_prepacked", gy, mask, weight, back, x_mask, orders[1])
    finally:
        sim.cuda.set_conv_tile("auto")
    assert packs(sim) == 0
    for one, other in ((again, y), (bits, mask), (back, gx)):
        assert torch.equal(one, other)


def test_tf32_weights_are_read_where_they_lie(gpu, sim):
    x, weight = nhwc(1, 32, 8, 8), nhwc(64, 32, 3, 3)
    with conv_precision("tf32"):
        sim.clear_counters()
        y = conv(x, weight, None, False, False, False)[0]
        assert packs(sim) == 0
        assert torch.equal(y, conv(x, weight.contiguous(), None, False, False, False)[0])
        assert packs(sim) == 1


# ---- keeping --------------------------------------------------------------------------------------------------------


def both(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """An output, and a gradient by the same weights."""
    return conv(x, weight, None, False, False, False)[0], conv_dgrad(x, None, weight, *x.shape[2:])


def square() -> tuple[Tensor, nn.Parameter]:
    return nhwc(1, 16, 4, 4), nn.Parameter(torch.randn(16, 16, 3, 3))


def test_each_order_is_packed_once_in_a_block_and_at_each_call_outside(gpu, sim):
    x, weight = square()
    expected = both(x, weight)
    sim.clear_counters()
    with _packed.unchanged([weight]):
        for _ in range(3):
            assert all(map(torch.equal, both(x, weight), expected))
        assert packs(sim) == 2
        held = _packed.held_bytes()
        assert held == sum(gpu.workspace("conv_pack", weight, mirrored) for mirrored in (False, True))
        both(x, weight.detach())
        assert packs(sim) == 2
        both(x, weight.detach().clone())  # nobody has said anything of that one
        assert packs(sim) == 4
    assert _packed.held_bytes() == 0
    both(x, weight)
    assert packs(sim) == 6


def step(kind):
    def change(weight):
        weight.grad = torch.ones_like(weight)
        kind([weight], lr=0.1).step()

    return change


def in_place(weight):
    with torch.no_grad():
        weight.mul_(2)


def other_data(weight):
    weight.data = weight.data * 2


def swapped(weight):
    torch.utils.swap_tensors(weight, nn.Parameter(weight.detach() * 2))


def set_to_another(weight):
    with torch.no_grad():
        weight.set_(weight.detach() * 2)


CHANGES = {
    "in place": in_place,
    "other data": other_data,
    "swapped": swapped,
    "set_": set_to_another,
    "state dict": lambda w: nn.ParameterList([w]).load_state_dict({"0": w.detach() * 2}),
    "SGD, foreach": step(lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9, foreach=True)),
}
UNCOUNTED = {
    ".data": lambda w: w.data.mul_(2),
    "SGD, fused": step(lambda p, lr: torch.optim.SGD(p, lr, fused=True)),
    "Adam, fused": step(lambda p, lr: torch.optim.Adam(p, lr, fused=True)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changes_that_torch_counts_are_seen_within_a_block(gpu, change):
    x, weight = square()
    with _packed.unchanged([weight]):
        before = both(x, weight)
        CHANGES[change](weight)
        after = both(x, weight)
    assert not torch.equal(after[0], before[0])
    assert all(map(torch.equal, after, both(x, weight.detach().clone())))


@pytest.mark.parametrize("change", UNCOUNTED)
def test_changes_that_torch_does_not_count_are_seen_between_blocks(gpu, change):
    x, weight = square()
    for _ in range(2):
        with _packed.unchanged([weight]):
            assert all(map(torch.equal, both(x, weight), both(x, weight.detach().clone())))
        before = weight.detach().clone()
        UNCOUNTED[change](weight)
        assert not torch.equal(weight, before)
        assert all(map(torch.equal, both(x, weight), both(x, weight.detach().clone())))


def test_views_of_the_same_memory_have_packs_of_their_own(gpu):
    x, weight = square()
    with _packed.unchanged([weight]):
        for view in (weight.detach(), weight.detach().transpose(0, 1), torch._neg_view(weight.detach())):
            assert all(map(torch.equal, both(x, view), both(x, view.clone())))


def test_a_block_within_another_leaves_it_what_it_has(gpu, sim):
    x, weight = square()
    with _packed.unchanged([weight]):
        both(x, weight)
        sim.clear_counters()
        with _packed.unchanged([weight]):
            both(x, weight)
        both(x, weight)
        assert packs(sim) == 0
    assert not _packed._held


def test_a_block_that_fails_gives_all_back(gpu):
    x, weight = square()
    with contextlib.suppress(ZeroDivisionError), _packed.unchanged([weight]):
        both(x, weight)
        raise ZeroDivisionError
    assert not _packed._held
