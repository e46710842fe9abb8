"""What an Engine on CUDA refuses: options, images, names, models; each error says what it got and what is allowed."""

import pytest
import torch
from torch import nn

from tests.engine.test_cuda import THIN, kernels
from tests.engine.test_engine import small
from vggfast.ops import _backends

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.backends("sim", "torch", "cuda")]
X = (2, 3, 64, 64)
BAD_OPTIONS = {
    "dtype": ({"dtype": "float16"}, "dtype must be one of 'fp32', 'tf32', 'bf16', 'fp16', 'fp8' on .*, got 'float16'"),
    "weights": ({"weights": "bf16"}, "weights must be left out on .*, where dtype says it, got 'bf16'"),
    "threads": ({"threads": 2}, "threads must be None on .*, got 2"),
    "calibration": ({"calibration": torch.zeros(X)}, "calibration must be None with dtype 'fp32', got images"),
    "no threads": ({"threads": 0}, "threads must be at least 1, got 0"),
    "no batch": ({"batch": 0}, "batch must be at least 1, got 0"),
    "no size": ({"size": 0}, "size must be at least 1, got 0"),
}


@pytest.mark.parametrize(("options", "text"), BAD_OPTIONS.values(), ids=BAD_OPTIONS)
def test_options_that_do_not_fit(build, options, text):
    with pytest.raises(ValueError, match=text):
        build(small(**THIN), **options)


@pytest.mark.backends("torch")
def test_fp8_where_nothing_runs_it(build):
    with pytest.raises(ValueError, match=r"dtype 'fp8' needs a GPU of .* 9\.0, and torch's ops run here"):
        build(small(**THIN), dtype="fp8", calibration=torch.zeros(X))


@pytest.mark.parametrize(
    ("capability", "architectures", "reason"),
    [
        ((9, 0), "80-real, 90a-real, 90-virtual", None),
        ((8, 0), "80-real, 90a-real", "A GPU is of sm_80"),
        ((12, 0), "90a-real, 90-virtual", "A GPU is of sm_120"),
        ((9, 0), "80-real, 90-virtual", "this build is for 80-real, 90-virtual, without 90a"),
    ],
)
def test_which_gpus_run_hopper_kernels(monkeypatch, capability, architectures, reason):
    class Module:
        def build_info(self):
            return [("CUDA architectures", architectures)]

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "A GPU")
    found = _backends._why_no_hopper(Module(), 0)
    assert found == reason


BAD_INPUTS = {
    "rank": (lambda e, x: e(x[0]), ValueError, r"x must have 4 axes \(N, C, H, W\), got shape \(3, 64, 64\)"),
    "channels": (lambda e, x: e(x[:, :2]), ValueError, "x must have 3 channels, got 2"),
    "float64": (lambda e, x: e(x.double()), TypeError,
                r"x must be torch\.float32 or torch\.bfloat16 on .*, got torch\.float64 on "),
    "half": (lambda e, x: e(x.half()), TypeError, r"x must be .*, got torch\.float16 on"),
    "meta": (lambda e, x: e(x.to("meta")), TypeError, r"x must be .*, got torch\.float32 on meta"),
    "gradient": (lambda e, x: e(x.requires_grad_()), ValueError, "x requires a gradient, and an engine computes none"),
    "too small": (lambda e, x: e(x[..., :31]), ValueError,
                  "x is too small: a max-pool needs at least 2 x 2 pixels, got 4 x 1"),
    "no columns": (lambda e, x: e(x[..., :0]), ValueError, "x is too small"),
    "unknown tap": (lambda e, x: e.features(x, ["relu9_9"]), ValueError,
                    "taps must be among conv1_1, .*, got 'relu9_9'"),
    "no taps": (lambda e, x: e.features(x, []), ValueError, "taps must have at least one name, got none"),
}  # fmt: skip


@kernels
@pytest.mark.parametrize(("call", "error", "text"), BAD_INPUTS.values(), ids=BAD_INPUTS)
def test_inputs_that_do_not_fit(build, call, error, text):
    made = build(small(**THIN), dtype="bf16")
    with pytest.raises(error, match=text) as caught:
        call(made, torch.zeros(X))
    assert "\n" not in str(caught.value)
    assert made(torch.zeros(X)).shape == (2, 10)


def test_heads_that_do_not_fit(build):
    dense = build(small(head="conv", pool_size=3, **THIN))
    with pytest.raises(ValueError, match="x is too small: the head needs at least 3 x 3 places, got 2 x 2"):
        dense(torch.zeros(X))
    for inputs in (7, 20):  # not so many for each pixel, and too few channels
        model = small(pool_size=2, **THIN)
        model.classifier[0] = nn.Linear(inputs, 16)
        with pytest.raises(TypeError, match=rf"classifier\.0 is Linear\(in_features={inputs},.* inputs"):
            build(model)
    with pytest.raises(ValueError, match=r"x is too small: it must have C, H and W of at least 1, got shape"):
        build(small(**THIN).features[:2])(torch.zeros(1, 3, 0, 5))


def test_parameters_that_do_not_fit(build):
    with pytest.raises(
        TypeError, match=r"features\.0 must be torch\.float32 or torch\.bfloat16 .*, got torch\.float64 "
    ):
        build(small(**THIN).double())
    model = small(**THIN)
    model.classifier.to("meta")
    with pytest.raises(TypeError, match=r"classifier\.0 must be .* on cpu or cuda, got torch\.float32 on meta"):
        build(model)
