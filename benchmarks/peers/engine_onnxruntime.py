"""ONNX Runtime, its CPU provider."""

from __future__ import annotations

import os
from pathlib import Path

from peers.face import Runner
from peers.network import Spec
from peers.onnx_file import onnx_file


def build(spec: Spec, cache: Path) -> Runner:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = spec.threads
    options.inter_op_num_threads = 1
    if os.environ.get("OMP_WAIT_POLICY") == "passive":
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_free_dimension_override_by_name("N", spec.batch)
    session = onnxruntime.InferenceSession(onnx_file(spec, cache), options, providers=["CPUExecutionProvider"])
    return Runner(lambda x: {"x": x}, lambda feed: session.run(None, feed)[0], lambda y: y)
