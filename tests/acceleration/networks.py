"""Networks that people run, none a VGG of ours; small ones, and at full width the LARGE ones."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import nn


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


def double_conv(cin: int, cout: int) -> nn.Sequential:
    def one(before: int) -> list[nn.Module]:
        return [nn.Conv2d(before, cout, 3, padding=1, bias=False), nn.BatchNorm2d(cout), nn.ReLU(inplace=True)]

    return nn.Sequential(*one(cin), *one(cout))


class UNet(nn.Module):
    """As for cells (Ronneberger et al., 2015), with batch norm and padding."""

    def __init__(self, widths=(8, 16, 32, 64), classes: int = 2) -> None:
        super().__init__()
        self.down = nn.ModuleList(map(double_conv, (3, *widths), widths))
        self.pool = nn.MaxPool2d(2)
        pairs = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.ups = nn.ModuleList(nn.ConvTranspose2d(wide, narrow, 2, stride=2) for wide, narrow in pairs)
        self.up = nn.ModuleList(double_conv(2 * narrow, narrow) for _, narrow in pairs)
        self.head = nn.Conv2d(widths[0], classes, 1)

    def forward(self, x):
        kept = []
        for block in self.down:
            x = block(self.pool(x) if kept else x)
            kept.append(x)
        for up, block, skip in zip(self.ups, self.up, kept[-2::-1], strict=True):
            x = block(torch.cat([skip, up(x)], 1))
        return self.head(x)


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


class ResidualBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.ReLU(True), nn.Conv2d(width, width, 3, padding=1)
        )

    def forward(self, x):
        res = self.body(x).mul(0.1)
        res += x
        return res


class EDSR(nn.Module):
    """Lim et al., 2017."""

    def __init__(self, width: int = 16, blocks: int = 4) -> None:
        super().__init__()
        self.head = nn.Sequential(nn.Conv2d(3, width, 3, padding=1))
        last = nn.Conv2d(width, width, 3, padding=1)
        self.body = nn.Sequential(*(ResidualBlock(width) for _ in range(blocks)), last)
        self.tail = nn.Sequential(
            nn.Conv2d(width, 4 * width, 3, padding=1), nn.PixelShuffle(2), nn.Conv2d(width, 3, 3, padding=1)
        )

    def forward(self, x):
        x = self.head(x)
        return self.tail(self.body(x) + x)


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


class SSD(nn.Module):
    """What torchvision's SSD300 computes of an image, but for the choice among its boxes; at its own widths."""

    def __init__(self, torchvision) -> None:
        super().__init__()
        ssd = torchvision.models.detection.ssd300_vgg16(weights=None, weights_backbone=None, num_classes=5)
        self.backbone, self.head = ssd.backbone, ssd.head

    def forward(self, x):
        found = self.head(list(self.backbone(x).values()))
        return torch.cat([found["bbox_regression"], found["cls_logits"]], 2)


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
SIDE = {"SSD300": 276}  # the least that its last maps allow
