"""The benchmarks' CUDA side on the CPU, with a stubbed clock: what it builds, checks, refuses, writes and prints."""

import importlib
import json
import math
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import timing  # noqa: E402
from gpu import candidates as convs  # noqa: E402
from gpu import choice, conv, measuring, memory, model, other_ops, races, registry, steps, train  # noqa: E402
from peers.network import Spec  # noqa: E402
from peers.race import Outcome  # noqa: E402
from peers.worker import Worker  # noqa: E402

COMMANDS = {"bench_conv": conv, "bench_model": model, "bench_train": train, "bench_memory": memory}
TINY = Spec("A", "whole", 32, 3, 1, "fp32", width=1 / 16, hidden=16, classes=10)
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def on_cpu(monkeypatch):
    """The CUDA side computes on the CPU, and its clock says a microsecond a call."""

    def clock(run, calls, flush):
        for _ in range(calls):
            run()
        return [1e-6] * calls

    monkeypatch.setattr(choice, "DEVICE", "cpu")
    monkeypatch.setattr(choice, "require_gpu", lambda parser: None)
    for name, stub in {
        "on_cuda": clock, "by_host": clock, "flusher": lambda: lambda: None, "gpu_state": lambda: {"sm": "1980"},
        "gpu": lambda: {"name": "none"}, "WARM_UPS": 1, "MOST_CALLS": 2,
    }.items():  # fmt: skip
        monkeypatch.setattr(timing, name, stub)
    yield
    choice.set_precision("tf32")  # torch's defaults for convolutions and, below, for products
    torch.backends.cuda.matmul.allow_tf32 = False


# ---- the choice -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "asked"),
    [
        ([], False),
        (["--device", "cpu"], False),
        (["--rounds", "3", "--device", "cuda"], True),
        (["--device=cuda"], True),
    ],
)
def test_device_chooses_the_side(arguments, asked):
    assert choice.gpu_asked_for(arguments) is asked


@no_gpu
@pytest.mark.parametrize("name", COMMANDS)
def test_without_a_gpu_a_sentence_says_so(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [name, "--device", "cuda"])
    with pytest.raises(SystemExit) as stopped:
        importlib.import_module(name).main()
    assert stopped.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.endswith(
        f"error: --device must be 'cpu' here, got 'cuda': torch {torch.__version__} sees no CUDA GPU here"
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_the_cuda_sides(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [name, "--device", "cuda", "--help"])
    with pytest.raises(SystemExit) as stopped:
        importlib.import_module(name).main()
    assert stopped.value.code == 0
    assert "--dtype {bf16,fp16,tf32,fp32}" in capsys.readouterr().out


@pytest.mark.parametrize("side", COMMANDS.values())
def test_every_option_has_help(side):
    for action in side.parser()._actions:
        assert action.help, action.option_strings


@pytest.mark.parametrize(
    ("side", "arguments", "text"),
    [
        (model, ["--engines", "abacus"], "engine must be one of vggfast"),
        (train, ["--without", "abacus"], "engine must be one of vggfast"),
        (memory, ["--size", "100"], "size must be a multiple of 32, got 100"),
        (model, ["--rounds", "2"], "--rounds must be at least 3 (quartiles are taken), got 2"),
        (conv, ["--rounds", "1"], "--rounds must be at least 2 (quartiles are taken), got 1"),
        (conv, ["--batch", "0"], "--batch must be at least 1, got 0"),
        (train, ["--dtype", "fp8"], "'fp8'"),
    ],
)
def test_errors_name_the_argument(side, arguments, text, capsys):
    with pytest.raises(SystemExit) as stopped:
        side.main(arguments)
    assert stopped.value.code == 2
    assert text in capsys.readouterr().err


def test_default_cases():
    options = races.parse(model.parser(), [], "model")
    found = {case.spec.batch: [engine.name for engine in case.engines] for case in model.cases(options)}
    assert list(found) == [1, 64, 128, 256]
    assert {"vggfast", "vggfast-module-graph", "torch-channels-last-tuned-graph"} <= set(found[1])
    assert not any(name.endswith("-graph") for name in found[64])
    assert {"vggfast", "torch-nchw", "torch-channels-last-tuned", "torch-compile-autotune", "jax"} <= set(found[64])
    options = races.parse(train.parser(), ["--without", "jax"], "train")
    assert {(case.spec.part, case.spec.batch) for case in train.cases(options)} == {
        (part, batch) for part in ("whole", "features") for batch in (64, 128)
    }
    assert options.out.name == "train-cuda.json"
    assert races.parse(train.parser(), ["--dtype", "fp16"], "train").out.name == "train-cuda-fp16.json"
    options = races.parse(memory.parser(), [], "memory")
    assert {case.use for case in memory.cases(options)} == set(memory.USES)


def test_conv_cases_are_those_of_the_net():
    cases = conv.conv_cases(conv.parser().parse_args([]))
    forward = [(case.cin, case.size, case.pool) for case in cases if case.which == "fprop"]
    assert (64, 224, True) in forward
    assert (64, 224, False) not in forward
    assert {(512, 14, False), (512, 14, True)} <= set(forward)
    assert len(forward) == 12
    assert len([case for case in cases if case.which == "wgrad"]) == 9


# ---- single layers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", convs.PASSES)
@pytest.mark.parametrize("pool", [False, True])
def test_all_candidates_of_a_layer_are_right(which, pool, on_cpu):
    layer = convs.Layer(convs.Case(5, 7, 8, 2, which, pool, "fp32"))
    found, starts, _ = convs.candidates(layer)
    found = {name: c for name, c in found.items() if not name.startswith("torch.compile")}
    assert {"vggfast", "cuDNN NCHW", "cuDNN NHWC tuned", "eager NHWC", "eager NCHW tuned"} <= set(found)
    errors, reasons = measuring.checked(found, lambda name: convs.exact(layer, name, starts), "fp32")
    assert reasons == {}
    assert all(0 < error < 1e-5 for error in errors.values())


@pytest.mark.parametrize("case", other_ops.cases(1, "fp32")[::4] + other_ops.cases(1, "fp32")[-3:])
def test_all_candidates_of_another_op_are_right(case, on_cpu):
    layer = other_ops.Layer(case._replace(channels=6, size=8))
    found, missing = layer.candidates()
    assert missing == {}
    assert measuring.checked(found, layer.exact, "fp32")[1] == {}
    assert layer.bytes >= 4 * layer.x.numel()


def test_wrong_and_failing_candidates_are_not_timed(on_cpu):
    right = torch.ones(3)

    def fails():
        raise RuntimeError("no\nkernel")

    found = {
        "right": convs.Candidate(lambda: right, "a"),
        "wrong": convs.Candidate(lambda: right * 1.1, "a"),
        "flat": convs.Candidate(lambda: torch.ones(1), "a"),
        "nan": convs.Candidate(lambda: right * math.nan, "a"),
        "broken": convs.Candidate(fails, "a"),
    }
    errors, reasons = measuring.checked(found, lambda name: right.double(), "bf16")
    assert errors["right"] == 0
    assert reasons["wrong"] == "wrong: relative error must be at most 1e-02, got 1.0e-01"
    assert reasons["broken"] == "RuntimeError: no kernel"
    assert set(reasons) == {"wrong", "flat", "nan", "broken"}
    assert set(measuring.timed(found, reasons, 2, lambda: None)) == {"right"}


def test_tuned_candidates_run_in_a_thread_of_their_own():
    import threading

    seen = []
    for tuned in (False, True):
        convs.Candidate(lambda: seen.append((threading.get_ident(), torch.backends.cudnn.benchmark)), "", tuned).once()
    assert seen[0] == (threading.get_ident(), False)
    assert seen[1][0] != threading.get_ident()
    assert seen[1][1] is True
    assert torch.backends.cudnn.benchmark is False


def test_conv_command(on_cpu, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(conv, "LAYERS", [(64, 64, 224)])
    monkeypatch.setattr(convs.Case, "flops", property(lambda case: 2_000_000))
    real = convs.Layer
    monkeypatch.setattr(convs, "Layer", lambda case: real(case._replace(cin=4, cout=4, size=8)))
    monkeypatch.setattr(other_ops, "POOLS", ((4, 8),))
    monkeypatch.setattr(
        other_ops, "cases", lambda batch, dtype: [other_ops.Case("sum_pool forward", 4, 8, batch, dtype)]
    )
    monkeypatch.setattr(measuring, "PRODUCT", 16)
    monkeypatch.setattr(measuring, "COPY", 1024)
    out = tmp_path / "conv-cuda.json"
    arguments = ["--dtype", "fp32", "--batch", "2", "--rounds", "2", "--without", "torch.compile", *convs.OPTIONAL]
    conv.main([*arguments, "--no-kernel-names", "--out", str(out)])
    found = json.loads(out.read_text())
    assert [row["which"] for row in found["rows"]] == ["fprop", "dgrad", "wgrad", "others"]
    assert found["environment"]["ceiling"]["tflops"] == pytest.approx(2 * 16**3 / 1e-6 / 1e12)
    assert len(found["rows"][0]["seconds"]["vggfast"]) == 4
    assert found["rows"][0]["clocks"]["before"] == {"sm": "1980"}
    assert found["rows"][0]["not timed"] == {}
    assert "fprop, fp32, batch 2: TFLOP/s" in (shown := capsys.readouterr().out)
    assert "sum_pool forward, 4 x 8²" in shown


def test_conv_command_ends_with_1_where_ours_is_wrong(on_cpu, tmp_path, monkeypatch, capsys):
    row = {"which": "fprop", "title": "a layer", "seconds": {"eager NHWC": [1e-3] * 3}, "errors": {}, "kernels": {},
           "not timed": {"vggfast": "wrong"}, "flops": 10**9}  # fmt: skip
    monkeypatch.setattr(conv, "measure_conv", lambda *_: row)
    monkeypatch.setattr(measuring, "ceilings", lambda *_: {"tflops": 100.0, "gbytes": 1000.0})
    with pytest.raises(SystemExit) as stopped:
        conv.main(["--passes", "fprop", "--out", str(tmp_path / "x.json")])
    assert stopped.value.code == 1
    assert "fprop, a layer: vggfast is not timed: wrong" in capsys.readouterr().out


def test_an_error_of_the_gpu_ends_the_run_and_keeps_what_there_is(on_cpu, tmp_path, monkeypatch, capsys):
    def dies(*_):
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(conv, "measure_conv", dies)
    monkeypatch.setattr(measuring, "ceilings", lambda *_: {"tflops": 100.0, "gbytes": 1000.0})
    with pytest.raises(SystemExit):
        conv.main(["--passes", "fprop", "--out", str(tmp_path / "x.json")])
    assert "the run ends here: RuntimeError: an illegal memory access" in capsys.readouterr().out


def test_kernels_are_told_apart_by_the_mark_between_them():
    events = [(5.0, 2.0, "conv"), (1.0, 1.0, "void atan_kernel_cuda"), (9.0, 3.0, "relu"), (0.5, 1.0, "early"),
              (8.0, 1.0, "void atan_kernel_cuda"), (6.0, 1.5, "bias")]  # fmt: skip
    assert measuring.split(events, ["a", "b"]) == {"a": ["conv: 2.0 us", "bias: 1.5 us"], "b": ["relu: 3.0 us"]}
    with pytest.raises(ValueError, match="argument"):
        measuring.split(events, ["a", "b", "c"])


def test_conv_table():
    row = {"title": "a layer", "flops": 10**9, "errors": {"vggfast": 1e-3}, "seconds": {
        "vggfast": [2e-5] * 3, "vggfast conv": [1e-5] * 3, "cuDNN NCHW": [4e-5] * 3, "cuDNN NHWC": [3e-5] * 3,
        "eager NHWC": [5e-5] * 3}}  # fmt: skip
    columns, lines = conv.conv_table([row], {"tflops": 100.0})
    shown = dict(zip(columns, lines[0], strict=True))
    assert shown["us"] == "20.0"
    assert shown["of ceiling"] == "50%"
    assert shown["cuDNN / ours"] == "3.00"
    assert shown["eager / ours"] == "2.50"
    assert shown["compile / ours"] == "-"


# ---- whole networks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vggfast", "vggfast-module", "torch-nchw-tuned", "torch-channels-last"])
@pytest.mark.parametrize("part", ["features", "whole"])
def test_forward_engine_is_right(name, part, on_cpu, cache):
    spec = Spec(**{**TINY.as_dict(), "part": part})
    engine = registry.inference("fp32")[name]
    assert engine.module == "gpu.engines"
    worker = Worker()
    worker.build(engine.module, spec.as_dict(), str(cache), dict(engine.options))
    answer = worker.check(str(model.reference(spec, cache)))
    assert answer["error"] < engine.error_limit
    assert answer["seconds"] is None
    assert worker.run(2) == {"seconds": 1e-6, "samples": [1e-6, 1e-6]}
    torch.backends.cudnn.benchmark = False


@pytest.mark.parametrize("name", ["vggfast", "torch-channels-last"])
@pytest.mark.parametrize("use", ["training", "perceptual"])
def test_step_is_right(name, use, on_cpu, cache):
    spec = Spec(**{**TINY.as_dict(), "part": "whole" if use == "training" else "features"})
    engine = registry.steps("fp32", use)[name]
    worker = Worker()
    worker.build(engine.module, spec.as_dict(), str(cache), dict(engine.options))
    assert worker.check(str(steps.reference_file(spec, cache)))["error"] < 1e-3
    assert worker.run(2)["samples"] == [1e-6, 1e-6]


@pytest.mark.parametrize("training", [False, True])
def test_jax_is_right(training, on_cpu, cache):
    pytest.importorskip("jax", reason="JAX is not installed")
    from gpu import jax_engine

    worker = Worker()
    worker.build(jax_engine.__name__, TINY.as_dict(), str(cache), {"training": training})
    reference = steps.reference_file if training else model.reference
    assert worker.check(str(reference(TINY, cache)))["error"] < 1e-3
    assert worker.run(2)["samples"] == [1e-6, 1e-6]


def test_jax_layer_is_right(on_cpu):
    pytest.importorskip("jax", reason="JAX is not installed")
    layer = convs.Layer(convs.Case(5, 7, 8, 2, "fprop", True, "fp32"))
    found = {"jax": convs.jax_forward(layer)}
    assert measuring.checked(found, lambda name: convs.exact(layer, name, {}), "fp32")[1] == {}


def test_races_write_what_they_measured(on_cpu, cache, tmp_path, monkeypatch, capsys):
    known = registry.inference("bf16")

    def race(engines, spec, cache, reference, *, rounds, seconds, builders, say):
        return [Outcome(engine, error=1e-3, samples=[0.1 * (i + 1)] * rounds) for i, engine in enumerate(engines)]

    monkeypatch.setattr(races, "race", race)
    out = tmp_path / "model-cuda.json"
    options = races.parse(model.parser(), ["--out", str(out), "--cache", str(cache)], "model")
    case = races.Case(TINY, [known["vggfast"], known["torch-nchw"]], "a case")
    races.run([case], options, model.reference, "heading")
    found = json.loads(out.read_text())
    assert [row["time / vggfast's"] for row in found["rows"]] == [1, 2]
    assert found["rows"][0]["clocks"] == {"before": {"sm": "1980"}, "after": {"sm": "1980"}}
    assert found["environment"]["gpu"] == {"name": "none"}
    assert out.with_suffix(".png").exists()
    assert "vggfast is 2.00 times as fast as the best bf16 peer, torch-nchw" in capsys.readouterr().out


def test_races_end_with_1_where_ours_is_not_right(on_cpu, cache, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(races, "race", lambda engines, *_, **__: [Outcome(engines[0], "wrong", "error 1")])
    options = races.parse(model.parser(), ["--out", str(tmp_path / "x.json"), "--cache", str(cache)], "model")
    with pytest.raises(SystemExit) as stopped:
        races.run([races.Case(TINY, [registry.inference("bf16")["vggfast"]], "a case")], options, model.reference, "")
    assert stopped.value.code == 1
    assert "a case: vggfast: wrong: error 1" in capsys.readouterr().out


def test_memory_table_and_child(on_cpu, cache, monkeypatch):
    engine = registry.inference("bf16")
    cases = [memory.Case("inference", engine[name], TINY) for name in ("vggfast", "torch-nchw", "torch-compile")]
    figures = [{"held": 1, "peak": 2, "reserved": 4}, {"held": 0, "peak": 5, "reserved": 8}]
    figures = [{name: mib << 20 for name, mib in row.items()} for row in figures]
    rows = list(zip(cases, [*figures, {"reason": "gone"}], strict=True))
    assert memory.table(rows) == [
        ["vggfast", "1", "2", "4", "1.00"],
        ["torch-nchw", "0", "5", "8", "2.50"],
        ["torch-compile: not available", "-", "-", "-", "-"],
    ]
    for name in ("synchronize", "empty_cache", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    for name, value in (("memory_allocated", 1), ("max_memory_allocated", 2), ("max_memory_reserved", 3)):
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    request = {"module": "gpu.steps", "spec": TINY.as_dict(), "cache": str(cache), "options": {"ours": True}}
    assert memory.child(request) == {"held": 1, "peak": 2, "reserved": 3}


@no_gpu
def test_memory_of_a_case_that_fails_has_its_reason(cache):
    found = memory.measure(memory.Case("inference", registry.inference("fp32")["torch-nchw"], TINY), cache)
    assert "ended with status 1" in found["reason"]


# ---- the clock ------------------------------------------------------------------------------------------------------


def test_turns_keep_every_sample():
    turns = []

    def sampler(name, seconds):
        return lambda calls: turns.append((name, calls)) or [seconds] * calls

    found = timing.in_turns({"short": sampler("short", 1e-3), "long": sampler("long", 1.0)}, rounds=3, seconds=5e-3)
    assert {name: len(samples) for name, samples in found.items()} == {"short": 15, "long": 3}
    assert turns[-4:] == [("short", 5), ("long", 1)] * 2


def test_state_of_the_gpu_whatever_its_driver_calls_it(monkeypatch):
    asked = []

    def answer(fields):
        asked.append(fields[-1])
        return ['Field "x" is not a valid field to query.'] if "event" in fields[-1] else list("12345")

    monkeypatch.setattr(timing, "_nvidia_smi", answer)
    assert timing.gpu_state() == {"sm": "1", "memory": "2", "temperature": "3", "power": "4", "reasons": "5"}
    assert asked == ["clocks_event_reasons.active", "clocks_throttle_reasons.active"]
    monkeypatch.setattr(timing, "_nvidia_smi", lambda fields: ["no nvidia-smi"])
    assert timing.gpu_state() == {"unknown": "no nvidia-smi"}


def test_commit_of_sources_without_their_history(monkeypatch):
    monkeypatch.setenv("VGGFAST_COMMIT", "abc1234")
    assert timing.environment()["commit"] == "abc1234"
