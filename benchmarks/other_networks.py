"""Networks that are no VGGs and have its layers, in plain torch: for bench_accelerate.py and tests/acceleration."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor, nn


def double_conv(cin: int, cout: int) -> nn.Sequential:
    def one(before: int) -> list[nn.Module]:
        return [nn.Conv2d(before, cout, 3, padding=1, bias=False), nn.BatchNorm2d(cout), nn.ReLU(inplace=True)]

    return nn.Sequential(*one(cin), *one(cout))


class UNet(nn.Module):
    """As for cells (Ronneberger et al., 2015), with batch norm and padding."""

    def __init__(self, widths: tuple[int, ...] = (8, 16, 32, 64), classes: int = 2) -> None:
        super().__init__()
        self.down = nn.ModuleList(map(double_conv, (3, *widths), widths))
        self.pool = nn.MaxPool2d(2)
        pairs = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.ups = nn.ModuleList(nn.ConvTranspose2d(wide, narrow, 2, stride=2) for wide, narrow in pairs)
        self.up = nn.ModuleList(double_conv(2 * narrow, narrow) for _, narrow in pairs)
        self.head = nn.Conv2d(widths[0], classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept = []
        for block in self.down:
            x = block(self.pool(x) if kept else x)
            kept.append(x)
        for up, block, skip in zip(self.ups, self.up, kept[-2::-1], strict=True):
            x = block(torch.cat([skip, up(x)], 1))
        return self.head(x)


class ResidualBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.ReLU(True), nn.Conv2d(width, width, 3, padding=1)
        )

    def forward(self, x: Tensor) -> Tensor:
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

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(x)
        return self.tail(self.body(x) + x)


class SSD(nn.Module):
    """What torchvision's SSD300 computes of an image, but for the choice among its boxes; at its own widths."""

    def __init__(self, torchvision: ModuleType) -> None:
        super().__init__()
        ssd = torchvision.models.detection.ssd300_vgg16(weights=None, weights_backbone=None, num_classes=5)
        self.backbone, self.head = ssd.backbone, ssd.head

    def forward(self, x: Tensor) -> Tensor:
        found = self.head(list(self.backbone(x).values()))
        return torch.cat([found["bbox_regression"], found["cls_logits"]], 2)
