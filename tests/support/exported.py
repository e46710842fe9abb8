"""Networks of 8 bits as torch.export has them, made by hand: the operators of PT2E around a VGG's layers."""

import torch
import torch.ao.quantization.fx._decomposed  # registers the operators
import torch.nn.functional as F
from torch import nn

from tests.support.foreign import network

OPS = torch.ops.quantized_decomposed
UINT8, INT8 = (0, 0, 255, torch.uint8), (-128, -128, 127, torch.int8)  # zero point, least, largest, dtype


class Rounded(nn.Module):
    """To whole numbers of 8 bits and back."""

    def __init__(self, scale, zero_point, low, high, dtype):
        super().__init__()
        self.settings = float(scale), zero_point, low, high, dtype

    def forward(self, x):
        return OPS.dequantize_per_tensor(OPS.quantize_per_tensor(x, *self.settings), *self.settings)


class Layer(nn.Module):
    """A convolution or FC layer with a weight of 8 bits, and a scale for each output."""

    def __init__(self, weight, bias):
        super().__init__()
        scale = weight.flatten(1).abs().amax(1) / 127
        self.register_buffer("whole", (weight / scale.view(-1, *[1] * (weight.dim() - 1))).round().to(torch.int8))
        self.register_buffer("scale", scale)
        self.register_buffer("zero_point", torch.zeros(len(weight), dtype=torch.int64))
        self.bias = nn.Parameter(bias)
        self.axis, self.range = 0, (-128, 127)

    def forward(self, x):
        settings = self.axis, *self.range, self.whole.dtype
        weight = OPS.dequantize_per_channel(self.whole, self.scale, self.zero_point, *settings)
        return F.conv2d(x, weight, self.bias, padding=1) if weight.dim() == 4 else F.linear(x, weight, self.bias)


class Vgg(nn.Module):
    """A network of configuration A, layer by layer.

    Attributes:
        layers: in the order in which they run; an edit changes what is exported.
    """

    def __init__(self, activations=UINT8, **arguments):
        super().__init__()
        model = network("A", **{"width": 0.05, **arguments})
        x = torch.randn(8, 3, 64, 64)
        low, high = x.min(), x.max()
        scale = (high - low) / 255
        layers = [Rounded(scale, int(-(low / scale).round()) + activations[1], *activations[1:])]
        with torch.no_grad():
            for module in (*model.features, model.avgpool, nn.Flatten(), *model.classifier):
                if isinstance(module, nn.Conv2d | nn.Linear):
                    module = Layer(module.weight.detach(), module.bias.detach())
                elif isinstance(module, nn.MaxPool2d):
                    module = nn.MaxPool2d(2)
                layers.append(module)
                x = module(x)
                if isinstance(module, nn.ReLU | nn.MaxPool2d | nn.AdaptiveAvgPool2d | nn.Flatten):
                    scale = x.max() / 255 if isinstance(module, nn.ReLU) else scale
                    layers.append(Rounded(scale, *activations))
        self.layers = nn.Sequential(*layers)
        self.eval()

    def forward(self, x):
        return self.layers(x)

    def of(self, kind):
        """The places of layers of a kind."""
        return [i for i, layer in enumerate(self.layers) if isinstance(layer, kind)]

    def exported(self, batch=2, **options):
        return torch.export.export(self, (torch.randn(batch, 3, 64, 64),), **options)
