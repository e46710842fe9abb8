"""The network as an ONNX file, for the engines that read one."""

from __future__ import annotations

from pathlib import Path

from peers.network import Spec, layers, made, weights


def onnx_file(spec: Spec, cache: Path) -> Path:
    """The file of this network; the batch is left open (dimension "N"), and each engine fixes it by its own means."""
    return made(cache / f"{spec.part}-{spec.key}-{spec.size}.onnx", lambda path: _write(spec, cache, path))


def _write(spec: Spec, cache: Path, path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    nodes, last, head = [], "x", False

    def add(op: str, *more: str, **attributes: object) -> None:
        nonlocal last
        out = f"v{len(nodes)}"
        nodes.append(helper.make_node(op, [last, *more], [out], **attributes))
        last = out

    for layer in layers(spec):
        names = f"{layer.name}.weight", f"{layer.name}.bias"
        if layer.kind == "pool":
            add("MaxPool", kernel_shape=[2, 2], strides=[2, 2])
        elif layer.kind == "conv":
            add("Conv", *names, kernel_shape=[layer.kernel] * 2, pads=[layer.kernel // 2] * 4)
        else:
            if not head:
                add("Flatten", axis=1)
                head = True
            add("Gemm", *names, transB=1)
        if layer.relu:
            add("Relu")
    channels = [layer.outputs for layer in layers(spec) if layer.kind != "pool"][-1]
    shape = ["N", channels] if head else ["N", channels, spec.extent, spec.extent]
    nodes[-1].output[0] = "y"
    graph = helper.make_graph(
        nodes, "vgg",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, spec.size, spec.size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(array, name) for name, array in weights(spec, cache)],
    )  # fmt: skip
    # An old operator set and file version, which every engine's reader knows.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, path)
