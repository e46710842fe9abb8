"""Kernels that start before the one before them has ended, on a real GPU, against the same ones that do not: bit for
bit, in eager calls, in graphs and in training. `pytest --cuda -m cuda` runs it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = [pytest.mark.cuda, pytest.mark.backends("cuda")]
ROOT = Path(__file__).parents[2]
COMPUTE = """
import sys
import torch
from tests.engine.test_engine import small
from vggfast import Engine

torch.manual_seed(0)
model = small("A-LRN", width=1.0, hidden=64, pool_size=2, head="conv").to("cuda")
images = [torch.randn(size, device="cuda") for size in ((1, 3, 64, 64), (8, 3, 96, 70), (2, 3, 224, 224))]
results = []
for dtype in ("bf16", "fp16", "tf32", "fp32"):
    for graph in (False, True):
        engine = Engine(model, dtype=dtype, graph=graph)
        for _ in range(5):
            results += [engine(x) for x in images]
for dtype in (torch.bfloat16, torch.float32):
    trained = model.to(dtype)
    for x in images:
        trained.zero_grad()
        trained(x.to(dtype)).float().square().mean().backward()
        results += [p.grad.clone() for p in trained.parameters()]
torch.save([r.cpu() for r in results], sys.argv[1])
"""


def test_results_are_the_same_bits(backend, tmp_path):
    computed = []
    for value in ("0", "1"):
        environment = {**os.environ, "VGGFAST_CUDA_DEPENDENT_LAUNCH": value}
        path = tmp_path / f"{value}.pt"
        subprocess.run([sys.executable, "-c", COMPUTE, str(path)], cwd=ROOT, env=environment, check=True)
        computed.append(torch.load(path))
    assert len(computed[0]) == len(computed[1])
    for apart, overlapped in zip(*computed, strict=True):
        assert torch.equal(apart, overlapped)
