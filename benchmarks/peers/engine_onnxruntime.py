"""ONNX Runtime, its CPU provider, in float32, or in int8 as its own quantiser makes it (QDQ)."""

from __future__ import annotations

import os
from pathlib import Path

from peers.face import Runner
from peers.network import Spec, calibration_images, made
from peers.onnx_file import onnx_file


def _quantise(source: Path, spec: Spec, path: Path) -> None:
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):
        samples = iter(calibration_images(spec))

        def get_next(self) -> dict[str, object] | None:
            image = next(self.samples, None)
            return None if image is None else {"x": image[None]}

    quantization.quantize_static(
        source, path, Reader(), quant_format=quantization.QuantFormat.QDQ, per_channel=True,
        activation_type=quantization.QuantType.QUInt8, weight_type=quantization.QuantType.QInt8,
    )  # fmt: skip


def _model_file(spec: Spec, cache: Path) -> Path:
    source = onnx_file(spec, cache)
    if spec.dtype != "int8":
        return source
    return made(source.with_suffix(".int8.onnx"), lambda path: _quantise(source, spec, path))


def build(spec: Spec, cache: Path) -> Runner:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = spec.threads
    options.inter_op_num_threads = 1
    if os.environ.get("OMP_WAIT_POLICY") == "passive":
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_free_dimension_override_by_name("N", spec.batch)
    session = onnxruntime.InferenceSession(_model_file(spec, cache), options, providers=["CPUExecutionProvider"])
    return Runner(lambda x: {"x": x}, lambda feed: session.run(None, feed)[0], lambda y: y)
