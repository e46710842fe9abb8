"""Ways in which somebody may have changed a network, and what each reader of it must do: be right or name the layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

import vggfast

ALL = frozenset({"Engine", "Evaluator", "Extractor", "to_conv_head", "save_model", "onnx"})
READERS = ALL - {"to_conv_head", "save_model"}  # of numbers
ARGUMENTS = {"num_classes": 10, "width": 0.125, "hidden": 32, "pool_size": 2, "init": "he"}
CELLS = 64 * 4  # values that the first FC layer reads


class Case(NamedTuple):
    """A change, the text of the error about it, and the readers that get it right; all others raise that error.

    save_model has its own words: where others raise errors too, its text names the same module.
    """

    change: Callable[[vggfast.VGG], object]
    text: str = ""
    right: frozenset[str] = frozenset()
    arguments: dict = {}  # noqa: RUF012
    error: type[Exception] = TypeError


def network(**arguments) -> vggfast.VGG:
    torch.manual_seed(0)
    model = vggfast.VGG11(**ARGUMENTS, **arguments)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            nn.init.uniform_(parameter, 0.2, 0.6)
    return model.eval()


class Normalised(vggfast.VGG11):
    def forward(self, x):
        return super().forward((x - 0.45) / 0.225)


class Standardised(vggfast.nn.Conv3x3):
    def forward(self, x):
        return self._conv_forward(x, self.weight - self.weight.mean((1, 2, 3), True), self.bias)


class Doubled(nn.Conv2d):
    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, 2 * weight, bias)


class Shifted(nn.ReLU):
    def forward(self, x):
        return super().forward(x - 0.1)


class Blurred(nn.MaxPool2d):
    def forward(self, x):
        return super().forward((x + x.roll(1, 3)) / 2)


class Clamped(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x).clamp(-1, 1)


class Cosine(nn.Linear):
    def forward(self, x):
        return super().forward(x / x.norm(dim=1, keepdim=True))


class Twice(nn.Linear):
    """Whoever reads its weight gets what its forward reads."""

    @property
    def weight(self):
        return 2 * self._parameters["weight"]


class Shallow(vggfast.VGG11):
    @property
    def classifier(self):
        return nn.Sequential(*self._modules["classifier"][::3])


class Epsilon(nn.BatchNorm2d):
    eps = property(lambda self: 0.5, lambda self, value: None)


class DroppedAndRelu(nn.Dropout, nn.ReLU):
    """Of two kinds, and the first one's code runs."""


class Stubborn(vggfast.VGG11):
    """In evaluation mode, its batch norms stay in training mode."""

    def train(self, mode=True):
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.training = True
        return self


class Training(nn.BatchNorm2d):
    """In evaluation mode, it stays in training mode."""

    def train(self, mode=True):
        return super().train(True)


class Trained(nn.BatchNorm2d):
    training = property(lambda self: True, lambda self, mode: None)


class Always(nn.Dropout):
    def forward(self, x):
        return x * 0.5


class Called(nn.Sequential):
    def __call__(self, x):
        return super().__call__(x) + 1


class Backwards(nn.Sequential):
    def __iter__(self):
        return iter(nn.Sequential(nn.Hardtanh(0, 0.5), *super().__iter__()))


class Ours(nn.Conv2d):
    """No code of its own but what builds and shows it."""

    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs, 3, padding=1)

    def extra_repr(self):
        return f"ours, {super().extra_repr()}"


def put(path: str, make: Callable[[], nn.Module]):
    def change(model):
        parent, _, name = path.rpartition(".")
        model.get_submodule(parent)._modules[name] = make()

    return change


def hook(path: str):
    return lambda model: model.get_submodule(path).register_forward_hook(lambda module, args, y: y.flip(1))


def pre_hook(path: str):
    return lambda model: model.get_submodule(path).register_forward_pre_hook(lambda module, args: (args[0] * 2,))


def replace(path: str):
    def change(model):
        module = model.get_submodule(path)
        forward = module.forward
        module.forward = lambda x: forward(x) + 1

    return change


def conv(**settings):
    return put("features.3", lambda: nn.Conv2d(8, 16, 3, **{"padding": 1, **settings}))


def change_parameters(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(torch.empty_like(parameter).uniform_(0.5, 1.5))


def computed(how, *paths):
    """Weights that something computes, whose parameters then change; `how` is given each layer."""

    def change(model):
        for path in paths:
            how(model.get_submodule(path))
        change_parameters(model)

    return change


def train(model):
    model.train()
    for _ in range(2):
        model(torch.rand(4, 3, 64, 64))


def last(path, name):
    """A layer moves to the end, under its own name."""

    def change(model):
        modules = model.get_submodule(path)._modules
        modules[name] = modules.pop(name)

    return change


def plain_bias(model):
    bias = model.classifier[3]._parameters.pop("bias")
    model.classifier[3].bias = 2 * bias.detach()


def negate(model):
    """The values are the negated ones of the memory."""
    for layer in (model.features[3], model.classifier[3]):
        layer.weight = nn.Parameter(torch._neg_view(layer.weight.detach()))
        layer.bias = nn.Parameter(torch._neg_view(layer.bias.detach()))


TRUNK, FC = ("features.0", "features.3"), ("classifier.0", "classifier.3")
COMPUTED = {
    "parametrised weight_norm": parametrizations.weight_norm,
    "weight_norm": weight_norm,
    "parametrised spectral_norm": parametrizations.spectral_norm,
    "spectral_norm": spectral_norm,
    "pruning": lambda layer: prune.l1_unstructured(layer, "weight", 0.3),
    "pruning twice": lambda layer: [prune.random_unstructured(layer, "weight", 0.2) for _ in range(2)],
}
ARGUMENTS_LOST = {
    "emptied": lambda m: m.arguments.clear(),
    "deleted": lambda m: delattr(m, "arguments"),
    "without the head": lambda m: m.arguments.pop("head"),
    "of another head": lambda m: m.arguments.update(head="svm"),
    **{f"replaced by {value}": lambda m, value=value: setattr(m, "arguments", value) for value in (None, [], "A")},
}
BN = {"batch_norm": True}
C = frozenset({"to_conv_head"})  # its convolutional layers are the model's own modules

CASES = {
    # ---- the model and its parts
    "a forward of its own": Case(lambda m: setattr(m, "__class__", Normalised),
                                 r"model is Normalised, a VGG whose forward is its own"),
    **{f"{name} on {path or 'the model'}": Case(make(path), rf"{path or 'model'} is \w+, with a forward {kind}")
       for path in ("", "features", "avgpool", "classifier", "classifier.3", "classifier.1")
       for name, kind, make in (("a hook", "hook", hook), ("a pre-hook", "pre-hook", pre_hook))},
    **{f"forward replaced on {path or 'the model'}":
       Case(replace(path), rf"{path or 'model'} is \w+, whose forward was replaced")
       for path in ("", "features", "avgpool", "classifier", "classifier.3", "classifier.2")},
    **{f"{name} on {path}": Case(make(path), rf"{path} is \w+, with a forward {kind}", C)
       for path in ("features.3", "features.4", "features.5")
       for name, kind, make in (("a hook", "hook", hook), ("a pre-hook", "pre-hook", pre_hook))},
    **{f"forward replaced on {path}": Case(replace(path), rf"{path} is \w+, whose forward was replaced")
       for path in ("features.3", "features.4", "features.5")},
    "features called otherwise": Case(lambda m: setattr(m, "features", Called(*m.features)), "features is Called, a"),
    "features in another order": Case(lambda m: setattr(m, "features", Backwards(*m.features)), "features is Back"),
    "another module beside them": Case(lambda m: setattr(m, "more", nn.Tanh()), "there must be no more",
                                       ALL - {"save_model"}),
    # ---- subclasses
    "a convolution": Case(put("features.3", lambda: Standardised(8, 16)),
                          "features.3 is Standardised, a Conv3x3 whose forward is its own", C),
    "a part of a convolution": Case(put("features.3", lambda: Doubled(8, 16, 3, padding=1)),
                                    "features.3 is Doubled, a Conv2d whose _conv_forward is its own", C),
    "a ReLU": Case(put("features.4", Shifted), "features.4 is Shifted, a ReLU whose forward is its own", C),
    "a pool": Case(put("features.5", lambda: Blurred(2)), "features.5 is Blurred, a MaxPool2d whose", C),
    "a batch norm": Case(put("features.1", lambda: Clamped(8)), "features.1 is Clamped, a BatchNorm2d whose", C,
                         BN),
    "an FC layer": Case(put("classifier.3", lambda: Cosine(32, 32)), "classifier.3 is Cosine, a Linear whose"),
    "dropout": Case(put("classifier.2", Always), "classifier.2 is Always, a Dropout whose"),
    "no code of its own": Case(put("features.3", lambda: Ours(8, 16)), right=ALL),
    # ---- weights that are computed
    **{f"{name} of convolutions": Case(computed(how, *TRUNK), "features.0", ALL - {"save_model"})
       for name, how in COMPUTED.items()},
    **{f"{name} of FC layers": Case(computed(how, *FC), r"classifier.0 is .*(pre-hook|its weight is computed)", READERS)
       for name, how in COMPUTED.items()},
    "a weight that is a property": Case(lambda m: setattr(m.classifier[3], "__class__", Twice),
                                        "classifier.3 is Twice.*: its weight is computed",
                                        READERS),
    **{f"an attribute before the weight of {path}":
       Case(lambda m, path=path: vars(m.get_submodule(path)).update(weight=2 * m.get_submodule(path).weight.detach()),
            text, right)
       for path, text, right in (
           ("features.3", "weight of features.3 is hidden by an attribute of Conv3x3", ALL - {"save_model"}),
           ("classifier.3", "classifier.3 is .*: its weight is computed", READERS))},
    "a classifier that is computed": Case(lambda m: setattr(m, "__class__", Shallow),
                                          "classifier of model is hidden by an attribute of Shallow",
                                          ALL - {"save_model"}),
    # ---- settings
    "reflect padding": Case(conv(padding_mode="reflect"), "features.3 .* its padding_mode must be 'zeros'", C),
    "dilation": Case(conv(dilation=2, padding=2), r"features.3 .* its dilation must be 1, got \(2, 2\)", C),
    "groups": Case(conv(groups=4), "features.3 .* its groups must be 1, got 4", C),
    "stride": Case(lambda m: (conv(stride=2)(m), put("features.5", nn.Identity)(m)),
                   r"features.3 .* its stride must be 1, got \(2, 2\)", C),
    "LPPool2d": Case(put("features.5", lambda: nn.LPPool2d(2, 2)), "features.5 is LPPool2d", C),
    "AvgPool2d": Case(put("features.5", lambda: nn.AvgPool2d(2)), "features.5 is AvgPool2d", C),
    "LeakyReLU": Case(put("features.4", lambda: nn.LeakyReLU(0.2)), "features.4 is LeakyReLU", C),
    "ReLU6": Case(put("features.4", nn.ReLU6), "features.4 is ReLU6", C),
    "batch norm after ReLU": Case(put("features.1", lambda: nn.Sequential(nn.ReLU(), nn.BatchNorm2d(8).eval())),
                                  "features.1.1 is BatchNorm2d.*right behind a convolution", C | {"onnx"}),
    "batch norm without statistics": Case(put("features.1", lambda: nn.BatchNorm2d(8, track_running_stats=False)),
                                          "features.1 .* must track running statistics", C, BN),
    "eps of batch norm": Case(lambda m: setattr(m.features[1], "eps", 0.1), "eps of features.1 must be 1e-05, got 0.1",
                              ALL - {"save_model"}, BN),
    "eps that is computed": Case(lambda m: setattr(m.features[1], "__class__", Epsilon),
                                 "eps of features.1 must be 1e-05, got 0.5", ALL - {"save_model"}, BN),
    "batch norm in training mode": Case(train, right=ALL, arguments=BN),
    "batch norm of several processes": Case(
        lambda m: setattr(m, "features", nn.SyncBatchNorm.convert_sync_batchnorm(m.features)),
        "features.1 must be BatchNorm2d, got SyncBatchNorm", ALL - {"save_model"}, BN),
    "dropout of channels": Case(put("features.4", lambda: nn.Sequential(nn.ReLU(), nn.Dropout2d())), "features.4",
                                ALL - {"save_model"}),
    "sizes of NumPy's": Case(put("features.5", lambda: nn.MaxPool2d(np.int64(2))), right=ALL),
    "a pool of torch's": Case(put("features.5", lambda: nn.MaxPool2d((2, 2))), right=ALL),
    # ---- between the convolutions and the FC layers
    "AdaptiveMaxPool2d": Case(put("avgpool", lambda: nn.AdaptiveMaxPool2d(2)), "avgpool is AdaptiveMaxPool2d"),
    "no pool": Case(put("avgpool", nn.Identity), r"avgpool (is|must be).*Identity"),
    # ---- heads
    "softmax at the end": Case(lambda m: m.classifier.append(nn.Softmax(1)), "classifier.7 is Softmax"),
    "tanh": Case(put("classifier.1", nn.Tanh), "classifier.1 (is|must be).* Tanh", C | {"Extractor"}),
    "no ReLU": Case(put("classifier.1", nn.Identity), "classifier.1 must be ReLU, got Ident", ALL - {"save_model"}),
    "one ReLU more": Case(lambda m: m.classifier.append(nn.ReLU()), "no classifier.7", ALL - {"save_model"}),
    "no dropout": Case(lambda m: setattr(m, "classifier", nn.Sequential(*(m.classifier[i] for i in (0, 1, 3, 4, 6)))),
                       "classifier", ALL - {"save_model"}),
    "dropout first": Case(lambda m: m.classifier.insert(0, nn.Dropout()), "classifier", ALL - {"save_model"}),
    "another dropout": Case(put("classifier.2", nn.AlphaDropout), "classifier.2 must be Dropout, got AlphaDropout",
                            ALL - {"save_model"}),
    "another rate of dropout": Case(lambda m: setattr(m.classifier[2], "p", 0.1), "p of classifier.2 must be 0.5, got",
                                    ALL - {"save_model"}),
    "three hidden layers": Case(put("classifier.6", lambda: nn.Sequential(nn.Linear(32, 16), nn.ReLU(),
                                                                         nn.Linear(16, 10))),
                                "classifier", ALL - {"save_model"}),
    "one hidden layer": Case(put("classifier", lambda: nn.Sequential(nn.Linear(CELLS, 32), nn.ReLU(), nn.Dropout(),
                                                                    nn.Linear(32, 10))),
                             "classifier", ALL - {"save_model"}),
    "one FC layer": Case(put("classifier", lambda: nn.Linear(CELLS, 10)), "classifier", ALL - {"save_model"}),
    "a flatten of its own": Case(lambda m: m.classifier.insert(0, nn.Flatten()), "classifier", ALL - {"save_model"}),
    "global average pool": Case(lambda m: (put("avgpool", lambda: nn.AdaptiveAvgPool2d(1))(m),
                                           put("classifier", lambda: nn.Sequential(nn.Linear(64, 10)))(m)),
                                "classifier", ALL - {"save_model"}),
    "no FC layer": Case(put("classifier", nn.Identity), "classifier", frozenset({"Engine"}), error=ValueError),
    # ---- what a look at classes and names alone gets wrong
    "of two kinds in features": Case(put("features.4", DroppedAndRelu), "features.4 must be ReLU, got DroppedAndRelu",
                                     ALL - {"save_model"}),
    "of two kinds in classifier": Case(put("classifier.1", DroppedAndRelu),
                                       "classifier.1 must be ReLU, got DroppedAndRelu", ALL - {"save_model"}),
    "a mode of its own": Case(lambda m: (setattr(m, "__class__", Stubborn), m.eval()),
                              "model is Stubborn, a VGG whose train is its own", arguments=BN),
    "a mode of its own, and training": Case(lambda m: (setattr(m, "__class__", Stubborn), m.train()),
                                            "model is Stubborn, .*train is its own, and which is in training mode"),
    **{f"a batch norm {how}": Case(lambda m, kind=kind: setattr(m.features[1], "__class__", kind),
                                   f"features.1 is {kind.__name__}, a BatchNorm2d whose {name} is its own", C, BN)
       for how, kind, name in (("that is not set to evaluate", Training, "train"),
                               ("whose mode is computed", Trained, "training"))},
    **{f"arguments {how}": Case(change, "arguments of the model must be those that built it", error=ValueError)
       for how, change in ARGUMENTS_LOST.items()},
    "another order of features": Case(last("features", "2"), "the layers of features must be in the order 0, 1, 2",
                                      ALL - {"save_model"}),
    "another order of FC layers": Case(last("classifier", "1"), "the layers of classifier must be in the order 0, 1, 2",
                                       ALL - {"save_model"}),
    # ---- parts and tensors that are not there, or are others' too
    "without classifier": Case(lambda m: delattr(m, "classifier"), "classifier must be a module, got None"),
    "without avgpool": Case(lambda m: delattr(m, "avgpool"), "avgpool must be a module, got None"),
    "features are None": Case(lambda m: setattr(m, "features", None), "features must be a.*, got None"),
    "a bias that is a tensor": Case(plain_bias, "classifier.3 .*its bias is computed", READERS),
    "a bias of two layers": Case(lambda m: setattr(m.classifier[3], "bias", m.classifier[0].bias),
                                 "classifier.3.bias must have memory of its own, got that of classifier.0.bias",
                                 ALL - {"save_model"}),
    "negated tensors": Case(negate, right=ALL),
    "nested features": Case(lambda m: setattr(m, "features", nn.Sequential(m.features[:5], m.features[5:])),
                            "features", ALL - {"save_model"}),
}  # fmt: skip
