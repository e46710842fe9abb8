"""Packed weights that are kept from call to call: the same bits as without, and every change of the weights is seen."""

from __future__ import annotations

import copy
import gc
import io
import threading

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from vggfast import _native
from vggfast.nn import Conv1x1, Conv3x3
from vggfast.ops import _kept
from vggfast.ops._backends import OF_DEVICE, Backend
from vggfast.ops.conv import conv, conv_nhwc


@pytest.fixture(autouse=True)
def ran(monkeypatch):
    """The ops of the back end that ran, in order; without what other tests left."""
    names = []
    run = Backend.run

    def record(self, name, *args, **options):
        result = run(self, name, *args, **options)
        names.append(f"{name} {result}" if name == "conv_fprop_packed" else name)
        return result

    monkeypatch.setattr(_kept, "_kept", {})
    monkeypatch.setattr(Backend, "run", record)
    return names


def _layer(kind=Conv3x3, width=40, **options):
    torch.manual_seed(0)
    return kind(width, width, **options).eval()


def _maps(width=40, size=9, count=1):
    return torch.randn(count, width, size, size, generator=torch.Generator().manual_seed(1))


def _bytes() -> int:
    packed = [each for _, found in _kept._kept.values() for each in found.values() if isinstance(each, _kept._Packed)]
    return sum(t.numel() * t.element_size() for each in packed for t in each)


def _warm(layer, x):
    """A layer whose weights are kept, on whatever instruction set; what it gives."""
    with torch.no_grad():
        y = [layer(x) for _ in range(3)]
    assert torch.equal(y[0], y[1])
    assert torch.equal(y[0], y[2])
    return y[0]


def _fresh(layer, x):
    """What the layer gives where nothing was kept of it."""
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    with torch.no_grad():
        return conv_nhwc(x, weight, bias, False, False)


@pytest.mark.parametrize("algorithm", ["auto", "winograd2", "winograd4", "winograd6"])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(
    ("n", "cin", "cout", "h", "w", "kernel", "relu", "pool", "bias", "last"),
    [
        (1, 40, 40, 9, 11, 3, False, False, True, False),
        (2, 33, 17, 7, 7, 3, True, True, True, True),
        (5, 16, 130, 6, 5, 3, True, False, False, False),
        (1, 64, 50, 3, 4, 1, True, False, True, True),
    ],
)
def test_the_same_bits(ran, algorithm, threads, n, cin, cout, h, w, kernel, relu, pool, bias, last):
    torch.manual_seed(0)
    x, weight = torch.randn(n, cin, h, w), torch.randn(cout, cin, kernel, kernel)
    b = torch.randn(cout) if bias else None
    if last:
        weight = weight.contiguous(memory_format=torch.channels_last)
    before, was = torch.get_num_threads(), _native.conv_algorithm()
    torch.set_num_threads(threads)
    _native.set_conv_algorithm(algorithm)
    try:
        with torch.no_grad():
            calls = [conv(x, weight, b, relu, pool, relu or pool) for _ in range(4)]
    finally:
        torch.set_num_threads(before)
        _native.set_conv_algorithm(was)
    assert ran.count("conv_fprop") == 1
    assert ran.count("conv_pack") == 1
    assert ran.count("conv_fprop_packed True") == 3
    for y, mask in calls[1:]:
        assert torch.equal(y, calls[0][0])
        assert torch.equal(mask, calls[0][1])


def test_exact_calls_run_direct_sums(ran):
    layer, x = _layer(), _maps()
    _warm(layer, x)
    arguments = (x, layer.weight.detach(), layer.bias.detach(), False, False)
    want = conv_nhwc(*arguments, True)
    assert ran[-1] == "conv_fprop"
    assert not torch.equal(want, _warm(layer, x))
    assert torch.equal(conv_nhwc(*arguments, True), want)


def test_maps_of_several_sizes_share_what_they_can(ran):
    layer = _layer()
    for size in (6, 9, 12):
        _warm(layer, _maps(size=size))
    assert ran.count("conv_pack") <= 3
    assert _bytes() <= 3 * layer.weight.numel() * 4 * (64 / 9 * 48 / 40 + 1)


def _change_data(layer, x):
    layer.weight.data[3, 5, 1, 1] += 1


def _change_numpy(layer, x):
    layer.weight.detach().numpy()[39, 39, 2, 2] = 7


def _change_in_place(layer, x):
    with torch.no_grad():
        layer.weight.mul_(2)


def _change_sign_of_zero(layer, x):
    layer.weight.data[0, 0].zero_()
    _warm(layer, x)
    layer.weight.data[0, 0].neg_()


def _load(layer, x):
    layer.load_state_dict({name: t + 1 for name, t in layer.state_dict().items()})


def _load_assigned(layer, x):
    layer.load_state_dict({name: t + 1 for name, t in layer.state_dict().items()}, assign=True)


def _step(layer, x):
    layer(x).square().mean().backward()
    torch.optim.SGD(layer.parameters(), lr=1.0).step()


def _new_data(layer, x):
    layer.weight.data = layer.weight.data * 3


def _new_parameter(layer, x):
    layer.weight = nn.Parameter(torch.randn_like(layer.weight))


def _swap(layer, x):
    torch.utils.swap_tensors(layer.weight, nn.Parameter(torch.randn_like(layer.weight)))


def _change_bias(layer, x):
    layer.bias.data += 1


def _change_strides(layer, x):
    layer.weight.data = layer.weight.data.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "change",
    [_change_data, _change_numpy, _change_in_place, _change_sign_of_zero, _load, _load_assigned, _step, _new_data,
     _new_parameter, _swap, _change_bias, _change_strides],
)  # fmt: skip
def test_every_change_is_seen(ran, change):
    layer, x = _layer(), _maps()
    _warm(layer, x)
    assert ran[-1] == "conv_fprop_packed True"
    change(layer, x)
    assert torch.equal(_warm(layer, x), _fresh(layer, x))


def test_a_write_between_the_first_call_and_the_second_is_seen():
    layer, x = _layer(), _maps()
    with torch.no_grad():
        layer(x)
        layer.weight.data[0] = 5
        assert torch.equal(layer(x), _fresh(layer, x))
        assert torch.equal(layer(x), _fresh(layer, x))


def test_a_parametrisation_is_computed_at_each_call(ran):
    layer, x = parametrizations.weight_norm(_layer()), _maps()
    first = _warm(layer, x)
    with torch.no_grad():
        layer.parametrizations.weight.original0.mul_(2)
        assert not torch.equal(layer(x), first)
        assert torch.equal(layer(x), _fresh(layer, x))


def test_functional_call_takes_its_own_weights():
    layer, x = _layer(), _maps()
    y = _warm(layer, x)
    other = {name: t.detach() * 2 for name, t in layer.named_parameters()}
    with torch.no_grad():
        for _ in range(3):
            assert torch.equal(torch.func.functional_call(layer, other, (x,)), y * 2)
    assert torch.equal(_warm(layer, x), y)


def test_copies_and_pickles_carry_nothing():
    layer, x = _layer(), _maps()
    before = io.BytesIO()
    torch.save(layer, before)
    y = _warm(layer, x)
    after = io.BytesIO()
    torch.save(layer, after)
    assert len(before.getvalue()) == len(after.getvalue())
    twin = copy.deepcopy(layer)
    assert vars(twin).keys() == vars(layer).keys()
    assert len(_kept._kept) == 1
    twin.weight.data.zero_()
    assert torch.equal(_warm(layer, x), y)
    assert torch.equal(_warm(twin, x), _fresh(twin, x))


def test_memory_goes_with_the_weights():
    layers, x = [_layer(), _layer(Conv1x1)], _maps(size=4)
    for layer in layers:
        _warm(layer, x)
    weights = sum(layer.weight.numel() * 4 for layer in layers)
    assert weights < _bytes() <= weights * (64 / 9 * 48 / 40 + 1)
    del layers, layer
    gc.collect()
    assert not _kept._kept


def test_nothing_is_kept_in_training(ran):
    layer, x = _layer().train(), _maps()
    for _ in range(3):
        layer(x).sum().backward()
    assert not _kept._kept
    assert "conv_pack" not in ran
    _warm(layer, x)
    assert _bytes()
    layer(x)
    assert not _kept._kept


def test_frozen_weights_are_kept_while_a_gradient_flows(ran):
    layer, x = _layer().requires_grad_(False), _maps().requires_grad_()
    gradients = []
    for _ in range(3):
        x.grad = None
        layer(x).square().sum().backward()
        gradients.append(x.grad)
    assert ran.count("conv_fprop_packed True") == 2
    assert torch.equal(gradients[0], gradients[1])
    assert torch.equal(gradients[0], gradients[2])


def test_inference_tensors(ran):
    with torch.inference_mode():
        layer, x = _layer(), _maps()
        _warm(layer, x)
        layer.weight.add_(1)
        assert torch.equal(_warm(layer, x), _fresh(layer, x))


@pytest.mark.parametrize(
    "weight",
    [torch.ones(40, 40, 3, 3, dtype=torch.float64), torch.ones(40, 80, 3, 3)[:, ::2],
     torch.ones(3, 3, 40, 40).permute(2, 3, 0, 1)],
    ids=["float64", "with gaps", "in another order"],
)  # fmt: skip
def test_what_is_not_kept(ran, weight):
    with torch.no_grad():
        for _ in range(3):
            conv_nhwc(_maps().to(weight.dtype), weight, None, False, False)
    assert ran.count("conv_fprop") == 3
    assert not _kept._kept


@pytest.mark.parametrize(("cin", "cout", "size", "threads"), [(8, 8, 64, 1), (3, 16, 32, 2)])
def test_weights_that_are_quick_to_pack_are_not_kept(ran, cin, cout, size, threads):
    with torch.no_grad():
        for _ in range(3):
            conv_nhwc(torch.randn(4, cin, size, size), torch.ones(cout, cin, 3, 3), None, False, False)
    assert ran.count("conv_fprop") == 3
    assert not _kept._kept


def test_threads_may_call_one_layer_at_once():
    layer, x = _layer(), _maps()
    want, got, start = _fresh(layer, x), [], threading.Barrier(4)

    def call():
        start.wait()
        with torch.no_grad():
            got.extend(torch.equal(layer(x), want) for _ in range(20))

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [True] * 80


def _views(**changed):
    backend = OF_DEVICE["cpu"](0)
    x = torch.zeros(1, 40, 9, 9).contiguous(memory_format=torch.channels_last)
    args = {"x": x, "weight": torch.ones(40, 40, 3, 3), "original": torch.ones(40, 40, 3, 3)}
    size = backend.run("conv_packing", x, args["weight"], False, False)[1]
    args |= {"packed": torch.zeros(size, dtype=torch.uint8), "bias": None, "relu": False, "pool": False}
    args |= {"y": torch.empty_like(x), "mask": None, **changed}
    return backend, tuple(args.values())


def test_only_the_very_bits_that_were_packed_are_run():
    assert _views()[0].run("conv_fprop_packed", *_views()[1]) is True
    for value in (2.0, float("nan")):
        backend, args = _views(original=torch.full((40, 40, 3, 3), value))
        assert backend.run("conv_fprop_packed", *args) is False


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"packed": torch.zeros(5, dtype=torch.uint8)}, r"packed must have \d+ bytes, got 5"),
        ({"original": torch.ones(40, 41, 3, 3)}, "original .*shape"),
        ({"original": torch.ones(3, 3, 40, 40).permute(2, 3, 0, 1)}, "original must have weight's strides"),
        ({"weight": torch.ones(40, 80, 3, 3)[:, ::2], "original": torch.ones(40, 80, 3, 3)[:, ::2]},
         "weight must be dense in memory"),
    ],
)  # fmt: skip
def test_errors_name_what_is_wrong(changed, message):
    backend, args = _views(**changed)
    with pytest.raises(ValueError, match=message):
        backend.run("conv_fprop_packed", *args)


def test_weights_of_an_algorithm_that_packs_none_are_refused():
    backend, args = _views()
    x, weight = (t.double() for t in args[:2])
    with pytest.raises(ValueError, match="weight must be of a convolution whose weights are packed, got direct"):
        backend.run("conv_pack", x, weight, False, False, args[3])
