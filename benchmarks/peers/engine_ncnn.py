"""ncnn, Winograd on as by default, in float32 or with bfloat16 storage.

ncnn has no batch: as its users do, we loop over the images. Its files are written directly, as its converter would,
ReLU fused: a text of layers and a stream of raw float32.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from peers.face import Runner
from peers.network import Spec, layers, made, weights


def _write_param(spec: Spec, path: Path) -> None:
    lines = ["Input input 0 1 x"]
    for layer in layers(spec):
        end = f"{len(lines) - 1 or 'x'} {len(lines)}"
        name, relu, size = f"l{len(lines)}", f"9={int(layer.relu)}", layer.inputs * layer.outputs
        if layer.kind == "pool":
            lines.append(f"Pooling {name} 1 1 {end} 0=0 1=2 2=2 5=1")
        elif layer.kind == "conv":
            shape = f"0={layer.outputs} 1={layer.kernel} 4={layer.kernel // 2} 5=1 6={size * layer.kernel**2}"
            lines.append(f"Convolution {name} 1 1 {end} {shape} {relu}")
        else:
            lines.append(f"InnerProduct {name} 1 1 {end} 0={layer.outputs} 1=1 2={size} {relu}")
    path.write_text(f"7767517\n{len(lines)} {len(lines)}\n" + "\n".join(lines) + "\n")


def _write_bin(spec: Spec, cache: Path, path: Path) -> None:
    with open(path, "wb") as file:
        for name, array in weights(spec, cache):
            if name.endswith(".weight"):
                file.write(np.zeros(1, np.uint32))  # the tag of raw float32
            file.write(np.ascontiguousarray(array))


def build(spec: Spec, cache: Path) -> Runner:
    import ncnn

    stem = f"{spec.part}-{spec.key}.ncnn"
    param = made(cache / f"{stem}.param", lambda path: _write_param(spec, path))
    binary = made(cache / f"{stem}.bin", lambda path: _write_bin(spec, cache, path))
    net = ncnn.Net()
    net.opt.num_threads = spec.threads
    # By default its FC layers keep float16 weights on x86: not what is called float32 here.
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    net.opt.use_bf16_storage = net.opt.use_bf16_packed = spec.dtype == "bf16"
    for status in (net.load_param(str(param)), net.load_model(str(binary))):
        if status:
            raise RuntimeError(f"ncnn could not load {param}: status {status}")
    last = str(sum(1 for _ in layers(spec)))

    def run(images: list[ncnn.Mat]) -> list[np.ndarray]:
        out = []
        for image in images:
            extractor = net.create_extractor()
            extractor.input("x", image)
            out.append(np.array(extractor.extract(last)[1]))
        return out

    # clone: a Mat on numpy's memory lacks the padding between channels that ncnn's own images have
    return Runner(lambda x: [ncnn.Mat(image).clone() for image in x], run, np.stack)
