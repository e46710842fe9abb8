"""OpenVINO, its CPU plugin, in float32 or with bfloat16 as the inference precision."""

from __future__ import annotations

from pathlib import Path

from peers.face import Runner
from peers.network import Spec
from peers.onnx_file import onnx_file


def build(spec: Spec, cache: Path) -> Runner:
    import openvino

    core = openvino.Core()
    model = core.read_model(onnx_file(spec, cache))
    model.reshape([spec.batch, 3, spec.size, spec.size])
    compiled = core.compile_model(
        model,
        "CPU",
        {
            "INFERENCE_NUM_THREADS": spec.threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[spec.dtype],
        },
    )
    request = compiled.create_infer_request()
    output = compiled.output(0)
    # Shared in and out: a user who minds speed copies neither.
    return Runner(
        lambda x: x,
        lambda x: request.infer(x, share_inputs=True, share_outputs=True)[output],
        lambda y: y.copy(),
    )
