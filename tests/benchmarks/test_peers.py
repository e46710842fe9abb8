"""The benchmarks' machinery, on networks too small to time: what they compare, refuse and report."""

import importlib
import json
import os
import sys
from pathlib import Path

import pytest
import torch

import vggfast

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

from peers import command, registry, report  # noqa: E402
from peers.load import Neighbours  # noqa: E402
from peers.network import Spec, calibration_images, images, layers, reference_file, weights  # noqa: E402
from peers.race import Outcome, race  # noqa: E402
from peers.registry import INFERENCE, TRAINING, Engine, chosen, with_before  # noqa: E402
from processor import first_processor, processor_class  # noqa: E402

TINY = Spec("A", "whole", 64, 2, 1, width=1 / 16, hidden=16, classes=10)
COMMANDS = ("bench_model", "bench_train", "bench_memory")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def available(engine: Engine) -> Engine:
    """The engine; skips by name where its package is not installed."""
    for package in filter(None, (engine.package, engine.quantiser)):
        pytest.importorskip(package, reason=f"{engine.name}: {package} is not installed")
    planned = engine.module == "peers.engine_vggfast" and engine.options.get("planned", True)
    if planned and not hasattr(vggfast, "Engine"):
        pytest.skip(f"{engine.name}: this vggfast has no Engine")
    return engine


def only(outcomes: list[Outcome]) -> Outcome:
    assert len(outcomes) == 1
    return outcomes[0]


def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> Engine:
    """An engine whose `build` has this body."""
    (tmp_path / "fake_engine.py").write_text(f"def build(spec, cache):\n    {body}\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    return Engine("fake", "fake_engine", "torch")


# ---- arithmetic and tables ------------------------------------------------------------------------------------------


def outcomes_of(**samples: list[float]) -> list[Outcome]:
    engines = {"vggfast": INFERENCE["vggfast"], "ncnn": INFERENCE["ncnn"], "openvino": INFERENCE["openvino"]}
    return [Outcome(engines[name], error=1e-6, samples=values) for name, values in samples.items()]


def test_ratio_is_the_peers_time_over_ours():
    outcomes = outcomes_of(vggfast=[2.0, 2.0, 9.0], ncnn=[3.0, 3.0, 3.0], openvino=[8.0, 7.0, 1.0])
    assert report.ratios(outcomes, "vggfast") == {"vggfast": 1, "ncnn": 1.5, "openvino": 3.5}
    assert report.summary(outcomes) == "vggfast is 1.50 times as fast as the best fp32 peer, ncnn"


def test_table_gives_milliseconds_an_image_and_names_who_is_out():
    outcomes = outcomes_of(vggfast=[0.02, 0.02, 0.02, 0.016, 0.02], ncnn=[0.05, 0.05, 0.05])
    outcomes.append(Outcome(INFERENCE["openvino"], "not available", "no such module"))
    columns, rows = report.table(outcomes, Spec(batch=4))
    assert columns == ["engine", "dtype", "ms/image", "least", "spread", "error", "/ vggfast"]
    assert rows[0] == ["vggfast", "fp32", "5.00", "4.00", "5%", "1.0e-06", "1.00"]
    assert rows[1] == ["ncnn", "fp32", "12.50", "12.50", "0%", "1.0e-06", "2.50"]
    assert rows[2] == ["openvino: not available", "fp32", "-", "-", "-", "", "-"]


def test_no_ratio_without_ours():
    outcomes = outcomes_of(ncnn=[1.0, 1.0])
    assert report.ratios(outcomes, "vggfast") == {}
    assert report.table(outcomes, Spec())[0][-1] == "error"
    assert report.summary(outcomes) == ""


def test_memory_ratio_leaves_the_imports_out():
    bench_memory = importlib.import_module("bench_memory")
    ours, peer = {"imported": 100, "peak_running": 300}, {"imported": 50, "peak_running": 450}
    assert bench_memory.ratio(peer, ours) == "2.00"
    assert bench_memory.ratio({"reason": "gone"}, ours) == "-"


def test_result_file_and_plot(tmp_path):
    outcomes = outcomes_of(vggfast=[1.0, 2.0, 3.0], ncnn=[2.0, 4.0, 6.0])
    bench_model = importlib.import_module("bench_model")
    out = tmp_path / "results" / "model.json"
    options = command.parse(bench_model.parser(), ["--out", str(out)], bench_model.OUT)
    case = command.Case(Spec(), [], 3, "a case")
    command.write([(case, outcomes)], options, "heading")
    found = json.loads(out.read_text())
    assert [row["time / vggfast's"] for row in found["rows"]] == [1, 2]
    assert found["rows"][1]["seconds"] == [2.0, 4.0, 6.0]
    assert found["environment"]["peers"]["torch"]
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


# ---- the commands ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*COMMANDS, "bench_conv"])
def test_help(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as stopped:
        importlib.import_module(name).main()
    assert stopped.value.code == 0
    assert "--rounds" in (shown := capsys.readouterr().out) or "--uses" in shown


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_help(name):
    for action in importlib.import_module(name).parser()._actions:
        assert action.help, action.option_strings


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--device", "tpu"], "invalid choice: 'tpu'"),
        (["--engines", "abacus"], "engine must be one of vggfast"),
        (["--size", "100"], "size must be a multiple of 32, got 100"),
    ],
)
def test_errors_name_the_argument(name, arguments, text, capsys):
    with pytest.raises(SystemExit) as stopped:
        importlib.import_module(name).main(arguments)
    assert stopped.value.code == 2
    assert text in capsys.readouterr().err


@pytest.mark.parametrize("name", ["bench_model", "bench_train"])
def test_another_checkout_must_be_built(name, tmp_path, capsys):
    with pytest.raises(SystemExit):
        importlib.import_module(name).main(["--before", str(tmp_path)])
    assert f"--before must be a checkout of vggfast that is built in place, got {tmp_path}" in capsys.readouterr().err


def test_default_cases_hold_every_batch_part_and_thread_count():
    bench_model = importlib.import_module("bench_model")
    options = command.parse(bench_model.parser(), [], bench_model.OUT)
    specs = [case.spec for case in bench_model.cases(options)]
    assert {(spec.batch, spec.part) for spec in specs if spec.network == "D"} == {
        (batch, part) for batch in (1, 8, 32) for part in ("features", "whole")
    }
    assert {spec.threads for spec in specs} == {1, 2}
    assert {(spec.size, spec.batch) for spec in specs if spec.network == "A"} == {(64, 64)}


# ---- the common network ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", ["A", "B", "C", "D", "E"])
def test_weights_are_those_of_our_networks(network, cache):
    spec = Spec(network, "whole", 32, width=1 / 16, hidden=8, classes=5)
    model = vggfast.VGG(network, num_classes=5, width=1 / 16, hidden=8, pool_size=1)
    assert {name: array.shape for name, array in weights(spec, cache)} == {
        name: tuple(tensor.shape) for name, tensor in model.state_dict().items()
    }


@pytest.mark.parametrize(
    ("argument", "value"), [("network", "F"), ("part", "head"), ("batch", 0), ("size", 48), ("width", 0)]
)
def test_spec_refuses(argument, value):
    with pytest.raises(ValueError, match=f"^{argument} must be .*, got {value!r}$"):
        Spec(**{argument: value})


# ---- single layers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["fprop", "dgrad", "wgrad"])
def test_layers_in_bf16_and_int8_are_right(which):
    bench_conv, single = importlib.import_module("bench_conv"), importlib.import_module("layers")
    x, gy = (torch.randn(2, c, 9, 13).contiguous(memory_format=torch.channels_last) for c in (16, 24))
    weight = torch.randn(24, 16, 3, 3) / 12
    calls, inputs = single.bf16_candidates(x, weight, gy, which), dict.fromkeys(single.BF16, x)
    if which == "fprop":
        calls.update(single.int8_candidates(x.relu(), weight))
        inputs.update(dict.fromkeys(single.INT8, x.relu()))
    for name, call in calls.items():
        limit = bench_conv.LIMITS[single.BF16[0] if name in single.BF16 else single.INT8[0]]
        assert 0 < single.relative_error(call(), single.exact(inputs[name], weight, gy, which)) < limit, name


# ---- the race -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [name for name in INFERENCE if "compile" not in name]
    + [pytest.param("torch-compile-int8", marks=pytest.mark.slow)],
)
@pytest.mark.parametrize("part", ["features", "whole"])
def test_engine_is_right(name, part, cache):
    engine = available(INFERENCE[name])
    spec = Spec(**{**TINY.as_dict(), "part": part})
    outcome = only(race([engine], spec, cache, reference_file(spec, cache), rounds=2))
    assert outcome.reason == ""
    assert outcome.status == "timed"
    assert 0 < outcome.error < engine.error_limit
    assert len(outcome.samples) == 2


@pytest.mark.parametrize(
    "name", ["vggfast", "torch-channels-last", "torch-nchw", "vggfast-bf16", "torch-bf16", "torch-bf16-hugepages"]
)
def test_training_step_is_right(name, cache):
    from peers import training

    spec = Spec(**{**TINY.as_dict(), "batch": 3})
    outcome = only(race([TRAINING[name]], spec, cache, training.reference_file(spec, cache), rounds=2))
    assert outcome.reason == ""
    assert 0 < outcome.error < (TRAINING[name].error_limit if TRAINING[name].dtype == "bf16" else 1e-4)


def test_engines_take_turns_and_one_that_fails_stops_nobody(cache, tmp_path, monkeypatch):
    missing = fake(tmp_path, monkeypatch, "import nothing_of_this_name")
    engines = [missing, *chosen(INFERENCE, ["torch-nchw", "vggfast-module"])]
    said = []
    outcomes = race(engines, TINY, cache, reference_file(TINY, cache), rounds=3, say=said.append)
    assert [outcome.status for outcome in outcomes] == ["not available", "timed", "timed"]
    assert "nothing_of_this_name" in outcomes[0].reason
    assert [len(outcome.samples) for outcome in outcomes] == [0, 3, 3]
    assert said[-1] == "round 3 of 3"


def test_engines_of_another_checkout_race_beside_ours(cache, tmp_path):
    """The other checkout's process imports that one, and nothing of this one but the benchmarks."""
    (tmp_path / "vggfast").mkdir()
    (tmp_path / "vggfast" / "__init__.py").write_text("raise ImportError('an older vggfast')")
    engines = with_before(chosen(INFERENCE, ["vggfast", "torch-nchw"]), tmp_path)
    assert [engine.name for engine in engines] == ["vggfast", "vggfast-before", "torch-nchw"]
    ours, before, _ = race(engines, TINY, cache, reference_file(TINY, cache), rounds=2)
    assert ours.status == "timed"
    assert (before.status, before.reason) == ("not available", "ImportError: an older vggfast")


def test_wrong_engine_is_refused_and_not_timed(cache, tmp_path, monkeypatch):
    body = (
        "from peers import engine_torch as torchs, face\n"
        "    right = torchs.build(spec, cache)\n"
        "    return face.Runner(right.prepare, right.run, lambda y: right.result(y) * 1.01)"
    )
    wrong = fake(tmp_path, monkeypatch, body)
    outcome = only(race([wrong], TINY, cache, reference_file(TINY, cache), rounds=2))
    assert outcome.status == "wrong"
    assert outcome.error == pytest.approx(0.01, rel=0.01)
    assert "relative error must be at most 1e-03, got " in outcome.reason
    assert outcome.samples == []


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("import os; os._exit(3)", "ended with status 3"),
        ("raise RuntimeError('no such\\nmodel')", "RuntimeError: no such model"),
    ],
)
def test_failure_has_its_reason(body, reason, cache, tmp_path, monkeypatch):
    broken = fake(tmp_path, monkeypatch, body)
    outcome = only(race([broken], TINY, cache, reference_file(TINY, cache), rounds=2))
    assert outcome.status == "not available"
    assert reason in outcome.reason


def test_hung_engine_is_ended(cache, tmp_path, monkeypatch):
    monkeypatch.setattr("peers.race.BUILD_LIMIT", 3.0)
    hung = fake(tmp_path, monkeypatch, "import time; time.sleep(600)")
    outcome = only(race([hung], TINY, cache, reference_file(TINY, cache), rounds=2))
    assert outcome.reason == "build took longer than 3 s"


def test_engine_that_cannot_be_held_to_an_instruction_set_says_so(cache):
    outcome = only(race([INFERENCE["ncnn"]], TINY, cache, reference_file(TINY, cache), rounds=2, isa="avx2"))
    assert outcome.reason == "isa is 'avx2': no way is known to hold ncnn to it"


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="load is read from Linux's /proc")
def test_share_of_others_is_of_the_whole_machine():
    neighbours = Neighbours()
    assert neighbours.share is None
    neighbours.known, neighbours.seconds, neighbours.taken = True, 2.0, 1.0
    assert neighbours.share == 0.5 / os.cpu_count()


def test_limits():
    assert INFERENCE["vggfast"].error_limit == INFERENCE["vggfast-module"].error_limit == 1e-5
    assert INFERENCE["ncnn"].error_limit == 1e-3
    assert INFERENCE["vggfast-bf16"].error_limit == INFERENCE["openvino-bf16"].error_limit == registry.LIMIT_BF16
    assert INFERENCE["vggfast-int8"].error_limit == INFERENCE["openvino-int8"].error_limit == registry.LIMIT_INT8


def test_calibration_images_are_none_of_the_timed_ones():
    shown, timed = calibration_images(TINY), images(Spec(**{**TINY.as_dict(), "batch": 64}))
    assert shown.shape == (16, 3, 64, 64)
    assert not {image.tobytes() for image in shown} & {image.tobytes() for image in timed}


# ---- the processor's class ------------------------------------------------------------------------------------------


def cpuinfo(vendor: str, family: int, model: int, stepping: int = 1) -> dict[str, str]:
    return {"vendor_id": vendor, "cpu family": str(family), "model": str(model), "stepping": str(stepping)}


@pytest.mark.parametrize(
    ("said", "name"),
    [
        (cpuinfo("AuthenticAMD", 25, 1), "zen3"),
        (cpuinfo("AuthenticAMD", 25, 17), "zen4"),
        (cpuinfo("AuthenticAMD", 26, 2), "zen5"),
        (cpuinfo("GenuineIntel", 6, 85, 4), "skx"),
        (cpuinfo("GenuineIntel", 6, 85, 7), "clx"),
        (cpuinfo("GenuineIntel", 6, 143, 8), "spr"),
        (cpuinfo("GenuineIntel", 6, 207, 2), "emr"),
        (cpuinfo("GenuineIntel", 6, 173), "gnr"),
        (cpuinfo("GenuineIntel", 6, 221), "intel-6-221"),
        (cpuinfo("AuthenticAMD", 27, 0), "amd-27-0"),
        (cpuinfo("Zhaoxin", 7, 91), "zhaoxin-7-91"),
    ],
)
def test_processor_class(said, name):
    assert processor_class(said) == name


def test_processor_that_does_not_say_its_family_has_its_architecture(monkeypatch, tmp_path):
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nCPU part\t: 0xd40\n\nprocessor\t: 1\n")
    assert first_processor(tmp_path / "cpuinfo") == {"processor": "0", "CPU part": "0xd40"}
    assert processor_class(first_processor(tmp_path / "cpuinfo")) == "aarch64"
    assert processor_class(first_processor(tmp_path / "none")) == "aarch64"


@pytest.mark.parametrize("name", COMMANDS)
def test_results_are_called_by_the_processor(name):
    assert importlib.import_module(name).OUT.endswith(f"-cpu-{processor_class(first_processor())}.json")


# ---- layers and memory ----------------------------------------------------------------------------------------------


def test_layers_of_the_features_are_the_first_of_the_whole():
    whole = list(layers(TINY))
    features = list(layers(Spec(**{**TINY.as_dict(), "part": "features"})))
    assert whole[: len(features)] == features
    assert [layer.kind for layer in whole[len(features) :]] == ["fc"] * 3


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is read from Linux's /proc")
@pytest.mark.parametrize(
    ("use", "name"),
    [
        ("inference", "torch-nchw"),
        ("inference", "openvino-int8"),
        ("training", "vggfast"),
        ("training", "torch-bf16"),
        ("perceptual", "vggfast"),
        ("perceptual", "vggfast-bf16"),
    ],
)
def test_memory_of_a_case(use, name, cache):
    bench_memory = importlib.import_module("bench_memory")
    engine = available((INFERENCE if use == "inference" else TRAINING)[name])
    part = "features" if use == "perceptual" else "whole"
    spec = Spec(**{**TINY.as_dict(), "part": part, "dtype": engine.dtype})
    found = bench_memory.measure(bench_memory.Case(use, engine, spec), cache)
    assert "reason" not in found, found
    assert 0 < found["imported"] <= found["resident"] <= found["peak_starting"]
    assert found["peak_running"] >= found["imported"]
