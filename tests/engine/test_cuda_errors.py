"""What an Engine on CUDA refuses: options, images, names, models; each error says what it got and what is wanted."""

import pytest
import torch
from torch import nn

from tests.engine.test_cuda import THIN, kernels
from tests.engine.test_engine import small
from vggfast.ops import _backends

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.backends("sim", "torch", "cuda")]
X = (2, 3, 64, 64)
BAD_OPTIONS = {
    "dtype": ({"dtype": "float16"}, "dtype is 'float16': one of 'fp32', 'tf32', 'bf16', 'fp16', 'fp8' is wanted on "),
    "weights": ({"weights": "bf16"}, "weights is 'bf16': on .* they are kept as dtype says; leave it out"),
    "threads": ({"threads": 2}, "threads is 2: None is wanted on "),
    "calibration": ({"calibration": torch.zeros(X)}, "calibration is given: with dtype 'fp32', None is wanted"),
    "no threads": ({"threads": 0}, "threads is 0: 1 or more is wanted"),
    "no batch": ({"batch": 0}, "batch is 0: 1 or more is wanted"),
    "no size": ({"size": 0}, "size is 0: 1 or more is wanted"),
}


@pytest.mark.parametrize(("options", "text"), BAD_OPTIONS.values(), ids=BAD_OPTIONS)
def test_options_that_do_not_fit(build, options, text):
    with pytest.raises(ValueError, match=text):
        build(small(**THIN), **options)


@pytest.mark.backends("torch")
def test_fp8_where_nothing_runs_it(build):
    with pytest.raises(
        ValueError, match=r"dtype is 'fp8': its kernels want a GPU of .* 9\.0, and torch's ops run here"
    ):
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
    "rank": (lambda e, x: e(x[0]), ValueError, r"x has shape \(3, 64, 64\): 4 axes \(N, C, H, W\) are wanted"),
    "channels": (lambda e, x: e(x[:, :2]), ValueError, "x has 2 channels: 3 are wanted"),
    "float64": (lambda e, x: e(x.double()), TypeError,
                r"x is torch\.float64 on .*: torch\.float32 or torch\.bfloat16 on .* is wanted"),
    "half": (lambda e, x: e(x.half()), TypeError, r"x is torch\.float16 on"),
    "meta": (lambda e, x: e(x.to("meta")), TypeError, r"x is torch\.float32 on meta"),
    "gradient": (lambda e, x: e(x.requires_grad_()), ValueError, "x requires a gradient, and an engine computes none"),
    "too small": (lambda e, x: e(x[..., :31]), ValueError, "x is too small: a max-pool sees 4 x 1 pixels, and 2 x 2"),
    "no columns": (lambda e, x: e(x[..., :0]), ValueError, "x is too small"),
    "unknown tap": (lambda e, x: e.features(x, ["relu9_9"]), ValueError, "taps has 'relu9_9': names among conv1_1"),
    "no taps": (lambda e, x: e.features(x, []), ValueError, "taps is empty: at least one name is wanted"),
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
    with pytest.raises(ValueError, match="x is too small: the head sees 2 x 2 places, and 3 x 3 are wanted"):
        dense(torch.zeros(X))
    for inputs in (7, 20):  # not so many for each pixel, and too few channels
        model = small(pool_size=2, **THIN)
        model.classifier[0] = nn.Linear(inputs, 16)
        with pytest.raises(ValueError, match=f"the head sees rows of 128 values: {inputs} are wanted"):
            build(model)(torch.zeros(X))
    with pytest.raises(ValueError, match=r"x has shape \(1, 3, 0, 5\): H and W of at least 1 are wanted"):
        build(small(**THIN).features[:2])(torch.zeros(1, 3, 0, 5))


def test_parameters_that_do_not_fit(build):
    with pytest.raises(TypeError, match=r"features\.0 is torch\.float64 on .*: torch\.float32 or torch\.bfloat16 or "):
        build(small(**THIN).double())
    model = small(**THIN)
    model.classifier.to("meta")
    with pytest.raises(TypeError, match=r"classifier\.0 is torch\.float32 on meta: .* on cpu or cuda is wanted"):
        build(model)
