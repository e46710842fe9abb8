"""The engines by name: how each is built, what it computes in, and the environment its process needs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).resolve().parent.parent
# How threads wait for work. "own": as each engine has it by default. "passive": all sleep at once, which costs ncnn, of
# many short parallel regions, 5% on images of 224x224 and 25% on those of 64x64; the others hardly notice.
WAITS = ("own", "passive")
PASSIVE = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"}
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
FREEZING = {"TORCHINDUCTOR_FREEZING": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
# What holds an engine to AVX2; for those without an entry there is no documented way.
AVX2 = {
    "peers.engine_vggfast": {"VGGFAST_CPU_ISA": "avx2"},
    "peers.engine_torch": {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"},
}  # fmt: skip
AVX2["peers.training"] = {**AVX2["peers.engine_vggfast"], **AVX2["peers.engine_torch"]}
ISAS = ("best", "avx2")
# Largest relative L2 error against float64, by (is it ours, dtype).
LIMITS = {(True, "fp32"): 1e-5, (False, "fp32"): 1e-3}
LIMIT_BF16 = 2e-2
# OpenVINO's reach 0.12 on the tests' narrow network, the others a third of that; a wrong layer makes some 1.
LIMIT_INT8 = 1.5e-1


@dataclass(frozen=True)
class Engine:
    """`module` has `build(spec, cache, **options)`; `package` is what must be installed for it, and `quantiser` what
    makes its int8 model.

    `checkout` is the folder of the vggfast that the engine's process imports: this one, or an older one.
    """

    name: str
    module: str
    package: str
    dtype: str = "fp32"
    options: Mapping[str, Any] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    limit: float | None = None
    quantiser: str = ""
    checkout: Path = BENCHMARKS.parent

    @property
    def ours(self) -> bool:
        return self.name.startswith("vggfast")

    @property
    def error_limit(self) -> float:
        if self.limit is not None:
            return self.limit
        return LIMITS.get((self.ours, self.dtype), LIMIT_INT8 if self.dtype == "int8" else LIMIT_BF16)

    def environment(self, threads: int, isa: str, wait: str) -> dict[str, str]:
        """The environment of the engine's process.

        Raises:
            ValueError: this engine cannot be held to instruction set `isa`.
        """
        if isa != "best" and self.module not in AVX2:
            raise ValueError(f"isa is {isa!r}: no way is known to hold {self.package} to it")
        count = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        paths = [str(BENCHMARKS), str(self.checkout), os.environ.get("PYTHONPATH", "")]
        return {
            **os.environ,
            **(PASSIVE if wait == "passive" else {}),
            **(AVX2[self.module] if isa != "best" else {}),
            **count,
            **self.env,
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        }


def _engines(*engines: Engine) -> dict[str, Engine]:
    return {engine.name: engine for engine in engines}


_TORCH, _OURS = "peers.engine_torch", "peers.engine_vggfast"
_COMPILED = {"compiled": True}

INFERENCE = _engines(
    Engine("vggfast", _OURS, "vggfast"),
    Engine("vggfast-bf16-fc", _OURS, "vggfast", "fp32+bf16-fc"),
    Engine("vggfast-bf16", _OURS, "vggfast", "bf16"),
    Engine("vggfast-int8", _OURS, "vggfast", "int8"),
    Engine("vggfast-module", _OURS, "vggfast", options={"planned": False}),
    Engine("ncnn", "peers.engine_ncnn", "ncnn"),
    Engine("mnn", "peers.engine_mnn", "MNN"),
    Engine("openvino", "peers.engine_openvino", "openvino"),
    Engine("onnxruntime", "peers.engine_onnxruntime", "onnxruntime"),
    Engine("litert", "peers.engine_litert", "ai_edge_litert"),
    Engine("torch-channels-last-hugepages", _TORCH, "torch", env=HUGE_PAGES),
    Engine("torch-channels-last", _TORCH, "torch"),
    Engine("torch-nchw", _TORCH, "torch", options={"layout": "nchw"}),
    Engine("torch-compile", _TORCH, "torch", options=_COMPILED, env=FREEZING),
    Engine("openvino-bf16", "peers.engine_openvino", "openvino", "bf16"),
    Engine("ncnn-bf16", "peers.engine_ncnn", "ncnn", "bf16"),
    Engine("torch-compile-bf16", _TORCH, "torch", "bf16", _COMPILED, FREEZING),
    Engine("openvino-int8", "peers.engine_openvino", "openvino", "int8", quantiser="nncf"),
    Engine("onnxruntime-int8", "peers.engine_onnxruntime", "onnxruntime", "int8", quantiser="onnxruntime.quantization"),
    Engine("torch-compile-int8", _TORCH, "torchao", "int8", _COMPILED, FREEZING),
)
# ReLU masks and pool choices flip where rounding moves a value across another, so that gradients in float32 lie far
# further from float64 than any one kernel does: torch's own by 8e-5 (D at 224x224), by Winograd more.
_GRADIENTS = 1e-2
_GRADIENTS_BF16 = 3e-1  # torch's own reach 0.12 on the tests' network
TRAINING = _engines(
    Engine("vggfast", "peers.training", "vggfast", options={"ours": True}, limit=_GRADIENTS),
    Engine("vggfast-hugepages", "peers.training", "vggfast", options={"ours": True}, env=HUGE_PAGES, limit=_GRADIENTS),
    Engine("torch-channels-last-hugepages", "peers.training", "torch", env=HUGE_PAGES, limit=_GRADIENTS),
    Engine("torch-channels-last", "peers.training", "torch", limit=_GRADIENTS),
    Engine("torch-nchw", "peers.training", "torch", options={"layout": "nchw"}, limit=_GRADIENTS),
    Engine("torch-compile", "peers.training", "torch", options=_COMPILED,
           env={"TORCHINDUCTOR_COMPILE_THREADS": "1"}, limit=_GRADIENTS),
    Engine("vggfast-bf16", "peers.training", "vggfast", "bf16", options={"ours": True}, limit=_GRADIENTS_BF16),
    Engine("torch-bf16-hugepages", "peers.training", "torch", "bf16", env=HUGE_PAGES, limit=_GRADIENTS_BF16),
    Engine("torch-bf16", "peers.training", "torch", "bf16", limit=_GRADIENTS_BF16),
)  # fmt: skip


def chosen(known: Mapping[str, Engine], names: Iterable[str]) -> list[Engine]:
    """The engines of these names.

    Raises:
        ValueError: no such engine; the text names those there are.
    """
    names = list(names)
    for name in names:
        if name not in known:
            raise ValueError(f"engine must be one of {', '.join(known)}, got {name!r}")
    return [known[name] for name in names]


def with_before(engines: Iterable[Engine], checkout: Path) -> list[Engine]:
    """The engines, and after each of ours the same of another checkout of vggfast, built in place."""
    found = []
    for engine in engines:
        found.append(engine)
        if engine.ours:
            found.append(replace(engine, name=f"{engine.name}-before", checkout=checkout.resolve()))
    return found
