"""What the code blocks of a page find before its first line: names that its prose speaks of, and files.

EVERY says what all pages have. A page that needs more has a function in PAGES, which adds to the names.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import vggfast
from tests.support.peers import import_torchvision

Names = dict[str, Any]


def every(folder: Path) -> Names:
    """Modules by their usual names, two images, a small network and its file, and a few pictures."""
    model = vggfast.VGG("D", num_classes=10, width=0.125, hidden=32, pool_size=2).eval()
    model.preprocessing = vggfast.Preprocessing.torchvision()
    vggfast.weights.save_model(model, folder / "model.safetensors")
    random = np.random.default_rng(0)
    for name in ("photo.jpg", "a.jpg", "b.jpg", "c.jpg", "a.png", "b.png"):
        Image.fromarray(random.integers(0, 256, (72, 80, 3), dtype=np.uint8)).save(folder / name)
    images = torch.rand(2, 3, 64, 64)
    return {
        "np": np, "torch": torch, "nn": torch.nn, "torchvision": import_torchvision(), "vggfast": vggfast,
        "model": model, "images": images, "photos": images.clone(),
    }  # fmt: skip


def a_model_of_maps(_: Path) -> Names:
    """A model that gives maps, of at least 13 x 13 places, and images for it."""
    layers = (torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.MaxPool2d(2))
    return {"model": torch.nn.Sequential(*layers).eval(), "eps": 0.01}


def published_convolutions(folder: Path) -> Names:
    """A small network in the place of those that `vggfast weights get vgg16-conv` fetches: `folder` is the cache."""
    model = vggfast.VGG("D", width=0.125, head="none").eval()
    model.preprocessing = vggfast.Preprocessing.caffe()
    vggfast.weights.save_model(model, folder / "vgg16-conv.safetensors")
    return {}


PAGES: dict[str, Callable[[Path], Names]] = {
    "docs/guides/losses.md": published_convolutions,
    "docs/guides/accelerate.md": a_model_of_maps,
}
