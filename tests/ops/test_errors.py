"""Each argument that does not fit gives one error that names it, the value it has and what is allowed."""

import pytest
import torch

import vggfast
from vggfast import _native, ops
from vggfast.ops.conv import conv, conv_dgrad, conv_wgrad
from vggfast.ops.fc import linear_dgrad, linear_wgrad
from vggfast.ops.lrn import lrn_dgrad
from vggfast.ops.mask import mask_gather, mask_scatter


def t(*shape, dtype=torch.float32, device="cpu") -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype, device=device)


def bits(*shape) -> torch.Tensor:
    return t(*shape, dtype=torch.uint8)


X, W, W1, B = t(2, 3, 4, 4), t(5, 3, 3, 3), t(5, 3, 1, 1), t(5)

# (call, error, what the text must say), the text as a regular expression
BAD = {
    "conv3x3 rank": (lambda: ops.conv3x3(t(3, 4, 4), W), ValueError,
                     r"x must have 4 axes \(N, C, H, W\), got shape \(3, 4, 4\)"),
    "conv3x3 no rows": (lambda: ops.conv3x3(t(2, 3, 0, 4), W), ValueError,
                        r"x must have C, H and W of at least 1, got shape \(2, 3, 0, 4\)"),
    "conv3x3 no channels": (lambda: ops.conv3x3(t(2, 0, 4, 4), W), ValueError,
                            r"x must have C, H and W of at least 1, got shape \(2, 0, 4, 4\)"),
    "conv3x3 channels": (lambda: ops.conv3x3(t(2, 4, 4, 4), W), ValueError,
                         "axis 1 of x and axis 1 of weight must have the same length, got shapes "
                         r"\(2, 4, 4, 4\) and \(5, 3, 3, 3\)"),
    "conv3x3 kernel": (lambda: ops.conv3x3(X, W1), ValueError,
                       r"weight must have shape \(Cout, Cin, 3, 3\), got \(5, 3, 1, 1\)"),
    "conv3x3 weight rank": (lambda: ops.conv3x3(X, t(5, 27)), ValueError,
                            r"weight must have shape \(Cout, Cin, 3, 3\), got \(5, 27\)"),
    "conv3x3 no outputs": (lambda: ops.conv3x3(X, t(0, 3, 3, 3)), ValueError,
                           r"weight must have shape .* with at least one channel on each side, got \(0, 3, 3, 3\)"),
    "conv3x3 int64": (lambda: ops.conv3x3(X.long(), W.long()), TypeError,
                      "x must have one of the dtypes torch.bfloat16, torch.float16, torch.float32, torch.float64, "
                      "got torch.int64"),
    "conv3x3 half weight": (lambda: ops.conv3x3(X, W.half()), TypeError,
                            "weight must have the dtype of x, torch.float32, got torch.float16"),
    "conv3x3 halves": (lambda: ops.conv3x3(X.half(), W.bfloat16()), TypeError,
                       "weight must have the dtype of x, torch.float16, got torch.bfloat16"),
    "conv3x3 dtypes": (lambda: ops.conv3x3(X, W.double()), TypeError,
                       "weight must have the dtype of x, torch.float32, got torch.float64"),
    "conv3x3 bias dtype": (lambda: ops.conv3x3(X, W, B.double()), TypeError,
                           "bias must have the dtype of x, torch.float32, got torch.float64"),
    "conv3x3 bias shape": (lambda: ops.conv3x3(X, W, t(4)), ValueError,
                           r"bias must have shape \(5,\), weight's Cout, got \(4,\)"),
    "conv3x3 bias rank": (lambda: ops.conv3x3(X, W, t(5, 1)), ValueError,
                          r"bias must have shape \(5,\), weight's Cout, got \(5, 1\)"),
    "conv3x3 devices": (lambda: ops.conv3x3(X, W.to("meta")), ValueError,
                        "weight must be on the device of x, cpu, got meta"),
    "conv3x3 bias device": (lambda: ops.conv3x3(X, W, B.to("meta")), ValueError,
                            "bias must be on the device of x, cpu, got meta"),
    "conv3x3 pool of a row": (lambda: ops.conv3x3(t(1, 3, 1, 8), W, pool=True), ValueError,
                              r"x must have H and W of at least 2 with pool, got shape \(1, 3, 1, 8\)"),
    "conv1x1 kernel": (lambda: ops.conv1x1(X, W), ValueError,
                       r"weight must have shape \(Cout, Cin, 1, 1\), got \(5, 3, 3, 3\)"),
    "conv1x1 channels": (lambda: ops.conv1x1(t(1, 2, 4, 4), W1), ValueError,
                         r"axis 1 of x and axis 1 of weight .*, got shapes \(1, 2, 4, 4\) and \(5, 3, 1, 1\)"),
    "max_pool rank": (lambda: ops.max_pool2x2(t(4, 4)), ValueError,
                      r"x must have 4 axes \(N, C, H, W\), got shape \(4, 4\)"),
    "max_pool int64": (lambda: ops.max_pool2x2(X.long()), TypeError, "x must have one of .*, got torch.int64"),
    "max_pool of a pixel": (lambda: ops.max_pool2x2(t(1, 3, 1, 1)), ValueError,
                            r"x must have H and W of at least 2 without ceil_mode, got shape \(1, 3, 1, 1\)"),
    "sum_pool reduce": (lambda: ops.sum_pool(X, reduce="max"), ValueError,
                        "reduce must be 'mean' or 'sum', got 'max'"),
    "mean_posteriors views": (lambda: ops.mean_posteriors(X, views=3), ValueError,
                           "views must be a divisor of the 2 maps, got 3"),
    "sum_pool rank": (lambda: ops.sum_pool(t(2, 3)), ValueError,
                      r"x must have 4 axes \(N, C, H, W\), got shape \(2, 3\)"),
    "sum_pool complex": (lambda: ops.sum_pool(X.to(torch.complex64)), TypeError,
                         "x must have one of .*, got torch.complex64"),
    "lrn size": (lambda: ops.local_response_norm(X, size=0), ValueError, "size must be at least 1, got 0"),
    "lrn no channels": (lambda: ops.local_response_norm(t(1, 0, 2, 2)), ValueError,
                        r"x must have C, H and W of at least 1, got shape \(1, 0, 2, 2\)"),
    "lrn bool": (lambda: ops.local_response_norm(X.bool()), TypeError, "x must have one of .*, got torch.bool"),
    "linear rank": (lambda: ops.linear(X, t(5, 4)), ValueError,
                    r"x must have 2 axes, got shape \(2, 3, 4, 4\)"),
    "linear weight rank": (lambda: ops.linear(t(2, 3), B), ValueError, r"weight must have 2 axes, got shape \(5,\)"),
    "linear inputs": (lambda: ops.linear(t(2, 3), t(5, 4)), ValueError,
                      r"axis 1 of x and axis 1 of weight must have the same length, got shapes \(2, 3\) and \(5, 4\)"),
    "linear bias": (lambda: ops.linear(t(2, 3), t(5, 3), t(3)), ValueError,
                    r"bias must have shape \(5,\), weight's outputs, got \(3,\)"),
    "linear dtypes": (lambda: ops.linear(t(2, 3), t(5, 3).double()), TypeError,
                      "weight must have the dtype of x, torch.float32, got torch.float64"),
    "linear_dgrad outputs": (lambda: linear_dgrad(t(2, 3), t(5, 3)), ValueError,
                             r"axis 1 of gy and axis 0 of weight must have the same length, got shapes \(2, 3\) "
                             r"and \(5, 3\)"),
    "linear_wgrad rows": (lambda: linear_wgrad(t(2, 3), t(1, 5)), ValueError,
                          r"x and gy must have the same N, got shapes \(2, 3\) and \(1, 5\)"),
    "linear_wgrad rank": (lambda: linear_wgrad(t(2, 3), B), ValueError, r"gy must have 2 axes, got shape \(5,\)"),
    "lrn_dgrad shapes": (lambda: lrn_dgrad(t(2, 3, 4, 5), X, 5, 1.0, 0.75, 1.0), ValueError,
                         r"gy must have the shape of x, \(2, 3, 4, 4\), got \(2, 3, 4, 5\)"),
    "conv_dgrad channels": (lambda: conv_dgrad(t(2, 4, 4, 4), None, W, 4, 4), ValueError,
                            r"axis 1 of gy and axis 0 of weight must have the same length, got shapes "
                            r"\(2, 4, 4, 4\) and \(5, 3, 3, 3\)"),
    "conv_dgrad extents": (lambda: conv_dgrad(t(2, 5, 4, 4), None, W, 4, 5), ValueError,
                           r"gy must have H, W of \(4, 5\), got shape \(2, 5, 4, 4\)"),
    "conv_dgrad pooled": (lambda: conv_dgrad(t(2, 5, 4, 4), bits(2, 3, 4, 4, 1), W, 4, 4), ValueError,
                          r"gy must have H, W of \(2, 2\), got shape \(2, 5, 4, 4\)"),
    "conv_dgrad mask": (lambda: conv_dgrad(t(2, 5, 4, 4), bits(2, 1, 2, 2, 1), W, 4, 4), ValueError,
                             r"mask must have shape \(2, 4, 4, 1\), with the planes after N, for gy, "
                             r"got \(2, 1, 2, 2, 1\)"),
    "conv_dgrad x_mask": (lambda: conv_dgrad(t(2, 5, 4, 4), None, W, 4, 4, None, bits(2, 1, 4, 4, 2)), ValueError,
                          r"x_mask must have shape \(2, 4, 4, 1\), with the planes after N, for x, "
                          r"got \(2, 1, 4, 4, 2\)"),
    "conv_dgrad x_mask of a pool": (lambda: conv_dgrad(t(2, 5, 4, 4), None, W, 4, 4, None, bits(2, 3, 4, 4, 1)),
                                    ValueError, r"x_mask must have 1 plane, a ReLU's, got shape \(2, 3, 4, 4, 1\)"),
    "conv gy_masked": (lambda: conv(X, W, B, True, True, True, None, None, True), ValueError,
                       "gy_masked must be False but with relu and save and without pool, got True with relu True, "
                       "save True and pool True"),
    "conv_dgrad dtypes": (lambda: conv_dgrad(t(2, 5, 4, 4).double(), None, W, 4, 4), TypeError,
                          "weight must have the dtype of gy, torch.float64, got torch.float32"),
    "conv_wgrad images": (lambda: conv_wgrad(X, t(1, 5, 4, 4), None, 3, True), ValueError,
                          r"x and gy must have the same N, got shapes \(2, 3, 4, 4\) and \(1, 5, 4, 4\)"),
    "conv_wgrad extents": (lambda: conv_wgrad(X, t(2, 5, 4, 3), None, 3, True), ValueError,
                           r"gy must have H, W of \(4, 4\), got shape \(2, 5, 4, 3\)"),
    "conv_wgrad pooled": (lambda: conv_wgrad(X, t(2, 5, 1, 2), bits(2, 2, 1, 2, 1), 3, True), ValueError,
                          r"gy must have H, W of \(2, 2\), got shape \(2, 5, 1, 2\)"),
    "conv_wgrad mask": (lambda: conv_wgrad(X, t(2, 5, 4, 4), t(2, 1, 4, 4, 1), 3, True), ValueError,
                             "mask must be torch.uint8 of shape .*, got torch.float32 of shape"),
    "conv_wgrad dtypes": (lambda: conv_wgrad(X, t(2, 5, 4, 4).double(), None, 3, True), TypeError,
                          "gy must have the dtype of x, torch.float32, got torch.float64"),
    "conv_wgrad kernel": (lambda: conv_wgrad(X, t(2, 5, 4, 4), None, 2, False), ValueError,
                          "kernel must be 1 or 3, got 2"),
    "algorithm": (lambda: _native.set_conv_algorithm("winograd8"), ValueError,
                  f"algorithm must be one of {', '.join(_native.conv_algorithms())} on {_native.cpu_isa()}, "
                  "got 'winograd8'"),
    "gather dtype": (lambda: mask_gather(X, t(2, 1, 4, 4, 1)), ValueError,
                     r"mask must be torch.uint8 of shape .*, got torch.float32 of shape \(2, 1, 4, 4, 1\)"),
    "gather planes": (lambda: mask_gather(X, bits(2, 4, 4, 4, 1)), ValueError,
                      r"mask must be .*, got torch.uint8 of shape \(2, 4, 4, 4, 1\)"),
    "gather bytes": (lambda: mask_gather(X, bits(2, 1, 4, 4, 2)), ValueError,
                     r"mask must have shape \(2, 4, 4, 1\), with the planes after N, for z, got \(2, 1, 4, 4, 2\)"),
    "scatter extents": (lambda: mask_scatter(X, bits(2, 2, 4, 4, 1), 11, 8), ValueError,
                        r"y must have shape \(2, 3, 5, 4\), got \(2, 3, 4, 4\)"),
    "gather no mask": (lambda: mask_gather(X, bits()), ValueError, r"mask must be .*, got torch.uint8 of shape \(\)"),
    "scatter rank": (lambda: mask_scatter(X[0, 0], bits(2, 2, 4, 4, 1), 8, 8), ValueError, "y must have 4 axes"),
    "scatter negative": (lambda: mask_scatter(X, bits(2, 2, 4, 4, 1), -1, 8), ValueError,
                         "h and w must be at least 1, got -1 and 8"),
    "instruction set": (lambda: _native.set_cpu_isa("mmx"), ValueError,
                        "isa must be one of amx-emulated, portable.* on this machine, got 'mmx'"),
}  # fmt: skip


@pytest.mark.parametrize(("call", "error", "text"), BAD.values(), ids=BAD)
def test_error(call, error, text):
    with pytest.raises(error, match=text) as caught:
        call()
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    assert "\n" not in str(caught.value)


def test_meta_tensors_give_shapes_and_the_same_errors():
    x, w = X.to("meta"), W.to("meta")
    y = ops.conv3x3(x, w, relu=True, pool=True)
    assert y.device.type == "meta"
    assert y.shape == (2, 5, 2, 2)
    with pytest.raises(ValueError, match="weight must be on the device of x, meta, got cpu"):
        ops.conv3x3(x, W)


def test_set_exact(algorithm):
    vggfast.set_exact(True)
    assert _native.conv_algorithm() == "direct"
    with pytest.raises(ValueError, match=r"algorithm must be one of .*, got 'fast'"):
        _native.set_conv_algorithm("fast")
    assert _native.conv_algorithm() == "direct"
    vggfast.set_exact(False)
    assert _native.conv_algorithm() == "auto"
