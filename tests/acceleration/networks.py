"""Networks that people run, none a VGG of ours; small ones, and at full width the LARGE ones."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable
from types import ModuleType

import torch
import torch.nn.functional as F
from other_networks import EDSR, SSD, UNet, double_conv
from torch import nn

__all__ = [
    "EDSR", "LARGE", "NETWORKS", "PACKAGED", "SIDE",
    "CSRNet", "Slices", "UNet", "double_conv", "resnet18", "trunk", "vgg",
]  # fmt: skip


def trunk(torchvision, batch_norm: bool = False, config: str = "A") -> nn.Sequential:
    """torchvision's `features` at an eighth of their width."""
    widths = [item if item == "M" else item // 8 for item in torchvision.models.vgg.cfgs[config]]
    return torchvision.models.vgg.make_layers(widths, batch_norm=batch_norm)


def vgg(torchvision, batch_norm: bool = False) -> nn.Module:
    with torch.device("meta"):  # 123 million weights, which are replaced
        model = torchvision.models.VGG(nn.Sequential())
    model.features = trunk(torchvision, batch_norm)
    model.avgpool = nn.AdaptiveAvgPool2d((2, 2))
    model.classifier = nn.Sequential(nn.Linear(256, 32), nn.ReLU(True), nn.Dropout(), nn.Linear(32, 5))
    return model


def fcn(torchvision) -> nn.Module:
    segmentation = torchvision.models.segmentation
    getter = torchvision.models._utils.IntermediateLayerGetter
    return segmentation.FCN(getter(trunk(torchvision), {"15": "out"}), segmentation.fcn.FCNHead(64, 5))


def resnet18(torchvision) -> nn.Module:
    return torchvision.models.resnet18(num_classes=5)


def resnet34(torchvision) -> nn.Module:
    return torchvision.models.resnet34(num_classes=5)


class Slices(nn.Module):
    """As LPIPS cuts a VGG: slices of it are children, and its layers are held by a list too."""

    def __init__(self, torchvision) -> None:
        super().__init__()
        features = trunk(torchvision, config="D")
        cuts = (0, 4, 9, 16, 23, 30)
        for i, (begin, end) in enumerate(itertools.pairwise(cuts), 1):
            slice_ = nn.Sequential()
            for at in range(begin, end):
                slice_.add_module(str(at), features[at])
            setattr(self, f"slice{i}", slice_)
        self.lins = nn.ModuleList(
            nn.Sequential(nn.Dropout(), nn.Conv2d(width, 1, 1, bias=False)) for width in (8, 16, 32, 64, 64)
        )
        self.slices = [self.slice1, self.slice2, self.slice3, self.slice4, self.slice5]
        self.register_buffer("shift", torch.tensor([-0.03, -0.088, -0.188])[:, None, None])

    def forward(self, x):
        y, total = x - self.shift, 0
        for slice_, lin in zip(self.slices, self.lins, strict=True):
            y = slice_(y)
            total = total + lin(F.normalize(y, dim=1) ** 2).mean((2, 3))
        return total


class Lpips(nn.Module):
    """The distance from gray that the package lpips computes, of random weights."""

    def __init__(self, torchvision) -> None:
        super().__init__()
        self.loss = importlib.import_module("lpips").LPIPS(net="vgg", pnet_rand=True, verbose=False)

    def forward(self, x):
        return self.loss(x, torch.zeros_like(x))


class DnCNN(nn.Module):
    """Zhang et al., 2017."""

    def __init__(self, width: int = 16, depth: int = 6) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1), nn.ReLU(inplace=True)]
        for _ in range(depth - 2):
            convolution = nn.Conv2d(width, width, 3, padding=1, bias=False)
            layers += [convolution, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        self.dncnn = nn.Sequential(*layers, nn.Conv2d(width, 3, 3, padding=1))

    def forward(self, x):
        return x - self.dncnn(x)


class CSRNet(nn.Module):
    """Li et al., 2018: behind a VGG's first ten layers, dilated ones."""

    def __init__(self, torchvision) -> None:
        super().__init__()
        self.frontend = trunk(torchvision, config="D")[:23]
        widths = (64, 32, 16)
        dilated = (
            (nn.Conv2d(cin, cout, 3, padding=2, dilation=2), nn.ReLU(inplace=True))
            for cin, cout in zip((64, *widths), widths, strict=False)
        )
        self.backend = nn.Sequential(*(layer for pair in dilated for layer in pair))
        self.output_layer = nn.Conv2d(16, 1, 1)

    def forward(self, x):
        return self.output_layer(self.backend(self.frontend(x)))


NETWORKS: dict[str, Callable[[ModuleType], nn.Module]] = {
    "vgg": vgg,
    "vgg with batch norm": lambda torchvision: vgg(torchvision, True),
    "FCN": fcn,
    "U-Net": lambda torchvision: UNet(),
    "slices": Slices,
    "EDSR": lambda torchvision: EDSR(),
    "DnCNN": lambda torchvision: DnCNN(),
    "CSRNet": CSRNet,
    "ResNet-18": resnet18,
}
LARGE: dict[str, Callable[[ModuleType], nn.Module]] = {"ResNet-34": resnet34, "SSD300": SSD}
PACKAGED: dict[str, Callable[[ModuleType], nn.Module]] = {"LPIPS": Lpips}
SIDE = {"SSD300": 276}  # the least that its last maps allow
