"""OpenVINO, its CPU plugin, in float32, with bfloat16 as the inference precision, or in int8 as NNCF quantises."""

from __future__ import annotations

import os
from pathlib import Path

from peers.face import Runner
from peers.network import Spec, calibration_images, made
from peers.onnx_file import onnx_file


def _quantise(source: Path, spec: Spec, path: Path, binary: Path) -> None:
    """By OpenVINO's own quantiser: an .xml, and a .bin of weights."""
    import nncf
    import openvino

    samples = [image[None] for image in calibration_images(spec)]
    quantised = nncf.quantize(openvino.Core().read_model(source), nncf.Dataset(samples), subset_size=len(samples))
    openvino.save_model(quantised, path, compress_to_fp16=False)
    os.replace(path.with_suffix(".bin"), binary)


def _model_file(spec: Spec, cache: Path) -> Path:
    source = onnx_file(spec, cache)
    if spec.dtype != "int8":
        return source
    target = source.with_suffix(".int8.xml")
    return made(target, lambda path: _quantise(source, spec, path, target.with_suffix(".bin")))


def build(spec: Spec, cache: Path) -> Runner:
    import openvino

    core = openvino.Core()
    model = core.read_model(_model_file(spec, cache))
    model.reshape([spec.batch, 3, spec.size, spec.size])
    settings = {"INFERENCE_NUM_THREADS": spec.threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}
    if spec.dtype != "int8":  # what then stays in floating point has the processor's best precision, its default
        settings["INFERENCE_PRECISION_HINT"] = {"fp32": "f32", "bf16": "bf16"}[spec.dtype]
    compiled = core.compile_model(model, "CPU", settings)
    request = compiled.create_infer_request()
    output = compiled.output(0)
    # Shared in and out: a user who minds speed copies neither.
    return Runner(
        lambda x: x,
        lambda x: request.infer(x, share_inputs=True, share_outputs=True)[output],
        lambda y: y.copy(),
    )
