"""What a result was computed with."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vggfast import _native
from vggfast._version import __version__


def environment(ranks: int = 1, device: Any = "cpu") -> dict[str, str]:
    """Versions, processor, GPU, threads and ranks, for the report and for log.jsonl.

    Args:
        ranks: processes that train together.
        device: where this one computes.
    """
    device = torch.device(device)
    metadata = {
        "vggfast": __version__, "python": platform.python_version(), "torch": torch.__version__,
        "numpy": np.__version__, "system": platform.platform(), "processor": _processor(),
        "logical processors": str(os.cpu_count()), "threads of a rank": str(torch.get_num_threads()),
        "instruction set": _native.cpu_isa(), "ranks": str(ranks), "device": device.type,
    }  # fmt: skip
    if device.type == "cuda":
        metadata["GPU"] = torch.cuda.get_device_name(device)
        metadata["CUDA of torch"] = str(torch.version.cuda)
    return metadata


def _processor() -> str:
    """The processor's name; Linux alone tells it in a file."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
