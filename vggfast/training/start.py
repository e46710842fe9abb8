"""What a run starts from: the network, its first weights, its optimiser.

Source: Simonyan & Zisserman, section 3.1: deeper nets take the first four convolutions and the FC layers of A.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vggfast.models import VGG
from vggfast.training.config import TrainConfig
from vggfast.weights import load_model

# The first four convolutions of A, by block and place; what the deeper nets add lies between them.
_FIRST_CONVS = ("conv1_1", "conv2_1", "conv3_1", "conv3_2")
_FC_LAYERS = ("classifier.0", "classifier.3", "classifier.6")


def conv_names(model: VGG) -> dict[str, str]:
    """From the convolutions' names in the paper's manner, conv1_1 ..., to their names as modules."""
    names: dict[str, str] = {}
    block, place = 1, 1
    for index, layer in enumerate(model.features):
        if isinstance(layer, nn.MaxPool2d):
            block, place = block + 1, 1
        elif isinstance(layer, nn.Conv2d):
            names[f"conv{block}_{place}"] = f"features.{index}"
            place += 1
    return names


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
        start_from(model, Path(config.init_from), config.init_layers)
    if config.channels_last:
        for parameter in model.parameters():
            if parameter.dim() == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return model


def start_from(model: VGG, path: Path, layers: str) -> None:
    """Copies layers of the trained network in `path` into `model`: "ends" or "all" of them (see TrainConfig)."""
    donor, _ = load_model(path)
    if layers == "all":
        pairs = {name: name for name in model.state_dict()}
    else:
        ours, theirs = conv_names(model), conv_names(donor)
        modules = {ours[name]: theirs.get(name, name) for name in _FIRST_CONVS} | {name: name for name in _FC_LAYERS}
        pairs = {f"{name}.{kind}": f"{other}.{kind}" for name, other in modules.items() for kind in ("weight", "bias")}
    target, source = model.state_dict(), donor.state_dict()
    for name, other in pairs.items():
        shape = tuple(target[name].shape)
        if other not in source or tuple(source[other].shape) != shape:
            found = f"{other} {tuple(source[other].shape)}" if other in source else f"no {other}"
            raise ValueError(f"init_from is {path}: it has {found}, and {name} wants {shape}")
    with torch.no_grad():
        for name, other in pairs.items():
            target[name].copy_(source[other])


def build_optimiser(config: TrainConfig, model: nn.Module) -> torch.optim.Optimizer:
    """SGD with momentum, Adam or AdamW; with `decay_all` off, only weights of layers decay."""
    weights: list[Tensor] = []
    others: list[Tensor] = []
    for parameter in model.parameters():
        (weights if config.decay_all or parameter.dim() > 1 else others).append(parameter)
    groups: list[dict[str, Any]] = (
        [{"params": weights}, {"params": others, "weight_decay": 0.0}] if others else [{"params": weights}]
    )
    if config.optimiser == "sgd":
        return torch.optim.SGD(groups, config.lr, momentum=config.momentum, weight_decay=config.weight_decay)
    kind = torch.optim.AdamW if config.optimiser == "adamw" else torch.optim.Adam
    return kind(groups, config.lr, weight_decay=config.weight_decay)
