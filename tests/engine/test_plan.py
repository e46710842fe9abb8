"""An engine's plans on CUDA: what is fused, and where activations lie in the arena, without running any of it."""

import random

import pytest
import torch

from vggfast.engine.plan import ALIGNMENT, fuse, make_plan, output_shapes
from vggfast.graph.layers import Conv, Flatten, Linear, Lrn, MaxPool, Relu, RowMean, Windows
from vggfast.models import CONFIGURATIONS

SHAPE = (2, 3, 49, 62)


def conv(cin, cout, kernel=3):
    return Conv(torch.empty(cout, cin, kernel, kernel, device="meta"), None)


def trunk(config, ceil_mode=False):
    """A configuration's layers, an eighth as wide."""
    layers, channels = [], 3
    for item in CONFIGURATIONS[config]:
        if item == "M":
            layers.append(MaxPool(ceil_mode))
        elif item == "LRN":
            layers.append(Lrn(5, 1e-4, 0.75, 2.0))
        else:
            cout, kernel = (item // 8, 3) if isinstance(item, int) else (channels, 1)
            layers += [conv(channels, cout, kernel), Relu()]
            channels = cout
    return layers


def head(dense, size=1):
    rows = Windows(size, by_pixel=True) if dense else Flatten(size, by_pixel=True)
    weights = [torch.empty(*shape, device="meta") for shape in ((16, 64 * size * size), (10, 16))]
    return [rows, Linear(weights[0], None), Relu(), Linear(weights[1], None), *([RowMean()] if dense else [])]


def span(activation):
    return range(activation.offset, activation.offset + activation.bytes)


def apart(a, b):
    return not a or not b or a.start >= b.stop or b.start >= a.stop


def aligned(span):
    return -(-len(span) // ALIGNMENT) * ALIGNMENT


def assert_sound(plan):
    """Nothing is written over what is still to be read, all lies in the arena, and no byte is there for nothing."""
    kept = [span(output) for output in plan.outputs[:-1]]
    written, rooms = [], []
    for step in plan.steps:
        source, target, scratch = span(step.source), span(step.target), range(step.scratch.start, step.scratch.stop)
        assert apart(scratch, source)
        assert apart(scratch, target)
        assert source == target if step.in_place else apart(source, target)
        for each in (source, target, scratch):
            assert each.start % ALIGNMENT == 0
            assert each.stop <= plan.bytes
        for tap in written:
            assert apart(tap, target)
            assert apart(tap, scratch)
        if any(step.target is output for output in plan.outputs[:-1]):
            written.append(target)
        rooms.append(sum(map(aligned, {source, target} - set(kept))) + aligned(scratch))
    assert written == kept
    assert plan.bytes == sum(map(aligned, kept)) + max(rooms)


@pytest.mark.parametrize("config", CONFIGURATIONS)
@pytest.mark.parametrize("dense", [False, True])
def test_memory_of_networks(config, dense):
    layers = [*trunk(config), *head(dense)]
    rng = random.Random(config)
    for taps in (0, 1, 3, len(layers) // 2):
        expected = sorted({*rng.sample(range(len(layers) - 5), taps), len(layers) - 1})
        for dtype in (torch.float32, torch.bfloat16):
            plan = make_plan(layers, SHAPE, expected, dtype, lambda step: rng.choice([0, 1, 300, 5000]))
            assert_sound(plan)
            assert [each.shape for each in plan.outputs] == output_shapes(layers, SHAPE, expected)


def test_memory_of_any_layers_in_a_row():
    """Those that work in place among them, and taps of every one of them."""
    rng = random.Random(0)
    for _ in range(300):
        channels, layers = 3, []
        for _ in range(rng.randint(1, 8)):
            kind = rng.choice(["conv", "relu", "relu", "pool", "lrn"])
            if kind == "conv":
                layers.append(conv(channels, channels := rng.choice([1, 5, 64])))
            else:
                layers.append({"relu": Relu(), "pool": MaxPool(True), "lrn": Lrn(5, 1.0, 1.0, 1.0)}[kind])
        expected = sorted({rng.randrange(len(layers)) for _ in range(rng.randint(1, 4))})
        plan = make_plan(layers, (1, 3, 17, 9), expected, torch.float16, lambda step: rng.choice([0, 700]))
        assert_sound(plan)
        assert len(plan.outputs) == len(expected)


def test_the_input_and_output_of_the_largest_layer_and_no_more():
    """VGG-16 in bfloat16: conv1_2, whose pooled output is a quarter of its input, beside conv1_1's output."""
    layers = [conv(3, 64), Relu(), conv(64, 64), Relu(), MaxPool(False), conv(64, 128), Relu()]
    plan = make_plan(layers, (1, 3, 224, 224), [6], torch.bfloat16, lambda step: 0)
    pixels = 224 * 224
    assert plan.bytes == 2 * pixels * (64 + 64 // 4)


def test_what_is_fused():
    layers = [
        conv(3, 8),
        Relu(),
        MaxPool(False),
        conv(8, 8),
        Relu(),
        MaxPool(True),
        conv(8, 8, 1),
        MaxPool(False),
        Relu(),
    ]

    def runs(*expected):
        return [(run.first, run.last, run.relu, run.pool) for run in fuse(layers, expected)]

    assert runs(8) == [(0, 2, True, True), (3, 4, True, False), (5, 5, False, False), (6, 7, False, True),
                       (8, 8, False, False)]  # fmt: skip
    assert runs(0, 1) == [(0, 0, False, False), (1, 1, False, False)]
    assert runs(1, 2) == [(0, 1, True, False), (2, 2, False, False)]
    assert runs(1) == [(0, 1, True, False)]


def test_block_1_in_one_step():
    layers = [*trunk("D"), *head(False)]

    def runs(layers, *expected):
        return [(run.first, run.last) for run in fuse(layers, expected, block1=True)][:2]

    assert runs(layers, 4) == [(0, 4)]
    assert runs(layers, 30) == [(0, 4), (5, 6)]
    assert runs(layers, 3) == [(0, 1), (2, 3)]  # the pool is not requested
    assert runs(layers, 1, 30) == [(0, 1), (2, 4)]  # a tap within
    assert runs(layers, 3, 30) == [(0, 1), (2, 3)]
    assert runs(trunk("D", ceil_mode=True), 30) == [(0, 1), (2, 3)]
    assert runs(trunk("A"), 20) == [(0, 2), (3, 5)]  # one convolution
    plan = make_plan(layers, SHAPE, [30], torch.bfloat16, lambda step: 300 * (step.then is None), block1=True)
    assert_sound(plan)
    step = plan.steps[0]
    assert (step.layer, step.then, step.relu, step.pool) == (layers[0], layers[2], True, True)
    assert step.target.shape == (2, 8, 24, 31)
    unfused = make_plan(layers, SHAPE, [30], torch.bfloat16, lambda step: 300)
    assert plan.bytes < unfused.bytes
    assert [each.then for each in unfused.steps] == [None] * len(unfused.steps)


def test_rows_are_a_view_where_the_map_has_the_heads_size():
    for dense in (False, True):
        layers = [conv(3, 64), *head(dense, size=7)]
        native, larger = (
            make_plan(layers, (2, 3, size, size), [len(layers) - 1], torch.float16, lambda step: 0) for size in (7, 9)
        )
        assert native.steps[1].in_place
        assert not larger.steps[1].in_place
