"""What the CUDA side measures beside us: cuDNN's fused graph, by a stand-in for cudnn-frontend that computes with
torch; groups of engines; the names of result files."""

import sys
import types
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import timing
from gpu import candidates, choice, model, registry
from gpu.candidates import Case, Layer


class UnsupportedError(Exception):
    """As cudnn-frontend's, which is no RuntimeError."""


class Node:
    def __init__(self, compute):
        self.compute, self.output = compute, False

    def set_output(self, value):
        self.output = value


class Graph:
    """Plan 0 does not run, plan 1 does."""

    def __init__(self, **settings):
        self.built = []

    def tensor_like(self, tensor):
        node = Node(None)
        node.compute = lambda values: values[node]
        return node

    def conv_fprop(self, image, weight, padding, stride, dilation):
        return Node(lambda v: F.conv2d(image.compute(v), weight.compute(v), None, stride, padding, dilation))

    def bias(self, input, bias):
        return Node(lambda v: input.compute(v) + bias.compute(v))

    def relu(self, input):
        return Node(lambda v: input.compute(v).relu())

    def validate(self):
        self.built.append("validate")

    def build_operation_graph(self):
        self.built.append("build")

    def create_execution_plans(self, modes):
        self.built.append("plans")

    def check_support(self):
        if Graph.refuses:
            raise UnsupportedError("no engine")

    def build_plans(self, policy):
        assert self.built == ["validate", "build", "plans"]

    def get_execution_plan_count(self):
        return 2

    def get_workspace_size_plan_at_index(self, plan):
        return 16

    def execute_plan_at_index(self, tensors, workspace, plan, handle):
        if plan == 0:
            raise UnsupportedError("not on this device")
        assert len(workspace) == 16
        (output,) = [node for node in tensors if node.output]
        tensors[output].copy_(output.compute(tensors))


@pytest.fixture
def cudnn(monkeypatch):
    Graph.refuses = False
    module = types.SimpleNamespace(
        pygraph=Graph, create_handle=object, cudnnGraphNotSupportedError=UnsupportedError,
        data_type=types.SimpleNamespace(BFLOAT16=1, HALF=2, FLOAT=3), heur_mode=types.SimpleNamespace(A=1),
        build_plan_policy=types.SimpleNamespace(ALL=1),
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "cudnn", module)
    monkeypatch.setattr(choice, "DEVICE", "cpu")
    monkeypatch.setattr(timing, "flusher", lambda: lambda: None)
    monkeypatch.setattr(timing, "on_cuda", lambda run, calls, flush: [run() or 1e-6 for _ in range(calls)])


@pytest.mark.parametrize("pool", [False, True])
def test_it_computes_the_fused_layer(cudnn, pool):
    layer = Layer(Case(4, 8, 6, 2, "fprop", pool, "fp32"))
    candidate = candidates.graph_forward(layer)
    assert candidate.exact == "fused"
    torch.testing.assert_close(candidate.once(), candidates.exact(layer, "fused", {}).float())


def test_a_graph_that_cudnn_has_not_is_named(cudnn):
    Graph.refuses = True
    with pytest.raises(RuntimeError, match="cuDNN has no such graph: no engine"):
        candidates.graph_forward(Layer(Case(4, 8, 6, 2, "fprop", False, "fp32")))


@pytest.mark.parametrize(
    ("name", "card"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-40GB", "a100"),
        ("Graphics", "graphics"),
    ],
)
def test_result_files_are_called_by_the_card(name, card):
    assert choice.card(name) == card


@pytest.mark.parametrize("most", [1, 2, 3, 5, 9])
def test_groups_have_all_engines_once_and_ours_in_each(most):
    engines = list(registry.inference("bf16").values())
    groups = model.in_groups(engines, most)
    assert all(group[0].name == "vggfast" and len(group) <= max(most, 2) for group in groups)
    others = sorted(engine.name for group in groups for engine in group[1:])
    assert others == sorted(engine.name for engine in engines if engine.name != "vggfast")
