"""``vggfast info``: what is installed here, and why a module will not load."""

from __future__ import annotations

import argparse
import platform
from importlib.metadata import PackageNotFoundError, version

from vggfast import _native
from vggfast._version import __version__
from vggfast.cli.extras import OPTIONAL
from vggfast.cli.help import describe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    describe(
        parser, "Prints versions, how the compiled module was built, the devices and instruction sets of this machine, "
        "and which optional packages are installed; if the module cannot be loaded, why.",
        "vggfast info",
    )  # fmt: skip


def run(_: argparse.Namespace) -> int:
    import torch

    rows = {
        "vggfast": __version__, "python": platform.python_version(), "system": platform.platform(),
        "torch": torch.__version__, "torch CUDA": torch.version.cuda or "not built",
        "threads": str(torch.get_num_threads()),
        "GPUs": ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())) or "none",
    }  # fmt: skip
    problem = None
    try:
        core = _native.load()
        rows |= {f"module: {name}": value for name, value in core.build_info()}
        rows |= {
            "instruction sets here": ", ".join(_native.cpu_isas()),
            "instruction set in use": _native.cpu_isa(),
            "AMX": core.amx_support(),
            "OpenMP runtime": core.openmp_runtime(),
        }
    except (ImportError, ValueError) as error:
        problem = error
    rows |= {f"package: {each.package}": f"{_version(each.package):<15} {each.purpose}" for each in OPTIONAL.values()}
    for name, value in rows.items():
        print(f"{name:<30} {value}")
    if problem is not None:
        print(f"\n{problem}")
    return 0 if problem is None else 1


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
