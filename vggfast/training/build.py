"""What a run starts from: the network, its first weights, its optimiser.

Source: Simonyan & Zisserman, section 3.1: deeper nets take the first four convolutions and the FC layers of A.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vggfast.data import Augmentation, ImageSet, measure_colours
from vggfast.graph import fc_names, trunk_names, whole
from vggfast.models import VGG
from vggfast.preprocessing import Preprocessing
from vggfast.runs.config import TrainConfig
from vggfast.weights import load_model

_PUBLISHED = {"caffe": Preprocessing.caffe(), "torchvision": Preprocessing.torchvision()}
# The first four convolutions of A, between which the deeper nets have more, and the FC layers.
_ENDS = ("conv1_1", "conv2_1", "conv3_1", "conv3_2", "fc1", "fc2", "fc3")
# What else init_layers may name, by their places in the modules.
_IS_OF: dict[str, Callable[[str], bool]] = {
    "features": lambda name: name.startswith("features."),
    "body": lambda name: not name.startswith("classifier.6."),
    "all": lambda name: True,
}


def named_layers(model: VGG) -> dict[str, Any]:
    """The layers with weights in order, by the paper's places: conv1_1 ... conv5_4, fc1, fc2, fc3."""
    network = whole(model)
    names = {name: node.module for name, node in trunk_names(network.trunk) if name.startswith("conv")}
    return names | {name: node.module for name, node in fc_names(network.head.nodes if network.head else ())}


def build_model(config: TrainConfig, num_classes: int, resumed: bool = False) -> VGG:
    """The network of a run with its first weights, the same for every process with this seed.

    A resumed run's come from its checkpoint: `init_from` need no longer be there.

    Raises:
        FileNotFoundError, ValueError: `init_from` is no network's file, or its layers do not fit; the text names it.
    """
    torch.manual_seed(config.seed)
    model = VGG(
        config.config, num_classes, dropout=config.dropout, batch_norm=config.batch_norm, init=config.init,
        width=config.width, hidden=config.hidden, pool_size=config.pool_size,
    )  # fmt: skip
    if config.init_from and not resumed:
        start_from(model, Path(config.init_from), config.init_layers, config.preprocessing)
    if config.channels_last:
        for parameter in model.parameters():
            if parameter.dim() == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    if config.train_layers == "fc":
        model.features.requires_grad_(False)
    return model


def set_training(model: nn.Module) -> None:
    """Training mode; batch norm whose weights are not trained keeps its statistics."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and not module.weight.requires_grad:
            module.eval()


def start_from(model: VGG, path: Path, layers: str, preprocessing: str = "measured") -> None:
    """Copies layers of the trained network in `path` into `model`, those that `layers` names (see TrainConfig).

    Raises:
        FileNotFoundError, ValueError: as :func:`build_model`; or that network was trained on published preprocessing
            and `preprocessing` is another.
    """
    donor, _ = load_model(path)
    _check_pixels(donor, path, preprocessing)
    if layers != "ends":
        target, source = (
            {name: tensor for name, tensor in net.state_dict().items() if _IS_OF[layers](name)}
            for net in (model, donor)
        )
    else:
        target, source = (
            {f"{name}.{kind}": getattr(layer, kind) for name, layer in named_layers(net).items() if name in _ENDS
             for kind in ("weight", "bias")}
            for net in (model, donor)
        )  # fmt: skip
    for name, value in target.items():
        expected, found = (tuple(t.shape) if t is not None else None for t in (value, source.get(name)))
        if expected != found:
            raise ValueError(f"init_from is {path}, whose {name} must have shape {expected}, got {found}")
    with torch.no_grad():
        for name, value in target.items():
            value.copy_(source[name])


def _check_pixels(donor: VGG, path: Path, preprocessing: str) -> None:
    theirs, ours = donor.preprocessing, _PUBLISHED.get(preprocessing)
    if theirs is None or theirs == ours or (ours is None and theirs not in _PUBLISHED.values()):
        return
    raise ValueError(
        f"init_from is {path}, which must be trained on this run's preprocessing, {preprocessing!r}, got {theirs}"
    )


def open_augmentation(config: TrainConfig, images: ImageSet) -> Augmentation:
    """Random crops of a training set. Its colour axes are measured, and means and deviations where `config` says so."""
    statistics = measure_colours(images, on_bad_image=config.on_bad_image)
    std = statistics.std if config.pixel_std else np.ones(3)
    measured = Preprocessing(tuple(statistics.mean.tolist()), tuple(std.tolist()))
    return Augmentation(
        config.crop, (config.scale_min, config.scale_max), config.flip, config.colour_shift, statistics,
        _PUBLISHED.get(config.preprocessing, measured), config.min_area,
    )  # fmt: skip


def build_optimiser(config: TrainConfig, model: nn.Module) -> torch.optim.Optimizer:
    """SGD with momentum, Adam or AdamW; with `decay_all` off, only weights of layers decay."""
    weights: list[Tensor] = []
    others: list[Tensor] = []
    for parameter in filter(lambda p: p.requires_grad, model.parameters()):
        (weights if config.decay_all or parameter.dim() > 1 else others).append(parameter)
    groups: list[dict[str, Any]] = (
        [{"params": weights}, {"params": others, "weight_decay": 0.0}] if others else [{"params": weights}]
    )
    if config.optimiser == "sgd":
        return torch.optim.SGD(groups, config.lr, momentum=config.momentum, weight_decay=config.weight_decay)
    kind = torch.optim.AdamW if config.optimiser == "adamw" else torch.optim.Adam
    return kind(groups, config.lr, weight_decay=config.weight_decay)
