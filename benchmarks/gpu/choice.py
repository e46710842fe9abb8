"""Which side of a benchmark runs, and what --device cuda needs."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence

DEVICE = "cuda"  # tests put "cpu" here
DTYPES = ("bf16", "fp16", "tf32", "fp32")
MAKERS = ("nvidia", "tesla", "geforce", "rtx", "quadro")
HELP = "where to run (default cpu); cuda has options of its own: --device cuda --help"


def gpu_asked_for(arguments: Sequence[str] | None) -> bool:
    """Whether the command line (None: this process's) says --device cuda."""
    made = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    made.add_argument("--device", default="cpu")
    return made.parse_known_args(arguments)[0].device == "cuda"


def why_no_gpu() -> str | None:
    """Why our kernels do not run here: torch sees no GPU, or would run its own ops on it."""
    import torch

    from vggfast import _native
    from vggfast.ops import _backends

    if not torch.cuda.is_available():
        return f"torch {torch.__version__} sees no CUDA GPU here"
    if dict(_native.load().build_info())["CUDA"] == "not built":
        return "this build of vggfast has no CUDA kernels (VGGFAST_CUDA=on builds them)"
    capability, least = torch.cuda.get_device_capability(), _backends.LEAST_CAPABILITY
    if capability < least:
        return f"the GPU is of sm_{capability[0]}{capability[1]}, and our kernels want sm_{least[0]}{least[1]} or later"
    return None


def require_gpu(parser: argparse.ArgumentParser) -> None:
    """Ends with a sentence where there is no GPU for us."""
    if why := why_no_gpu():
        parser.error(f"--device must be 'cpu' here, got 'cuda': {why}")


def lacks_fp8() -> bool:
    """Whether the GPU here is one that the engine of fp8 does not run on."""
    import torch

    return torch.cuda.is_available() and torch.cuda.get_device_capability() != (9, 0)


def memory() -> int:
    """Bytes of the GPU's memory; 0 where there is none."""
    import torch

    return torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else 0


def set_precision(dtype: str) -> None:
    """Lets float32 factors be rounded to TF32 or not; the other dtypes do not mind."""
    import torch

    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = dtype == "tf32"


def torch_dtype(dtype: str):
    import torch

    return {"bf16": torch.bfloat16, "fp16": torch.float16, "tf32": torch.float32, "fp32": torch.float32}[dtype]


def card(name: str) -> str:
    """What result files call a GPU of that name: "h100" of "NVIDIA H100 80GB HBM3"."""
    words = [word for word in re.sub(r"[^a-z0-9]+", " ", name.lower()).split() if word not in MAKERS]
    return next((word for word in words if re.fullmatch(r"[a-z]+\d+[a-z]*", word)), "-".join(words))


def out_file(name: str, dtype: str) -> str:
    """Where a command leaves its results by default: conv-h200.json, and conv-h200-fp16.json for another dtype than
    bf16; without a GPU, conv-cuda.json."""
    import torch

    where = card(torch.cuda.get_device_name()) if torch.cuda.is_available() else "cuda"
    return f"benchmarks/results/{name}-{where}{'' if dtype == 'bf16' else '-' + dtype}.json"
