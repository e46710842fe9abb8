"""The engines on CUDA by name, for a dtype: "tuned" is torch.backends.cudnn.benchmark, "graph" replays a CUDA graph.
"vggfast" is vggfast.Engine where a network runs forward, the module where it is trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peers.registry import Engine

# Largest relative L2 error against float64 in the common float32 weights, which a narrow dtype rounds as well.
# fp8 is off by 0.095, emulated in float32 (D at 224x224, the logits).
INFERENCE_LIMITS = {"fp8": 0.2, "bf16": 3e-2, "fp16": 5e-3, "tf32": 5e-3, "fp32": 1e-4}
# ReLU masks and pool choices flip where rounding moves a value across another, the more the narrower the dtype: by that
# torch on the CPU is off by 0.18 in bf16, 0.07 in fp16 and 1e-4 in fp32 (D at 224x224, weights' gradients), and almost
# twice that for the images.
TRAINING_LIMITS = {"bf16": 0.4, "fp16": 0.2, "tf32": 0.2, "fp32": 1e-2}
PERCEPTUAL_LIMITS = {"bf16": 0.7, "fp16": 0.4, "tf32": 0.4, "fp32": 1e-2}
_FREEZING = {"TORCHINDUCTOR_FREEZING": "1"}
_JAX = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "TF_CPP_MIN_LOG_LEVEL": "2"}
_TORCHS: dict[str, dict[str, Any]] = {
    "torch-nchw": {"layout": "nchw"},
    "torch-nchw-tuned": {"layout": "nchw", "tuned": True},
    "torch-channels-last": {},
    "torch-channels-last-tuned": {"tuned": True},
}
_COMPILED = {"torch-compile": {"mode": "default"}, "torch-compile-autotune": {"mode": "max-autotune"}}


def _named(engines: list[Engine]) -> dict[str, Engine]:
    return {engine.name: engine for engine in engines}


def _torch(module: str, dtype: str, limit: float, env: Mapping[str, str]) -> list[Engine]:
    plain = [Engine(name, module, "torch", dtype, options, limit=limit) for name, options in _TORCHS.items()]
    return plain + [Engine(name, module, "torch", dtype, options, env, limit) for name, options in _COMPILED.items()]


def inference(dtype: str) -> dict[str, Engine]:
    """Whole networks forward; the graphs are for small batches, where launches take longer than kernels."""
    module, limit = "gpu.engines", INFERENCE_LIMITS[dtype]
    graphs = [
        Engine("vggfast-module-graph", module, "vggfast", dtype, {"ours": True, "graph": True}, limit=limit),
        *(Engine(f"{name}-graph", module, "torch", dtype, {**_TORCHS[name], "graph": True}, limit=limit)
          for name in ("torch-nchw-tuned", "torch-channels-last-tuned")),
    ]  # fmt: skip
    planned = {"ours": True, "planned": True}
    narrow = Engine("vggfast-fp8", module, "vggfast", "fp8", {**planned, "fp8": True}, limit=INFERENCE_LIMITS["fp8"])
    return _named([
        Engine("vggfast", module, "vggfast", dtype, planned, limit=limit),
        *([narrow] if dtype == "bf16" else []),
        Engine("vggfast-module", module, "vggfast", dtype, {"ours": True}, limit=limit),
        *_torch(module, dtype, limit, _FREEZING),
        Engine("jax", "gpu.jax_engine", "jax", dtype, env=_JAX, limit=limit),
        *graphs,
    ])  # fmt: skip


def steps(dtype: str, use: str) -> dict[str, Engine]:
    """Steps with a gradient: `use` is "training" or "perceptual"."""
    limit = (TRAINING_LIMITS if use == "training" else PERCEPTUAL_LIMITS)[dtype]
    found = [
        Engine("vggfast", "gpu.steps", "vggfast", dtype, {"ours": True}, limit=limit),
        *_torch("gpu.steps", dtype, limit, {}),
    ]
    if use == "training":
        found.append(Engine("jax", "gpu.jax_engine", "jax", dtype, {"training": True}, _JAX, limit))
    return _named(found)
