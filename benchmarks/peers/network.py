"""What every engine is given: the network's layers, its weights, the images, and the exact answer in float64.

All of it comes from one seed and is made once, in a cache folder, so that each engine's process reads the same bytes.
"""

from __future__ import annotations

import fcntl
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

SEED = 14091556
CALIBRATION_IMAGES = 16
# As the paper's table 1 has them: a number is a 3x3 convolution, "1x1" one that keeps its channels, "M" the max-pool.
CONFIGURATIONS: dict[str, list[int | str]] = {
    "A": [64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"],
    "B": [64, 64, "M", 128, 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"],
    "C": [64, 64, "M", 128, 128, "M", 256, 256, "1x1", "M", 512, 512, "1x1", "M", 512, 512, "1x1", "M"],
    "D": [64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M"],
    "E": [64, 64, "M", 128, 128, "M", *[256] * 4, "M", *[512] * 4, "M", *[512] * 4, "M"],
}  # fmt: skip
ALLOWED = {
    "network": tuple(CONFIGURATIONS),
    "part": ("features", "whole"),
    "dtype": ("fp32", "bf16", "fp32+bf16-fc", "fp16", "tf32", "int8"),
}


@dataclass(frozen=True)
class Spec:
    """One case: what is computed, on how many images, by how many threads.

    The head is the paper's for this image size: its map is size / 32 wide, so that no engine pays for an adaptive
    pool to 7x7 that a network of another size would not have.
    """

    network: str = "D"
    part: str = "whole"
    size: int = 224
    batch: int = 1
    threads: int = 2
    dtype: str = "fp32"
    width: float = 1.0
    hidden: int = 4096
    classes: int = 1000
    batch_norm: bool = False

    def __post_init__(self) -> None:
        for name, allowed in ALLOWED.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        for name in ("batch", "threads", "hidden", "classes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.size < 32 or self.size % 32:
            raise ValueError(f"size must be a multiple of 32, got {self.size}")
        if self.width <= 0:
            raise ValueError(f"width must be greater than 0, got {self.width}")

    @property
    def extent(self) -> int:
        """Height and width of the final feature map."""
        return self.size // 32

    @property
    def key(self) -> str:
        """Names the weights; those of the features are the same whatever the head."""
        return f"{self.network}{'-bn' * self.batch_norm}-{self.extent}-{self.width:g}-{self.hidden}-{self.classes}"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Layer(NamedTuple):
    """A layer with its ReLU: `kind` is "conv", "pool" or "fc"; `name` is its key in torchvision's state_dict. A
    convolution also has its batch norm, where the case has them."""

    kind: str
    name: str = ""
    inputs: int = 0
    outputs: int = 0
    kernel: int = 0
    relu: bool = False


def layers(spec: Spec) -> Iterator[Layer]:
    """The layers of the features, then, for the whole network, those of the head (dropout is the identity here)."""
    channels, index = 3, 0
    for item in CONFIGURATIONS[spec.network]:
        if item == "M":
            yield Layer("pool")
            index += 1
            continue
        out = max(1, round(item * spec.width)) if isinstance(item, int) else channels
        yield Layer("conv", f"features.{index}", channels, out, 3 if isinstance(item, int) else 1, True)
        channels = out
        index += 3 if spec.batch_norm else 2
    if spec.part == "whole":
        yield Layer("fc", "classifier.0", channels * spec.extent**2, spec.hidden, 0, True)
        yield Layer("fc", "classifier.3", spec.hidden, spec.hidden, 0, True)
        yield Layer("fc", "classifier.6", spec.hidden, spec.classes, 0, False)


def default_cache() -> Path:
    """Where weights, references and converted models are kept unless --cache says another folder."""
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "vggfast-benchmarks"


def made(path: Path, write: Callable[[Path], Any]) -> Path:
    """`path`, made by `write` (which is given another name to write to) where it is missing.

    Engines start side by side: a lock makes the second one wait for the first one's file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(path.name + ".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            temporary = path.with_name(f"new-{os.getpid()}-{path.name}")
            try:
                write(temporary)
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
    return path


def _write_weights(spec: Spec, path: Path) -> None:
    """Kaiming's scale keeps activations alive through the ReLUs; biases are small but there, so that none is lost."""
    rng = np.random.default_rng(SEED)
    arrays = {}
    for layer in layers(Spec(**{**spec.as_dict(), "part": "whole"})):
        if layer.kind == "pool":
            continue
        shape = (layer.outputs, layer.inputs) + (layer.kernel,) * (2 if layer.kind == "conv" else 0)
        scale = math.sqrt((2 if layer.relu else 1) / math.prod(shape[1:]))
        arrays[f"{layer.name}.weight"] = rng.standard_normal(shape, np.float32) * np.float32(scale)
        arrays[f"{layer.name}.bias"] = rng.standard_normal(shape[:1], np.float32) * np.float32(0.05)
    with open(path, "wb") as file:
        np.savez(file, **arrays)


def weights_file(spec: Spec, cache: Path) -> Path:
    return made(cache / f"weights-{spec.key}.npz", lambda path: _write_weights(spec, path))


def weights(spec: Spec, cache: Path) -> Iterator[tuple[str, np.ndarray]]:
    """(state_dict key, array) one by one, so that no process holds the weights twice."""
    with np.load(weights_file(spec, cache)) as file:
        for layer in layers(spec):
            for suffix in ("weight", "bias") if layer.kind != "pool" else ():
                yield f"{layer.name}.{suffix}", file[f"{layer.name}.{suffix}"]


def images(spec: Spec) -> np.ndarray:
    """(N, 3, size, size) float32; the first images of a larger batch are those of a smaller one."""
    shape = (3, spec.size, spec.size)
    return np.stack([np.random.default_rng([SEED, i]).standard_normal(shape, np.float32) for i in range(spec.batch)])


def calibration_images(spec: Spec) -> np.ndarray:
    """(16, 3, size, size) float32, from which every engine of int8 takes its scales.

    They are noise as `images` are, but none of those. The weights are random, too, and know nothing of photographs;
    scales from other images than the timed ones would make all engines' errors larger alike.
    """
    shape = (3, spec.size, spec.size)
    seeds = ([SEED, i, 1] for i in range(CALIBRATION_IMAGES))  # zeros at the end of a seed do not count
    return np.stack([np.random.default_rng(seed).standard_normal(shape, np.float32) for seed in seeds])


def labels(spec: Spec) -> np.ndarray:
    """(N,) int64 classes, for training."""
    return np.random.default_rng(SEED + 1).integers(0, spec.classes, spec.batch)


def reference_file(spec: Spec, cache: Path) -> Path:
    """The output in float64, by plain torch; rows of a larger batch start with those of a smaller one."""
    name = f"reference-{spec.part}-{spec.key}-n{spec.batch}.npy"
    return made(cache / name, lambda path: _write_reference(spec, cache, path))


def _write_reference(spec: Spec, cache: Path, path: Path) -> None:
    import torch

    from peers import engine_torch

    model = engine_torch.plain(spec, cache).double()
    with torch.inference_mode():
        rows = [model(torch.from_numpy(image[None]).double()).numpy() for image in images(spec)]
    with open(path, "wb") as file:
        np.save(file, np.concatenate(rows))


def relative_error(got: np.ndarray, exact: np.ndarray) -> float:
    """Relative L2 error, summed in float64 a piece at a time (gradients of a whole network are large)."""
    if got.shape != exact.shape:
        raise ValueError(f"the output must have shape {exact.shape}, got {got.shape}")
    got, exact = got.reshape(-1), exact.reshape(-1)
    off = total = 0.0
    for start in range(0, got.size, 1 << 22):
        piece = exact[start : start + (1 << 22)].astype(np.float64)
        difference = got[start : start + (1 << 22)].astype(np.float64) - piece
        off += float(difference @ difference)
        total += float(piece @ piece)
    return math.sqrt(off / total)
