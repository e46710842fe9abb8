"""The engine of fp8 in the benchmark of networks on CUDA: on the simulator, with a stubbed clock."""

import pytest
import torch

from tests.benchmarks.test_gpu import TINY, Spec, Worker, cache, model, on_cpu, races, registry  # noqa: F401
from vggfast.engine import e4m3


@pytest.mark.backends("sim")
def test_engine_of_fp8_is_right(build, on_cpu, cache, monkeypatch):  # noqa: F811
    """It is calibrated on other images than those it is checked on. That its error is greater than bfloat16's shows
    that e4m3 was at work."""
    monkeypatch.setattr(e4m3, "LEAST_CHANNELS", 16)
    spec = Spec(**{**TINY.as_dict(), "dtype": "bf16", "width": 1 / 8})
    engines, errors = registry.inference("bf16"), []
    for name in ("vggfast", "vggfast-fp8"):
        worker = Worker()
        worker.build(engines[name].module, spec.as_dict(), str(cache), dict(engines[name].options))
        errors.append(worker.check(str(model.reference(spec, cache)))["error"])
    assert 2 * errors[0] < errors[1] < engines["vggfast-fp8"].error_limit


def test_fp8_is_for_the_gpus_that_run_it(monkeypatch):
    options = races.parse(model.parser(), ["--batches", "1"], "model")
    assert "vggfast-fp8" in [engine.name for engine in model.cases(options)[0].engines]
    monkeypatch.setattr(model.choice, "memory", lambda: 80 << 30)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    assert "vggfast-fp8" not in [engine.name for engine in model.cases(options)[0].engines]
    assert "vggfast-fp8" not in registry.inference("fp16")
