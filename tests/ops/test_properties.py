"""Shapes, strides and options drawn by hypothesis, against vggfast.ops.reference in float64.

The tensors hold small whole numbers. Their sums are exact in float32, so that ours must be equal to the reference bit
by bit, ties at a maximum and at ReLU's 0 included. Where an op divides, or convolves by way of a transform, the rule of
the other tests holds.
"""

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.comparisons import assert_as_accurate_as_torch, relative_error, results
from vggfast import ops
from vggfast.ops import reference

# A back end is chosen once for all of a test's examples, which is what we want.
many = settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
LAYOUTS = ("contiguous", "channels_last", "sliced", "transposed", "expanded", "offset")
small = st.integers(1, 9)


def laid_out(shape, layout, seed) -> torch.Tensor:
    """Small whole numbers of this shape in memory that lies as `layout` says."""
    n, c, h, w = shape
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        drawn = torch.randint(-3, 4, shape, generator=generator, device="cpu")
        return drawn.float().to(torch.get_default_device())

    make = {
        "contiguous": lambda: draw(*shape),
        "channels_last": lambda: draw(n, h, w, c).permute(0, 3, 1, 2),
        "sliced": lambda: draw(n, 2 * c, h + 3, 2 * w)[:, ::2, 1 : h + 1, ::2],
        "transposed": lambda: draw(n, c, w, h).transpose(2, 3),
        "expanded": lambda: draw(1, c, h, 1).expand(shape),
        "offset": lambda: draw(n * c * h * w + 1)[1:].view(shape),
    }
    return make[layout]()


def compare(check, op, inputs, **options):
    """`check` of each result of ours, torch's and the exact one."""
    triples = zip(
        results(getattr(ops, op), inputs, **options),
        results(getattr(reference, op), inputs, **options),
        results(getattr(reference, op), [t.double() for t in inputs], **options),
        strict=True,
    )
    for triple in triples:
        check(*triple)


def assert_exact(ours, torchs, exact):
    assert torch.equal(ours.double(), exact)


images = st.tuples(st.integers(0, 3), st.integers(1, 40), small, small)
layouts = st.sampled_from(LAYOUTS)
seeds = st.integers(0, 2**16)


@many
@given(images, st.integers(1, 80), st.sampled_from([1, 3]), layouts, layouts, st.booleans(), st.booleans(), seeds)
def test_conv(backend, exact, one_thread, image, cout, kernel, x_layout, weight_layout, relu, pool, seed):
    n, cin, h, w = image
    x = laid_out((n, cin, h, w), x_layout, seed)
    weight = laid_out((cout, cin, kernel, kernel), weight_layout, seed + 1)
    bias = laid_out((cout, 1, 1, 1), "sliced", seed + 2).flatten()
    options = {"relu": relu, "pool": pool and min(h, w) > 1} if kernel == 3 else {"relu": relu}
    compare(assert_exact, f"conv{kernel}x{kernel}", [x, weight, bias], **options)


batches = st.tuples(st.integers(1, 5), st.integers(1, 40), st.integers(1, 15), st.integers(1, 15))


@settings(many, max_examples=25)
@given(batches, st.integers(1, 40), layouts, layouts, seeds)
def test_conv_by_each_algorithm(backend, algorithm, one_thread, image, cout, x_layout, weight_layout, seed):
    n, cin, h, w = image
    x, weight = laid_out(image, x_layout, seed), laid_out((cout, cin, 3, 3), weight_layout, seed + 1)
    ours = results(ops.conv3x3, [x, weight])
    exact = results(reference.conv3x3, [x.double(), weight.double()])
    for a, b, terms in zip(ours, exact, (9 * cin, 9 * cout, n * h * w), strict=True):
        # Whole numbers may cancel, so an error is measured by what their sums usually come to: the deviation is 2.
        assert relative_error(a, b) < 1e-5 or (a - b).square().mean().sqrt() < 1e-5 * 4 * terms**0.5


@many
@given(images, layouts, st.booleans(), seeds)
def test_max_pool(backend, one_thread, image, layout, ceil_mode, seed):
    compare(assert_exact, "max_pool2x2", [laid_out(image, layout, seed)], ceil_mode=ceil_mode or min(image[2:]) < 2)


@many
@given(images, layouts, st.sampled_from(["mean", "sum"]), seeds)
def test_sum_pool(backend, one_thread, image, layout, reduce, seed):
    compare(assert_as_accurate_as_torch, "sum_pool", [laid_out(image, layout, seed)], reduce=reduce)


# Of some size, because the rule compares mean errors: torch's own of a handful of numbers may be next to none.
maps = st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(5, 9), st.integers(5, 9))


@many
@given(maps, layouts, st.integers(1, 12), st.sampled_from([0.5, 0.75, 1.0]), seeds)
def test_local_response_norm(backend, one_thread, image, layout, size, beta, seed):
    compare(
        assert_as_accurate_as_torch,
        "local_response_norm",
        [laid_out(image, layout, seed)],
        size=size,
        alpha=0.5,
        beta=beta,
    )
