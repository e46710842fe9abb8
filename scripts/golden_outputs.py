"""Outputs and gradients of whole networks on the CPU, as digests of their bits: the same before and after a change.

Write them with the vggfast of one checkout, and compare with that of another, on the same machine and torch:

    cd BEFORE && python scripts/golden_outputs.py write /tmp/goldens.json
    cd AFTER && python scripts/golden_outputs.py compare /tmp/goldens.json

A row is a network, a dtype and what was computed: a training step (logits, and the gradients of the input and of every
parameter), evaluation by the module, by an Engine with its features, and the dense head; on each instruction set that
the machine has, on one thread and on two. The vggfast of the current folder is the one that is asked.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path.cwd()))

import torch
from torch import Tensor, nn

import vggfast
from vggfast import VGG, Engine, _native

NETWORKS = (("A", False), ("A", True), ("A-LRN", False), ("C", True), ("D", False), ("D", True))
ENGINES = {"fp32": {}, "bf16": {"dtype": "bf16"}, "fp32, FC weights in bf16": {"weights": "bf16"}}


def digest(tensors: Iterable[Tensor]) -> str:
    """Of the bits of all tensors, in their order."""
    made = hashlib.sha256()
    for t in tensors:
        made.update(t.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return made.hexdigest()


def network(config: str, batch_norm: bool) -> VGG:
    torch.manual_seed(7)
    model = VGG(config, 10, batch_norm=batch_norm, dropout=0.0, init="he", width=0.5, hidden=128)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return model


def training_step(model: VGG, x: Tensor, bf16: bool) -> list[Tensor]:
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        y = model.train()(x)
    y.float().square().sum().backward()
    gradients = [p.grad for p in (x, *model.parameters())]
    return [y, *(g for g in gradients if g is not None)]


def rows_of(config: str, batch_norm: bool, size: int, images: int) -> Iterator[tuple[str, str]]:
    """(dtype and what was computed, digest)."""
    x = torch.randn(images, 3, size, size, generator=torch.Generator().manual_seed(1))
    yield "fp32 training step", digest(training_step(network(config, batch_norm), x, bf16=False))
    yield "bf16 training step", digest(training_step(network(config, batch_norm), x, bf16=True))
    model = network(config, batch_norm).eval()
    with torch.no_grad():
        yield "fp32 module", digest([model(x)])
        for name, options in ENGINES.items():
            engine = Engine(model, batch=images, size=size, **options)
            yield f"{name} Engine", digest([engine(x), engine.features(x)])
        dense, picture = model.to_conv_head(), torch.randn(1, 3, 256, 301, generator=torch.Generator().manual_seed(3))
        yield "fp32 dense", digest([dense(picture), Engine(dense, size=256)(picture)])


def all_rows() -> Iterator[tuple[str, str]]:
    best = _native.cpu_isa()
    for isa in _native.cpu_isas():
        _native.set_cpu_isa(isa)
        sizes = ((224, 2), (97, 3)) if isa == best else ((64, 2),)
        for config, batch_norm in NETWORKS:
            for size, images in sizes:
                for threads in (1, 2):
                    torch.set_num_threads(threads)
                    name = f"{config}{' with batch norm' if batch_norm else ''}, {images} of {size}²"
                    for what, bits in rows_of(config, batch_norm, size, images):
                        yield f"{name}: {what}, {isa}, {threads} thread{'s' if threads > 1 else ''}", bits


def compare(found: dict[str, str], expected: dict[str, str]) -> bool:
    """Whether all are equal; prints those that are not, and how many of each network and dtype are."""
    groups: dict[str, list[bool]] = {}
    for row, bits in expected.items():
        same = found.get(row) == bits
        shape, _, what = row.partition(": ")
        groups.setdefault(f"{shape.split(', ')[0]}: {what.rsplit(', ', 2)[0]}", []).append(same)
        if not same:
            print(f"differs: {row}" if row in found else f"missing: {row}")
    for group, same in groups.items():
        print(f"{group}: {sum(same)} of {len(same)} bit-equal")
    equal = sum(map(sum, groups.values()))
    print(f"{equal} of {len(expected)} rows are bit-equal")
    return equal == len(expected)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("do", choices=("write", "compare"), help="write FILE, or compare with what it holds")
    parser.add_argument("file", type=Path, help="JSON: a digest for each row")
    parsed = parser.parse_args()
    print(f"vggfast of {Path(vggfast.__file__).parents[1]}, torch {torch.__version__}")
    if parsed.do == "compare":
        expected = json.loads(parsed.file.read_text())
        sys.exit(0 if compare(dict(all_rows()), expected) else 1)
    parsed.file.write_text(json.dumps(dict(all_rows()), indent=1) + "\n")
    print(f"{parsed.file} written")


if __name__ == "__main__":
    main()
