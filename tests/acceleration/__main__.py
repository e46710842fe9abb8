"""A table of how far accelerated networks are from eager ones: python -m tests.acceleration --out FILE.json."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import timing
import torch
from torch import nn

import vggfast
from tests.acceleration.networks import LARGE, NETWORKS, PACKAGED
from tests.acceleration.parity import MODES, largest_errors, make, step
from tests.support.peers import import_torchvision

HEAD = """Relative errors against eager float64, the largest of all tensors: outputs and running statistics, gradients
                                                 float64           float32   torch's float32"""


def accelerated(model: nn.Module) -> tuple[nn.Module, Callable[..., Any]]:
    fast = vggfast.accelerate(model)
    return fast, fast


def compiled(model: nn.Module) -> tuple[nn.Module, Callable[..., Any]]:
    torch._dynamo.reset()
    return model, torch.compile(model, backend="vggfast")


def ways() -> dict[str, Callable[[nn.Module], tuple[nn.Module, Callable[..., Any]]]]:
    """What makes (a model, what to call) of a model."""
    return {
        "accelerated": accelerated,
        **({"compiled": compiled} if "vggfast" in torch._dynamo.list_backends() else {}),
    }


def compare(network: str, chosen: dict[str, Callable]) -> Iterator[dict[str, Any]]:
    """A row for each mode and way: (outputs', gradients') relative errors, of float64 against eager float64, and of
    float32, ours and torch's own, against the same. One row with the reason where the network cannot be built."""
    for mode in MODES:
        torch.manual_seed(0)
        try:
            plain = make(import_torchvision(), (network, mode))
        except (ImportError, RuntimeError) as error:
            yield {"network": network, "refused": f"{type(error).__name__}: {error}"}
            return
        want = step(copy.deepcopy(plain).double(), torch.float64)
        torchs = largest_errors(step(copy.deepcopy(plain), torch.float32), want)
        for by, way in chosen.items():
            found = {}
            for dtype in (torch.float64, torch.float32):
                model, call = way(copy.deepcopy(plain).to(dtype))
                found[str(dtype).removeprefix("torch.")] = largest_errors(step(model, dtype, call), want)
            yield {"network": network, "mode": mode, "by": by, **found, "torch_float32": torchs}


def shown(row: dict[str, Any]) -> str:
    """A row of the table."""
    if "refused" in row:
        return f"{row['network']:20} cannot be built: {row['refused']}"
    errors = "".join(f"  {a:.1e} {b:.1e}" for a, b in (row[each] for each in ("float64", "float32", "torch_float32")))
    return f"{row['network']:20} {row['mode']:5} {row['by']:11}{errors}"


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.acceleration", description=__doc__)
    names, found = [*NETWORKS, *LARGE, *PACKAGED], ways()
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help=f"of {', '.join(names)} (default: all)")
    parser.add_argument("--by", nargs="+", choices=found, default=list(found), help="default: all that are here")
    parser.add_argument("--out", type=Path, metavar="FILE.json", required=True, help="file to write")
    parsed = parser.parse_args(given)
    if odd := [name for name in parsed.networks if name not in names]:
        parser.error(f"NETWORK must be one of {', '.join(names)}, got {odd[0]}")
    chosen = {by: found[by] for by in parsed.by}
    rows = []
    print(HEAD)
    for network in parsed.networks or names:
        for row in compare(network, chosen):
            rows.append(row)
            print(shown(row), flush=True)
    timing.write_results(parsed.out, rows)


if __name__ == "__main__":
    main()
