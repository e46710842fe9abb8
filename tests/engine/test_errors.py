"""What an Engine refuses: models, options, images, names; each error says what it got and what is allowed."""

import re

import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from tests.engine.test_engine import small
from vggfast import Engine, _native

pytestmark = pytest.mark.usefixtures("one_thread")


def changed(change, config="A", **arguments):
    model = small(config, **{"pool_size": 2, **arguments})
    change(model)
    return model


def with_layer(i, layer):
    return changed(lambda model: model.features.__setitem__(i, layer))


def with_head(*layers, **attributes):
    def change(model):
        model.classifier = nn.Sequential(*layers)
        for name, value in attributes.items():
            setattr(model, name, value)

    return changed(change)


def dense(**settings):
    return changed(lambda model: model.classifier.__setitem__(0, nn.Conv2d(128, 64, 2, **settings)), head="conv")


CONV = {"in_channels": 3, "out_channels": 16, "kernel_size": 3, "padding": 1}
BAD_MODELS = {
    "no module": (lambda: "vgg16", TypeError,
                  r"model must be a VGG of vggfast or torchvision, or an nn\.Sequential of its layers, got str"),
    "a layer": (lambda: nn.Linear(3, 4), TypeError, "model must be a VGG .*, got Linear"),
    "nothing": (lambda: nn.Sequential(), ValueError, "model has no layers to run"),
    "nothing but dropout": (lambda: nn.Sequential(nn.Dropout()), ValueError, "model has no layers to run"),
    "stride": (lambda: with_layer(0, nn.Conv2d(**CONV, stride=2)), TypeError,
               r"features\.0 is Conv2d\(.*stride=\(2, 2\).*: its stride must be 1, got \(2, 2\)"),
    "dilation": (lambda: with_layer(0, nn.Conv2d(3, 16, 3, padding=2, dilation=2)), TypeError, r"features\.0 is"),
    "groups": (lambda: nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, groups=2)), TypeError, r"model\.0 is Conv2d"),
    "no padding": (lambda: with_layer(0, nn.Conv2d(3, 16, 3)), TypeError, r"features\.0 is Conv2d"),
    "oblong padding": (lambda: with_layer(0, nn.Conv2d(3, 16, 3, padding=(1, 0))), TypeError, r"features\.0 is"),
    "padding of 1x1": (lambda: with_layer(0, nn.Conv2d(3, 16, 1, padding=(0, 1))), TypeError, r"features\.0 is"),
    "valid": (lambda: with_layer(0, nn.Conv2d(3, 16, 3, padding="valid")), TypeError, r"features\.0 is Conv2d"),
    "no padding's name": (lambda: changed(lambda m: setattr(m.features[0], "padding", "SAME")), TypeError,
                          r"features\.0 is Conv3x3.*keep the size"),
    "reflection": (lambda: with_layer(0, nn.Conv2d(**CONV, padding_mode="reflect")), TypeError, r"features\.0 is"),
    "5x5": (lambda: with_layer(0, nn.Conv2d(3, 16, 5, padding=2)), TypeError, r"features\.0 is Conv2d"),
    "3x1": (lambda: with_layer(0, nn.Conv2d(3, 16, (3, 1), padding=(1, 0))), TypeError, r"features\.0 is Conv2d"),
    "tanh": (lambda: with_layer(1, nn.Tanh()), TypeError, r"features\.1 is Tanh\(\): a layer before the head must"),
    "average pool": (lambda: with_layer(2, nn.AvgPool2d(2)), TypeError, r"features\.2 is AvgPool2d"),
    "pool 3x3": (lambda: with_layer(2, nn.MaxPool2d(3, 2)), TypeError, r"features\.2 is MaxPool2d"),
    "pool stride": (lambda: with_layer(2, nn.MaxPool2d(2, 1)), TypeError, r"features\.2 is MaxPool2d"),
    "pool padding": (lambda: with_layer(2, nn.MaxPool2d(2, padding=1)), TypeError, r"features\.2 is MaxPool2d"),
    "pool indices": (lambda: with_layer(2, nn.MaxPool2d(2, return_indices=True)), TypeError, r"features\.2 is"),
    "batch norm alone": (lambda: with_layer(1, nn.BatchNorm2d(16)), TypeError, None),
    "batch norm after a pool": (lambda: with_layer(2, nn.Sequential(nn.MaxPool2d(2), nn.BatchNorm2d(16))), TypeError,
                                r"features\.2\.1 is BatchNorm2d"),
    "channels": (lambda: with_layer(3, nn.Conv2d(9, 32, 3, padding=1)), TypeError,
                 r"features\.3 is Conv2d.*: it must have 16 inputs, as many as reach it, got 9"),
    "channels of a batch norm": (lambda: with_layer(1, nn.BatchNorm2d(15)), TypeError,
                                 r"features\.1 is BatchNorm2d.*: it must have 16 inputs, as many as reach it, got 15"),
    **{f"a head of {inputs} inputs": (
        lambda inputs=inputs: changed(lambda m: m.classifier.__setitem__(0, nn.Linear(inputs, 64))), TypeError,
        rf"classifier\.0 is Linear.*: it must have {text}, got {inputs}")
        for inputs, text in ((7, "a multiple of 2 x 2 inputs"), (20, "512 inputs, as many as reach it"))},
    "a pool of no cell": (lambda: changed(lambda m: setattr(m, "avgpool", nn.AdaptiveAvgPool2d(0))), TypeError,
                          "avgpool is AdaptiveAvgPool2d.*: its output_size must be square, of at least 1, got 0"),
    "no statistics": (lambda: with_layer(1, nn.BatchNorm2d(16, track_running_stats=False)), TypeError,
                      r"features\.1 is BatchNorm2d.*: a batch norm must track running statistics"),
    "float64": (lambda: small().double(), TypeError,
                r"features\.0 must be torch\.float32 on cpu, got torch\.float64 on cpu"),
    "bfloat16": (lambda: small().bfloat16(), TypeError, r"features\.0 must be .*, got torch\.bfloat16 on cpu"),
    "a meta weight": (lambda: small().to("meta"), TypeError, r"features\.0 must be .*, got torch\.float32 on meta"),
    "a float64 head": (lambda: changed(lambda model: model.classifier.double()), TypeError,
                       r"classifier\.0 must be .*, got torch\.float64 on cpu"),
    "softmax": (lambda: changed(lambda model: model.classifier.append(nn.Softmax(1))), TypeError,
                r"classifier\.7 is Softmax\(dim=1\): a layer must be one that a VGG has"),
    "no avgpool": (lambda: changed(lambda model: setattr(model, "avgpool", nn.Identity())), TypeError,
                   r"avgpool is Identity\(\)"),
    "oblong avgpool": (lambda: changed(lambda model: setattr(model, "avgpool", nn.AdaptiveAvgPool2d((2, 3)))),
                       TypeError, r"avgpool is AdaptiveAvgPool2d\(output_size=\(2, 3\)\)"),
    "open avgpool": (lambda: changed(lambda model: setattr(model, "avgpool", nn.AdaptiveAvgPool2d(None))), TypeError,
                     r"avgpool is AdaptiveAvgPool2d\(output_size=None\)"),
    "padded dense head": (lambda: dense(padding=1), TypeError,
                          r"classifier\.0 is Conv2d"),
    "strided dense head": (lambda: dense(stride=2), TypeError,
                           r"classifier\.0 is Conv2d"),
    "pooled dense head": (lambda: with_head(nn.Conv2d(128, 9, 2)), TypeError,
                          r"classifier\.0 is Conv2d.*: a layer of a head behind avgpool must be an FC layer"),
}  # fmt: skip


@pytest.mark.parametrize(("model", "error", "text"), BAD_MODELS.values(), ids=BAD_MODELS)
def test_models_that_do_not_fit(model, error, text):
    made = model()
    if text is None:  # right after a convolution, a batch norm belongs to it
        assert Engine(made)
        return
    with pytest.raises(error, match=text) as caught:
        Engine(made)
    assert "\n" not in str(caught.value)


BAD_OPTIONS = {
    "dtype": ({"dtype": "float16"}, "dtype must be one of 'fp32', 'bf16', 'int8' on cpu, got 'float16'"),
    "weights": ({"weights": "int8"}, "weights must be one of 'fp32', 'bf16' on cpu, got 'int8'"),
    "calibration": (
        {"calibration": torch.zeros(1, 3, 32, 32)},
        "calibration must be None with dtype 'fp32', got images",
    ),
    "fp8": ({"dtype": "fp8"}, "dtype must be one of 'fp32', 'bf16', 'int8' on cpu, got 'fp8'"),
    "no threads": ({"threads": 0}, "threads must be at least 1, got 0"),
    "no batch": ({"batch": 0}, "batch must be at least 1, got 0"),
    "no size": ({"size": 0}, "size must be at least 1, got 0"),
}


@pytest.mark.parametrize(("options", "text"), BAD_OPTIONS.values(), ids=BAD_OPTIONS)
def test_options(options, text):
    with pytest.raises(ValueError, match=text):
        Engine(small(width=0.1, hidden=8), **options)


X = torch.zeros(2, 3, 64, 64)


class Called(nn.Module):
    def __init__(self, call):
        super().__init__()
        self.forward = call.__call__


TRACED = "a call of an Engine cannot be traced or exported"
BAD_INPUTS = {
    "rank": (lambda e: e(X[0]), ValueError, r"x must have 4 axes \(N, C, H, W\), got shape \(3, 64, 64\)"),
    "channels": (lambda e: e(X[:, :2]), ValueError, "x must have 3 channels, got 2"),
    "float64": (lambda e: e(X.double()), TypeError, r"x must be torch\.float32 on cpu, got torch\.float64 on cpu"),
    "bytes": (lambda e: e(X.byte()), TypeError, r"x must be .*, got torch\.uint8 on cpu"),
    "meta": (lambda e: e(X.to("meta")), TypeError, r"x must be .*, got torch\.float32 on meta"),
    "no tensor": (lambda e: e(X.numpy()), TypeError, "x must be a tensor, got numpy.ndarray of shape"),
    "sparse": (lambda e: e(X.to_sparse()), TypeError, r"x must be a strided tensor, got torch\.sparse_coo"),
    "nested": (lambda e: e(torch.nested.nested_tensor([X[0], X[0]])), TypeError, "x must be a strided .*, got nested"),
    "gradient": (lambda e: e(X.clone().requires_grad_()), ValueError, "x requires a gradient, and an engine computes"),
    "too small": (lambda e: e(X[..., :31]), ValueError,
                  "x is too small: a max-pool needs at least 2 x 2 pixels, got .* x 1"),
    "no columns": (lambda e: e(X[..., :0]), ValueError, "x is too small"),
    "unknown tap": (lambda e: e.features(X, ["relu1_1", "relu9_9"]), ValueError,
                    "taps must be among conv1_1, relu1_1, pool1, .*, got 'relu9_9'"),
    "a name for a list": (lambda e: e.features(X, "relu1_1"), TypeError,
                          r"taps must be a sequence, such as \['relu1_1'\], got str 'relu1_1'"),
    "traced": (lambda e: torch.jit.trace(lambda x: e(x), X), TypeError, TRACED),
    "traced by make_fx": (lambda e: make_fx(lambda x: e(x))(X), TypeError, TRACED),
    "exported": (lambda e: torch.export.export(Called(e), (X,)), TypeError, TRACED),
    "no taps": (lambda e: e.features(X, []), ValueError, "taps must have at least one name, got none"),
    "small for the dense head": (lambda e: Engine(small(head="conv", pool_size=3))(X), ValueError,
                                 "x is too small: the head needs at least 3 x 3 places, got 2 x 2"),
}  # fmt: skip


@pytest.mark.parametrize(("call", "error", "text"), BAD_INPUTS.values(), ids=BAD_INPUTS)
def test_inputs_that_do_not_fit(call, error, text):
    engine = Engine(small())
    with pytest.raises(error, match=text) as caught:
        call(engine)
    assert "\n" not in str(caught.value)
    assert engine(X).shape == (2, 10)


def test_gradients_may_be_off():
    engine, x = Engine(small()), X.clone().requires_grad_()
    with torch.no_grad():
        assert not engine(x).requires_grad
    with torch.inference_mode():
        assert torch.equal(engine(x.detach()), engine(X))


@pytest.mark.skipif(len(_native.cpu_isas()) < 2, reason="this machine has one instruction set")
def test_an_engine_of_another_instruction_set():
    before, isas = _native.cpu_isa(), _native.cpu_isas()
    try:
        _native.set_cpu_isa(isas[0])
        engine = Engine(small())
        expected = engine(X)
        _native.set_cpu_isa(isas[1])
        text = f"packed for {isas[0]}, and {isas[1]} is set now: build another engine"
        with pytest.raises(ValueError, match=re.escape(text)):
            engine(X)
        _native.set_cpu_isa(isas[0])
        assert torch.equal(engine(X), expected)
    finally:
        _native.set_cpu_isa(before)
