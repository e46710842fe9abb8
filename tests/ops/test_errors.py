"""Each argument that does not fit gives one error that names it, the value it has and what is wanted."""

import pytest
import torch

import vggfast
from vggfast import _native, ops
from vggfast.ops.conv import conv_dgrad, conv_wgrad
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
    "conv3x3 rank": (lambda: ops.conv3x3(t(3, 4, 4), W), ValueError, r"x has shape \(3, 4, 4\): 4 axes .* are wanted"),
    "conv3x3 no rows": (lambda: ops.conv3x3(t(2, 3, 0, 4), W), ValueError, r"x has shape \(2, 3, 0, 4\): .*at least 1"),
    "conv3x3 no channels": (lambda: ops.conv3x3(t(2, 0, 4, 4), W), ValueError, r"x has shape \(2, 0, 4, 4\)"),
    "conv3x3 channels": (lambda: ops.conv3x3(t(2, 4, 4, 4), W), ValueError,
                         r"x has shape \(2, 4, 4, 4\) and weight \(5, 3, 3, 3\): axis 1 of x and axis 1 of weight"),
    "conv3x3 kernel": (lambda: ops.conv3x3(X, W1), ValueError, r"weight has shape \(5, 3, 1, 1\): \(Cout, Cin, 3, 3\)"),
    "conv3x3 weight rank": (lambda: ops.conv3x3(X, t(5, 27)), ValueError, r"weight has shape \(5, 27\): \(Cout, Cin,"),
    "conv3x3 no outputs": (lambda: ops.conv3x3(X, t(0, 3, 3, 3)), ValueError, r"weight has shape \(0, 3, 3, 3\)"),
    "conv3x3 int64": (lambda: ops.conv3x3(X.long(), W.long()), TypeError,
                      "x is torch.int64: one of torch.bfloat16, torch.float16, torch.float32, torch.float64 is wanted"),
    "conv3x3 half weight": (lambda: ops.conv3x3(X, W.half()), TypeError,
                            "weight is torch.float16 and x is torch.float32: the same dtype is wanted"),
    "conv3x3 halves": (lambda: ops.conv3x3(X.half(), W.bfloat16()), TypeError, "weight is torch.bfloat16 and x is"),
    "conv3x3 dtypes": (lambda: ops.conv3x3(X, W.double()), TypeError,
                       "weight is torch.float64 and x is torch.float32: the same dtype is wanted"),
    "conv3x3 bias dtype": (lambda: ops.conv3x3(X, W, B.double()), TypeError, "bias is torch.float64 and x is torch.f"),
    "conv3x3 bias shape": (lambda: ops.conv3x3(X, W, t(4)), ValueError, r"bias has shape \(4,\): \(5,\).* is wanted"),
    "conv3x3 bias rank": (lambda: ops.conv3x3(X, W, t(5, 1)), ValueError, r"bias has shape \(5, 1\): \(5,\)"),
    "conv3x3 devices": (lambda: ops.conv3x3(X, W.to("meta")), ValueError,
                        "weight is on meta and x on cpu: the same device is wanted"),
    "conv3x3 bias device": (lambda: ops.conv3x3(X, W, B.to("meta")), ValueError, "bias is on meta and x on cpu"),
    "conv3x3 pool of a row": (lambda: ops.conv3x3(t(1, 3, 1, 8), W, pool=True), ValueError,
                              r"x has shape \(1, 3, 1, 8\): with pool, H and W of at least 2 are wanted"),
    "conv1x1 kernel": (lambda: ops.conv1x1(X, W), ValueError, r"weight has shape \(5, 3, 3, 3\): \(Cout, Cin, 1, 1\)"),
    "conv1x1 channels": (lambda: ops.conv1x1(t(1, 2, 4, 4), W1), ValueError, r"x has shape \(1, 2, 4, 4\) and weight"),
    "max_pool rank": (lambda: ops.max_pool2x2(t(4, 4)), ValueError, r"x has shape \(4, 4\): 4 axes"),
    "max_pool int64": (lambda: ops.max_pool2x2(X.long()), TypeError, "x is torch.int64"),
    "max_pool of a pixel": (lambda: ops.max_pool2x2(t(1, 3, 1, 1)), ValueError,
                            r"x has shape \(1, 3, 1, 1\): without ceil_mode, H and W of at least 2 are wanted"),
    "sum_pool reduce": (lambda: ops.sum_pool(X, reduce="max"), ValueError,
                        "reduce is 'max': 'mean' or 'sum' is wanted"),
    "mean_posteriors views": (lambda: ops.mean_posteriors(X, views=3), ValueError,
                           "views is 3: a divisor of the 2 maps is wanted"),
    "sum_pool rank": (lambda: ops.sum_pool(t(2, 3)), ValueError, r"x has shape \(2, 3\): 4 axes"),
    "sum_pool complex": (lambda: ops.sum_pool(X.to(torch.complex64)), TypeError, "x is torch.complex64"),
    "lrn size": (lambda: ops.local_response_norm(X, size=0), ValueError, "size is 0: 1 or more is wanted"),
    "lrn no channels": (lambda: ops.local_response_norm(t(1, 0, 2, 2)), ValueError, r"x has shape \(1, 0, 2, 2\)"),
    "lrn bool": (lambda: ops.local_response_norm(X.bool()), TypeError, "x is torch.bool"),
    "linear rank": (lambda: ops.linear(X, t(5, 4)), ValueError, r"x has shape \(2, 3, 4, 4\): 2 axes are wanted"),
    "linear weight rank": (lambda: ops.linear(t(2, 3), B), ValueError, r"weight has shape \(5,\): 2 axes are wanted"),
    "linear inputs": (lambda: ops.linear(t(2, 3), t(5, 4)), ValueError,
                      r"x has shape \(2, 3\) and weight \(5, 4\): axis 1 of x and axis 1 of weight must be as long"),
    "linear bias": (lambda: ops.linear(t(2, 3), t(5, 3), t(3)), ValueError,
                    r"bias has shape \(3,\): \(5,\).* is wanted"),
    "linear dtypes": (lambda: ops.linear(t(2, 3), t(5, 3).double()), TypeError, "weight is torch.float64 and x is"),
    "linear_dgrad outputs": (lambda: linear_dgrad(t(2, 3), t(5, 3)), ValueError,
                             r"gy has shape \(2, 3\) and weight \(5, 3\): axis 1 of gy and axis 0 of weight"),
    "linear_wgrad rows": (lambda: linear_wgrad(t(2, 3), t(1, 5)), ValueError,
                          r"x has shape \(2, 3\) and gy \(1, 5\): the same N is wanted"),
    "linear_wgrad rank": (lambda: linear_wgrad(t(2, 3), B), ValueError, r"gy has shape \(5,\): 2 axes are wanted"),
    "lrn_dgrad shapes": (lambda: lrn_dgrad(t(2, 3, 4, 5), X, 5, 1.0, 0.75, 1.0), ValueError,
                         r"gy has shape \(2, 3, 4, 5\) and x \(2, 3, 4, 4\): the same shape is wanted"),
    "conv_dgrad channels": (lambda: conv_dgrad(t(2, 4, 4, 4), None, W, 4, 4), ValueError,
                            r"gy has shape \(2, 4, 4, 4\) and weight .*: axis 1 of gy and axis 0 of weight"),
    "conv_dgrad extents": (lambda: conv_dgrad(t(2, 5, 4, 4), None, W, 4, 5), ValueError,
                           r"gy has shape \(2, 5, 4, 4\): H, W of \(4, 5\) are wanted"),
    "conv_dgrad pooled": (lambda: conv_dgrad(t(2, 5, 4, 4), bits(2, 3, 4, 4, 1), W, 4, 4), ValueError,
                          r"gy has shape \(2, 5, 4, 4\): H, W of \(2, 2\) are wanted"),
    "conv_dgrad mask": (lambda: conv_dgrad(t(2, 5, 4, 4), bits(2, 1, 2, 2, 1), W, 4, 4), ValueError,
                             r"mask has shape \(2, 1, 2, 2, 1\): \(2, 4, 4, 1\), with the planes after N, is"),
    "conv_dgrad dtypes": (lambda: conv_dgrad(t(2, 5, 4, 4).double(), None, W, 4, 4), TypeError,
                          "weight is torch.float32 and gy is torch.float64: the same dtype is wanted"),
    "conv_wgrad images": (lambda: conv_wgrad(X, t(1, 5, 4, 4), None, 3, True), ValueError,
                          r"x has shape \(2, 3, 4, 4\) and gy \(1, 5, 4, 4\): the same N is wanted"),
    "conv_wgrad extents": (lambda: conv_wgrad(X, t(2, 5, 4, 3), None, 3, True), ValueError,
                           r"gy has shape \(2, 5, 4, 3\): H, W of \(4, 4\) are wanted"),
    "conv_wgrad pooled": (lambda: conv_wgrad(X, t(2, 5, 1, 2), bits(2, 2, 1, 2, 1), 3, True), ValueError,
                          r"gy has shape \(2, 5, 1, 2\): H, W of \(2, 2\) are wanted"),
    "conv_wgrad mask": (lambda: conv_wgrad(X, t(2, 5, 4, 4), t(2, 1, 4, 4, 1), 3, True), ValueError,
                             "mask is torch.float32 of shape .*: torch.uint8, .* is wanted"),
    "conv_wgrad dtypes": (lambda: conv_wgrad(X, t(2, 5, 4, 4).double(), None, 3, True), TypeError,
                          "gy is torch.float64 and x is torch.float32: the same dtype is wanted"),
    "conv_wgrad kernel": (lambda: conv_wgrad(X, t(2, 5, 4, 4), None, 2, False), ValueError,
                          "kernel is 2: 1 or 3 is wanted"),
    "algorithm": (lambda: _native.set_conv_algorithm("winograd8"), ValueError,
                  "algorithm must be one of auto, direct, winograd2, winograd4, winograd6, got 'winograd8'"),
    "gather dtype": (lambda: mask_gather(X, t(2, 1, 4, 4, 1)), ValueError,
                     r"mask is torch.float32 of shape \(2, 1, 4, 4, 1\): torch.uint8, .* is wanted"),
    "gather planes": (lambda: mask_gather(X, bits(2, 4, 4, 4, 1)), ValueError,
                      r"mask is .* \(2, 4, 4, 4, 1\)"),
    "gather bytes": (lambda: mask_gather(X, bits(2, 1, 4, 4, 2)), ValueError,
                     r"mask has shape \(2, 1, 4, 4, 2\): \(2, 4, 4, 1\), with the planes after N, is wanted"),
    "scatter extents": (lambda: mask_scatter(X, bits(2, 2, 4, 4, 1), 11, 8), ValueError,
                        r"y must have shape \(2, 3, 5, 4\), got \(2, 3, 4, 4\)"),
    "instruction set": (lambda: _native.set_cpu_isa("mmx"), ValueError,
                        "isa must be one of portable.* on this machine, got 'mmx'"),
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
    with pytest.raises(ValueError, match="weight is on cpu and x on meta"):
        ops.conv3x3(x, W)


def test_set_exact(algorithm):
    vggfast.set_exact(True)
    assert _native.conv_algorithm() == "direct"
    with pytest.raises(ValueError, match="algorithm must be one of .*, got 'fast'"):
        _native.set_conv_algorithm("fast")
    assert _native.conv_algorithm() == "direct"
    vggfast.set_exact(False)
    assert _native.conv_algorithm() == "auto"
