"""MNN, in float32. Its tensors are NC4HW4 inside: copying images in and answers out converts, and is timed, as its
users pay for it.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

from peers.face import Runner
from peers.network import Spec, layers, made
from peers.onnx_file import onnx_file


def _convert(source: Path, path: Path) -> None:
    """By MNN's own converter; in a process of its own, because it prints and calls exit."""
    code = "from MNN.tools.mnnconvert import main; main()"
    command = [sys.executable, "-c", code, "-f", "ONNX", "--modelFile", str(source), "--MNNModel", str(path),
               "--bizCode", "vgg"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    if not path.exists():
        raise RuntimeError(f"MNN's converter failed on {source}: {(done.stdout + done.stderr)[-300:]}")


def build(spec: Spec, cache: Path) -> Runner:
    import MNN

    source = cache / f"{spec.part}-{spec.key}-{spec.size}.mnn"
    model = made(source, lambda path: _convert(onnx_file(spec, cache), path))
    net = MNN.Interpreter(str(model))
    session = net.createSession({"backend": "CPU", "numThread": spec.threads, "precision": "high"})
    inlet = net.getSessionInput(session)
    shape = (spec.batch, 3, spec.size, spec.size)
    net.resizeTensor(inlet, shape)
    net.resizeSession(session)
    outlet = net.getSessionOutput(session)
    channels = [layer.outputs for layer in layers(spec) if layer.kind != "pool"][-1]
    out = (spec.batch, channels) + ((spec.extent,) * 2 if spec.part == "features" else ())
    flat = np.zeros(out, np.float32)
    host = MNN.Tensor(out, MNN.Halide_Type_Float, flat, MNN.Tensor_DimensionType_Caffe)

    def run(image: MNN.Tensor) -> MNN.Tensor:
        inlet.copyFrom(image)
        net.runSession(session)
        outlet.copyToHostTensor(host)
        return host

    return Runner(
        lambda x: MNN.Tensor(shape, MNN.Halide_Type_Float, x, MNN.Tensor_DimensionType_Caffe),
        run,
        lambda y: np.array(y.getNumpyData()).reshape(out),
    )
