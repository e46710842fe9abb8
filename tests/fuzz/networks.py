"""Networks that somebody changed, layer by layer: who reads one computes what the model itself does, or names it."""

from __future__ import annotations

import random as random_module
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import vggfast
from tests.fuzz.harness import Different, attempt
from vggfast.weights import load_model, save_model

_BOUND = 1e-4  # of the relative L2 error
_SETTINGS = {
    "stride": (1, 2, (2, 2)), "padding": (0, 1, "same"), "dilation": (1, 2), "padding_mode": ("zeros", "reflect"),
    "eps": (1e-5, 0.1), "track_running_stats": (True, False), "momentum": (0.1, None), "ceil_mode": (True, False),
    "kernel_size": (2, 3), "p": (0.0, 0.5), "inplace": (True, False), "output_size": (1, 2, (2, 1)), "size": (3, 5),
    "training": (True, False), "negative_slope": (0.0, 0.2), "return_indices": (False, True),
}  # fmt: skip


def case(random: random_module.Random, folder: Path) -> bool:
    torch.manual_seed(random.randrange(1 << 30))
    torch.set_num_threads(1)
    pool_size = random.choice([1, 2])
    size = (3, 32 * pool_size, 32 * pool_size)
    model = vggfast.VGG(
        random.choice(["A", "A-LRN", "C"]), num_classes=5, width=0.07, hidden=16, pool_size=pool_size,
        batch_norm=random.random() < 0.5, head=random.choice(["linear", "linear", "conv"]), init="he",
    )  # fmt: skip
    if random.random() < 0.3:
        model(torch.rand(4, *size))  # statistics of its own
    model.eval()
    for _ in range(random.choice([1, 1, 2, 3])):
        _change(random, model)
    x = torch.rand(2, *size)
    with torch.no_grad():
        try:
            expected = model.eval()(x)
            places = model.features(x).shape[2:]  # a dense head averages the scores of more, and no linear head does
        except Exception:  # a network that does not run is nobody's
            return False
        if expected.shape != (2, 5) or not expected.isfinite().all():
            return False
        accepted = [
            _agrees(name, attempt(read, model, x, folder), expected)
            for name, read in _READERS.items()
            if name in ("Engine", "save_model") or tuple(places) == (pool_size, pool_size)
        ]
    return any(accepted)


def _agrees(name: str, found: Tensor | None, expected: Tensor) -> bool:
    if found is None:
        return False
    expected = expected.softmax(1) if name == "Evaluator" else expected
    error = float((found - expected).norm() / expected.norm().clamp(min=1e-12))
    if found.shape != expected.shape or not error < _BOUND:
        raise Different(f"{name}: relative error {error:.2g} of shape {tuple(found.shape)}")
    return True


def _saved(model: nn.Module, x: Tensor, folder: Path) -> Tensor:
    save_model(model, folder / "m.safetensors")
    return load_model(folder / "m.safetensors")[0](x)


_READERS: dict[str, Callable[[nn.Module, Tensor, Path], Tensor]] = {
    "Engine": lambda model, x, folder: vggfast.Engine(model)(x),
    "Evaluator": lambda model, x, folder: vggfast.evaluate.Evaluator(model).dense(x, None, flip=False),
    "to_conv_head": lambda model, x, folder: model.to_conv_head().eval()(x),
    "save_model": _saved,
}


def _change(random: random_module.Random, model: nn.Module) -> None:
    part = model.get_submodule(random.choice(["features", "features", "classifier"]))
    names = [name for name, child in part._modules.items() if child is not None] if hasattr(part, "_modules") else []
    if not names:
        return
    name = random.choice(names)
    child = part._modules[name]
    other = list(_others(child))
    kind = random.randrange(8)
    if kind == 0:
        part._modules[name] = random.choice(other)
    elif kind == 1:
        part._modules[name] = nn.Sequential(*random.sample([child, random.choice(other)], 2))
    elif kind == 2:
        part._modules[name] = nn.Identity()
    elif kind == 3:
        known = [setting for setting in _SETTINGS if hasattr(child, setting)]
        setting = random.choice(known)
        setattr(child, setting, random.choice(_SETTINGS[setting]))
    elif kind == 4:
        random.choice([
            lambda: child.register_forward_hook(lambda module, args, y: y * 2),
            lambda: child.register_forward_pre_hook(lambda module, args: (args[0] - 0.1,)),
            lambda: setattr(child, "forward", lambda x: x),
        ])()  # fmt: skip
    elif kind == 5 and isinstance(child, nn.Conv2d | nn.Linear):
        random.choice([
            parametrizations.weight_norm, parametrizations.spectral_norm,
            lambda layer: prune.random_unstructured(layer, "weight", 0.3),
            lambda layer: layer.register_parameter("bias", None),
        ])(child)  # fmt: skip
    elif kind == 6:
        del part._modules[name]
    else:
        with torch.no_grad():
            for parameter in child.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)


def _others(child: nn.Module) -> Iterator[nn.Module]:
    """Layers that may stand where this one does."""
    yield from (nn.ReLU(), nn.ReLU6(), nn.LeakyReLU(0.1), nn.Tanh(), nn.GELU(), nn.Identity(), nn.PReLU())
    yield from (nn.Dropout(), nn.Dropout2d(), nn.AlphaDropout())
    if isinstance(child, nn.Conv2d):
        inputs, outputs = child.in_channels, child.out_channels
        for settings in ({}, {"bias": False}, {"padding_mode": "circular"}):
            yield nn.Conv2d(inputs, outputs, child.kernel_size, padding=child.padding, **settings)
        yield nn.Sequential(nn.Conv2d(inputs, outputs, 1), nn.BatchNorm2d(outputs))
    elif isinstance(child, nn.Linear):
        yield nn.Linear(child.in_features, child.out_features, bias=False)
        yield nn.Sequential(nn.Linear(child.in_features, 7), nn.ReLU(), nn.Linear(7, child.out_features))
    elif isinstance(child, nn.BatchNorm2d):
        yield nn.BatchNorm2d(child.num_features, affine=False)
        yield from (nn.InstanceNorm2d(child.num_features), nn.SyncBatchNorm(child.num_features))
    elif isinstance(child, nn.MaxPool2d):
        yield from (nn.MaxPool2d(2), nn.MaxPool2d(2, ceil_mode=True), nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(2))
        yield nn.Sequential(nn.LocalResponseNorm(5), nn.MaxPool2d(2, 2))
