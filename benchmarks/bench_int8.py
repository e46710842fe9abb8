"""What 8 bits cost: errors of layers and networks on random inputs and photos, and accuracy on real images.

Steps, each a command of its own; all but features write their part of --out:

  layers    each layer of VGG-16 alone, and torch's own 8 bits beside
  photos    VGG-16's convolutions on photos; how scales are chosen, and what stays in float32
  random    the same of a network with random weights, with a head
  features  a data set's features in 8 bits or in float32, as FILE.npz
  svm       mean class recall of two such files
  trained   top-1 error of a network that vggfast trained, on its validation images, and of torch's 8 bits

torch's are those of torchao's quantisation for x86 (PT2E), in the ops that it exports. Images for calibration are
others than those that are measured.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import warnings
from collections.abc import Callable, Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import timing
import torch
from bench_errors import random_layer
from layers import LAYERS, relative_error
from torch import Tensor, nn

import vggfast
from vggfast import Engine
from vggfast.console import ProgressBars
from vggfast.data import open_dataset
from vggfast.data.transforms import rescale
from vggfast.engine import int8
from vggfast.evaluate.networks import Network
from vggfast.features import Extractor, caltech_protocol, extract_dataset, load_features
from vggfast.graph import whole
from vggfast.io import write_json
from vggfast.weights import load_model

RESULTS = Path(__file__).parent / "results" / "int8-accuracy.json"
TAPS = ("pool4", "relu5_3", "pool5")
BLOCKS = (["pool5.mean"], ["relu5_3.max"])


# ---- images --------------------------------------------------------------------------------------------------------


def crops(model: nn.Module, data: str, split: str, count: int, side: int) -> tuple[Tensor, Tensor]:
    """(images, labels): centre crops of `count` images of a split, prepared for the model; the same at each call."""
    images, preprocessing = open_dataset(data, split), model.preprocessing
    chosen = np.random.default_rng(0).permutation(len(images))[: count or len(images)]
    made = []
    for i in chosen:
        picture = rescale(images.image(i), side)
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        made.append(preprocessing.tensor(np.asarray(picture.crop((left, top, left + side, top + side)), np.float32)))
    return torch.stack(made), torch.as_tensor(images.labels[chosen])


# ---- candidates ----------------------------------------------------------------------------------------------------


def plain(model: nn.Module) -> nn.Module:
    """The same network of torch's own layers."""
    network = whole(model)
    parts: list[nn.Module] = []
    for layer in [layer for layer, _ in network.trunk_layers()] + list(network.head.layers() if network.head else ()):
        weight, bias = getattr(layer, "weight", None), getattr(layer, "bias", None)
        match type(layer).__name__:
            case "Conv":
                made: nn.Module = nn.Conv2d(*weight.shape[1::-1], weight.shape[2], padding=weight.shape[2] // 2)
            case "Linear":
                made = nn.Linear(weight.shape[1], weight.shape[0])
            case "Relu":
                made = nn.ReLU()
            case "MaxPool":
                made = nn.MaxPool2d(2)
            case "Flatten":
                made = nn.Sequential(nn.AdaptiveAvgPool2d(layer.size), nn.Flatten())
            case name:
                raise SystemExit(f"layers must be those of a VGG with an average pool, got {name}")
        if weight is not None:
            made.load_state_dict({"weight": weight, "bias": torch.zeros(len(weight)) if bias is None else bias})
        parts.append(made)
    return nn.Sequential(*parts).eval()


def by_torch(model: nn.Module, calibration: Tensor, count: int) -> Callable[[Tensor], Tensor] | None:
    """torch's own quantisation of a network of its layers, for batches of `count`; None without torchao."""
    try:
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
        from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86
    except ImportError:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = torch.export.export(model, (calibration[:count],)).module()
        quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
        prepared = prepare_pt2e(exported, quantizer)
        for images in calibration.split(count):
            prepared(images)
        return convert_pt2e(prepared)


def ours(model: nn.Module, calibration: Tensor) -> Engine:
    return Engine(model, dtype="int8", calibration=calibration, batch=8, size=calibration.shape[2])


def _quantile(share: float) -> Callable[[Tensor, float], float]:
    """A scale up to which this share of the values above 0 lies."""

    def scale_of(counts: Tensor, largest: float) -> float:
        reached = counts.cumsum(0) / counts.sum()
        return float(largest * (1 + int((reached < share).sum())) / len(counts) / int8.LARGEST)

    return scale_of


def _uncorrected(layer: Any, source: float, mean: Tensor) -> Any:
    return _quantised(layer, source, torch.zeros_like(mean))


_quantised = int8.quantised
# How layers' scales may be chosen: what is put in place of which function.
RULES: dict[str, dict[str, Any]] = {
    "least mean squared error": {},
    "largest value": {"scale_of": lambda counts, largest: largest / int8.LARGEST},
    **{f"{100 * share:.6g} % of values": {"scale_of": _quantile(share)} for share in (0.9999, 0.99999)},
    "bias as it was": {"quantised": _uncorrected},
    "last FC layer in int8": {"MOST_ERROR": float("inf")},
    "last FC layer in float32": {"MOST_ERROR": -1.0},
}


@contextlib.contextmanager
def rule(name: str) -> Iterator[None]:
    """Only the default finds its error on the images for calibration, which takes as long as all else."""
    if not RULES[name]:
        yield
        return
    unknown = mock.patch.object(int8.Int8, "deviation", return_value=None)
    with unknown, mock.patch.multiple(int8, **RULES[name]):
        yield


def first_rounded(model: nn.Sequential, images: Tensor) -> tuple[nn.Sequential, Tensor]:
    """The network with the first convolution's weights, and images, as -127 to 127 times a scale."""
    network = plain(model)
    weight = network[0].weight
    unit = weight.flatten(1).abs().amax(1)[:, None, None, None] / 127
    weight.copy_((weight / unit).round() * unit)
    step = images.abs().max() / 127
    return network, (images / step).round() * step


# ---- steps ---------------------------------------------------------------------------------------------------------


def layers(parsed: argparse.Namespace) -> list[dict[str, Any]]:
    model, _ = load_model(parsed.model)
    found = torch.cat(images_of(parsed, model))
    rows = []
    for layer, source, x, conv in [*random_layers(len(found)), *layers_on(plain(model.features), found)]:
        calibration, x = x.split([parsed.count, parsed.measured])
        network = nn.Sequential(nn.ReLU(), conv, nn.ReLU())
        exact = network.double()(x.double())
        torchs = by_torch(network.float(), calibration, len(x))
        rows.append({
            "input": source, "layer": layer, "vggfast": relative_error(ours(network, calibration)(x), exact),
            "torch": relative_error(torchs(x), exact) if torchs else None,
        })  # fmt: skip
        print(source, layer, rows[-1]["vggfast"], rows[-1]["torch"], flush=True)
    return rows


def random_layers(batch: int) -> Iterator[tuple[tuple[int, int, int], str, Tensor, nn.Conv2d]]:
    """(layer, "random", input, convolution) of each kind of 3x3 layer that reads what a ReLU put out."""
    for layer in LAYERS[1:]:
        conv = nn.Conv2d(layer[0], layer[1], 3, padding=1)
        x, weight = random_layer(layer, batch)
        conv.load_state_dict({"weight": weight, "bias": torch.zeros(layer[1])})
        yield layer, "random", x, conv


def layers_on(network: nn.Module, x: Tensor) -> Iterator[tuple[tuple[int, int, int], str, Tensor, nn.Conv2d]]:
    """The same of the first of each kind in a network, for what it makes of photos."""
    seen = {LAYERS[0]}
    for module in network:
        if isinstance(module, nn.Conv2d):
            layer = (module.in_channels, module.out_channels, x.shape[2])
            if layer not in seen:
                seen.add(layer)
                yield layer, "photos", x, copy.deepcopy(module)
        x = module(x)


def images_of(parsed: argparse.Namespace, model: nn.Module) -> tuple[Tensor, Tensor]:
    """Photos for calibration, and others to measure."""
    found, _ = crops(model, parsed.data, "val", parsed.count + parsed.measured, 224)
    calibration, x = found.split([parsed.count, parsed.measured])
    return calibration, x


def errors(model: nn.Module, calibration: Tensor, x: Tensor, rules: Iterable[str]) -> dict[str, Any]:
    """Relative L2 errors of a network's output, against float32."""
    exact = Engine(model)(x).double()
    found: dict[str, Any] = {}
    for name in rules:
        with rule(name):
            engine = ours(model, calibration)
        found[name] = relative_error(engine(x), exact)
        if name == "least mean squared error":
            assert engine.error is not None
            found["on the images for calibration"] = {"output": engine.error.output, **engine.error.layers}
        print(name, found[name], flush=True)
    return found


def photos(parsed: argparse.Namespace) -> dict[str, Any]:
    model, _ = load_model(parsed.model)
    calibration, x = images_of(parsed, model)
    found = errors(model.features, calibration, x, [name for name in RULES if not name.startswith("last FC")])
    network, exact = plain(model.features), Engine(model)(x).double()
    first, rounded = first_rounded(model.features, x)
    found["first convolution in int8"] = relative_error(ours(first, calibration)(rounded), exact)
    if torchs := by_torch(network, calibration, len(x)):
        found["torch"] = relative_error(torchs(x), exact)
    return found


def random(parsed: argparse.Namespace) -> dict[str, Any]:
    """A network D of half the width on noise of 64 x 64."""
    torch.manual_seed(0)
    model = vggfast.VGG("D", width=0.5, hidden=1024, pool_size=2, num_classes=1000).eval()
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
    calibration, x = torch.randn(parsed.count + parsed.measured, 3, 64, 64).split([parsed.count, parsed.measured])
    found = errors(model, calibration, x, RULES)
    network = plain(model)
    if torchs := by_torch(network, calibration, len(x)):
        found["torch"] = relative_error(torchs(x), network.double()(x.double()))
    return found


class Int8Extractor(Extractor):
    """Features in 8 bits."""

    def __init__(self, calibration: Tensor, *arguments: Any, **options: Any) -> None:
        self._calibration = calibration
        super().__init__(*arguments, **options)

    def load(self, model: nn.Module) -> None:
        self._engine = Engine(
            whole(model, head=False),
            dtype="int8", calibration=self._calibration, batch=self.batch_size, size=self.scales[0],
        )  # fmt: skip


def features(parsed: argparse.Namespace) -> None:
    """Those of a whole data set, without mirror images."""
    model, _ = load_model(parsed.model)
    options = {"pool": ("mean", "max"), "flip": False}
    if parsed.dtype == "int8":
        calibration, _ = crops(model, parsed.data, "train", parsed.count, parsed.scale)
        extractor: Extractor = Int8Extractor(calibration, model, TAPS, [parsed.scale], **options)
    else:
        extractor = Extractor(model, TAPS, [parsed.scale], **options)
    sets = [open_dataset(parsed.data, split) for split in ("train", "val")]
    with ProgressBars() as bars:
        extract_dataset(
            extractor, sets, parsed.out, {"dtype": parsed.dtype}, chunk=32, progress=lambda *a: bars("images", *a)
        )


def svm(parsed: argparse.Namespace) -> dict[str, Any]:
    files = {"float32": load_features(parsed.float32), "int8": load_features(parsed.int8)}
    if files["float32"].names != files["int8"].names:
        raise SystemExit(f"{parsed.int8} is of other images than {parsed.float32}")
    found: dict[str, Any] = {
        "images": len(files["int8"].names), "train": parsed.train, "splits": parsed.splits,
        "scale": files["int8"].metadata["scales"], "scikit-learn": metadata.version("scikit-learn"), "recall": {},
    }  # fmt: skip
    for use in BLOCKS:
        both = {
            dtype: caltech_protocol(
                file.select(use), file.labels, train=parsed.train, test=50, splits=parsed.splits, c=1.0
            )
            for dtype, file in files.items()
        }
        a, b = (file.select(use) for file in files.values())
        lost = [x - y for x, y in zip(both["float32"].recalls, both["int8"].recalls, strict=True)]
        found["recall"][" + ".join(use)] = {
            **{dtype: each.mean for dtype, each in both.items()},
            "lost": float(np.mean(lost)), "lost in each split": lost,
            "distance": float(np.linalg.norm(a - b) / np.linalg.norm(a)),
        }  # fmt: skip
        print(use, found["recall"][" + ".join(use)], flush=True)
    return found


def trained(parsed: argparse.Namespace) -> dict[str, Any]:
    model = Network.open(parsed.model).load().eval()
    calibration, _ = crops(model, parsed.data, "train", parsed.count, parsed.scale)
    x, labels = crops(model, parsed.data, "val", 0, parsed.scale)

    def wrong(y: Tensor) -> float:
        return 100 * float((y.argmax(1) != labels).double().mean())

    exact = Engine(model)(x)
    found: dict[str, Any] = {"data": parsed.data, "images": len(x), "float32": wrong(exact)}
    for name in ("least mean squared error", "last FC layer in int8", "last FC layer in float32"):
        with rule(name):
            engine = ours(model, calibration)
        y = engine(x)
        found[name] = {
            "top-1 error": wrong(y), "output": relative_error(y, exact.double()),
            "agreeing": 100 * float((y.argmax(1) == exact.argmax(1)).double().mean()),
        }  # fmt: skip
    if torchs := by_torch(plain(model), calibration, len(calibration)):
        batches = [batch for batch in x.split(len(calibration)) if len(batch) == len(calibration)]
        y = torch.cat([torchs(batch) for batch in batches])
        found["torch"] = {"images": len(y), "output": relative_error(y, exact[: len(y)].double())}
    print(found)
    return found


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(required=True, metavar="STEP", dest="name")
    for step in (layers, photos, random, features, svm, trained):
        command = steps.add_parser(step.__name__, help=step.__doc__)
        command.set_defaults(step=step)
        command.add_argument("--out", type=Path, required=step is features, default=RESULTS)
        if step is svm:
            command.add_argument("--float32", metavar="FILE.npz", type=Path, required=True, help="by features")
            command.add_argument("--int8", metavar="FILE.npz", type=Path, required=True, help="by features")
            command.add_argument("--train", type=int, default=30, help="images a class to train on (default 30)")
            command.add_argument("--splits", type=int, default=3)
            continue
        if step is not random:
            command.add_argument("--model", type=Path, required=True, help="weights; trained: a run's file")
            command.add_argument("--data", required=True, help="images, as for vggfast train")
        command.add_argument("--count", type=int, default=32, help="images for calibration (default 32)")
        if step in (layers, photos, random):
            command.add_argument("--measured", type=int, default=8, help="other images that are measured (default 8)")
        if step in (features, trained):
            command.add_argument("--scale", type=int, default=224, help="shorter side (default 224)")
        if step is features:
            command.add_argument("--dtype", choices=("int8", "float32"), required=True)
    parsed = parser.parse_args()
    found = parsed.step(parsed)
    if found is not None:
        made = json.loads(parsed.out.read_text()) if parsed.out.exists() else {}
        key = f"{parsed.name} {parsed.data.partition(':')[0]}" if parsed.step is trained else parsed.name
        how = {name: value for name, value in vars(parsed).items() if isinstance(value, int)}
        write_json(parsed.out, {**made, key: {"environment": timing.environment(), **how, "found": found}})


if __name__ == "__main__":
    main()
