"""benchmarks/tune.py, predict.py and the table of tiles, without a GPU: stand-ins for the kernels' module and the
clock, and a sweep of small layers on the simulated GPU."""

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import predict  # noqa: E402
import timing  # noqa: E402
import tune  # noqa: E402
from gpu import candidates as convs  # noqa: E402
from gpu import choice, conv, tuning  # noqa: E402
from roofline import Ceilings  # noqa: E402
from simulated import Simulated  # noqa: E402
from tiles import Fprop, fprop_of, share, tiles_of  # noqa: E402

from vggfast.ops import _backends  # noqa: E402

FACTS = {"name": "a GPU", "num_sms": 132, "driver": "1", "cuda": "13.0"}
LAYER = Fprop(2, 64, 64, 224, 224, 8, True)
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")


class Kernels:
    """In place of the kernels' module: three tiles fit every layer, "b" is the default, and it keeps what was set."""

    def __init__(self):
        self.tile, self.set = "auto", []

    def conv_tiles(self):
        return ["auto", "large", "tall", "small", "a", "b", "c"]

    def conv_clusters(self):
        return [66, 31, 14]

    def conv_choices(self, *problem):
        assert problem[-2:] == (132, (66, 31, 14))
        return [SimpleNamespace(tile=t, clocks=float(i), chosen=t == "b") for i, t in enumerate("abc", 1)]

    def set_conv_tile(self, name):
        self.tile = name
        self.set.append(name)


@pytest.fixture
def clock(monkeypatch):
    """The CUDA side on the CPU; a call takes a microsecond."""

    def calls(run, calls, flush):
        for _ in range(calls):
            run()
        return [1e-6] * calls

    monkeypatch.setattr(choice, "DEVICE", "cpu")
    monkeypatch.setattr(tune, "require_hopper", lambda parser: None)
    for name, stub in {"on_cuda": calls, "flusher": lambda: lambda: None, "gpu_state": lambda: {"sm": "1980"},
                       "gpu": lambda: FACTS, "WARM_UPS": 1, "MOST_CALLS": 2}.items():  # fmt: skip
        monkeypatch.setattr(timing, name, stub)
    yield
    choice.set_precision("tf32")  # torch's defaults for convolutions and, below, for products
    torch.backends.cuda.matmul.allow_tf32 = False


@pytest.fixture
def small(monkeypatch):
    """One layer, of 64 to 64 channels, at 8 x 8 pixels."""
    monkeypatch.setattr(conv, "LAYERS", [(64, 64, 8)])
    monkeypatch.setattr(conv, "UNPOOLED", {(64, 64, 8)})
    monkeypatch.setattr(conv, "POOLED", {(64, 64, 8)})


@pytest.fixture
def kernels(monkeypatch):
    stub = Kernels()
    monkeypatch.setattr(tuning, "kernels", lambda: stub)
    return stub


def row(seconds, problem=LAYER, **more):
    """What measure() returns, as far as the table and the verdict read it."""
    estimates = {tile: float(i) for i, tile in enumerate(seconds, 1)}
    return {"title": "a layer", "problem": problem._asdict(), "default": next(iter(seconds), "a"), "not timed": {},
            "estimates": estimates, "seconds": {t: [s] * 3 for t, s in seconds.items()}, **more}  # fmt: skip


# ---- the command ----------------------------------------------------------------------------------------------------


@no_gpu
def test_without_a_gpu_a_sentence_says_so(capsys):
    with pytest.raises(SystemExit) as stopped:
        tune.main([])
    assert stopped.value.code == 2
    assert f"torch {torch.__version__} sees no CUDA GPU here; tune.py needs a GPU of sm_90" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("capability", "tiles", "text"),
    [((8, 0), 18, "the GPU is of sm_80; the Hopper kernels want"), ((9, 0), 4, "no Hopper kernels; build it with 90a")],
)
def test_other_gpus_and_builds_are_refused(capability, tiles, text, monkeypatch, capsys):
    monkeypatch.setattr(choice, "why_no_gpu", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(tuning, "kernels", lambda: SimpleNamespace(conv_tiles=lambda: ["x"] * tiles))
    with pytest.raises(SystemExit):
        tune.main([])
    assert text in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--rounds", "1"], "--rounds must be at least 2 (quartiles are taken), got 1"),
        (["--batches", "8", "0"], "--batches must be at least 1, got 0"),
        (["--dtypes", "fp32"], "'fp32'"),
    ],
)
def test_errors_name_the_argument(arguments, text, capsys):
    with pytest.raises(SystemExit) as stopped:
        tune.main(arguments)
    assert stopped.value.code == 2
    assert text in capsys.readouterr().err


def test_every_option_has_help():
    assert all(action.help for action in tune.parser()._actions)


def test_cases_are_the_layers_of_the_net_that_hopper_takes():
    cases = tuning.cases(["bf16", "tf32"], [64, 1], tuning.PASSES)
    first = [case for case in cases if (case.dtype, case.batch) == ("bf16", 64)]
    assert cases[: len(first)] == first
    assert len(first) == 11 + 8
    assert not any(case.cin == 3 for case in cases)
    assert not any(case.pool for case in cases if case.which == "dgrad")
    assert {(c.cin, c.size, c.pool) for c in first if c.which == "fprop"} >= {(64, 224, True), (512, 14, False)}


def test_backward_is_a_forward_of_the_gradient():
    assert fprop_of(64, 128, 112, 8, "dgrad", True, "tf32") == Fprop(4, 128, 64, 112, 112, 8, False)
    assert fprop_of(64, 128, 112, 8, "fprop", True, "bf16").multiply_adds == 9 * 64 * 128 * 112 * 112 * 8
    assert not fprop_of(3, 64, 224, 8, "dgrad", False, "bf16").on_hopper


# ---- a sweep --------------------------------------------------------------------------------------------------------


def test_sweep_writes_samples_and_a_table(clock, small, kernels, tmp_path, capsys):
    out, table = tmp_path / "tune.json", tmp_path / "tuned.h"
    tune.main(["--dtypes", "tf32", "--batches", "2", "--rounds", "2", "--out", str(out), "--table", str(table)])
    found = json.loads(out.read_text())
    assert [(r["which"], r["pool"]) for r in found["rows"]] == [("fprop", False), ("fprop", True), ("dgrad", False)]
    assert found["environment"]["gpu"] == {**FACTS, "clusters": [66, 31, 14]}
    assert {tile: len(samples) for tile, samples in found["rows"][0]["seconds"].items()} == {"a": 4, "b": 4, "c": 4}
    assert found["rows"][0]["estimates"] == {"a": 1, "b": 2, "c": 3}
    assert set(kernels.set) == {"a", "b", "c", "auto"}
    assert kernels.tile == "auto"
    text = table.read_text()
    assert "on a GPU, driver 1, CUDA 13.0" in " ".join(text.replace("//", "").split())
    assert "3 of 3 cases." in " ".join(text.replace("//", "").split())
    assert "std::array<TunedTile, 2> tuned_tiles" in text
    assert "    {4, 64, 64, 8, 8, 2, false, TileId::a},\n    {4, 64, 64, 8, 8, 2, true, TileId::a},\n" in text
    assert "fprop, tf32, batch 2, 64 -> 64, 8² + pool" in capsys.readouterr().out


def test_wrong_tiles_are_not_timed_and_end_with_1(clock, small, kernels, tmp_path, monkeypatch, capsys):
    """One whose result is all wrong, and one that is off in a single value."""
    real = convs.our_forward

    def forward(layer):
        right = real(layer).run

        def run():
            y = right().clone()
            if kernels.tile == "a":
                y[0, 0, 0, 0] += 0.05
            return y * 2 if kernels.tile == "c" else y

        return convs.Candidate(run, "fused")

    monkeypatch.setattr(convs, "our_forward", forward)
    monkeypatch.setitem(tuning.measuring.LIMITS, "bf16", 0.5)  # of the whole result: it lets one value pass
    monkeypatch.setitem(tuning.ROUNDING, "bf16", 2.0**-11)
    out, table = tmp_path / "tune.json", tmp_path / "tuned.h"
    arguments = ["--dtypes", "bf16", "--batches", "1", "--passes", "fprop", "--rounds", "2"]
    with pytest.raises(SystemExit) as stopped:
        tune.main([*arguments, "--out", str(out), "--table", str(table)])
    assert stopped.value.code == 1
    for found in json.loads(out.read_text())["rows"]:
        assert set(found["seconds"]) == {"b"}
        assert "relative error" in found["not timed"]["c"]
        assert "as far from b's as roundings may take it" in found["not timed"]["a"]
    assert "TileId::b}," in table.read_text()
    assert "c is not timed: wrong" in capsys.readouterr().out


def test_a_sweep_ends_in_time_and_keeps_what_there_is(clock, small, kernels, tmp_path, monkeypatch, capsys):
    now = [0.0]

    def measure(case, options, flush):
        now[0] += 10
        return row({"a": 1e-6}, tuning.problem(case))

    monkeypatch.setattr(tuning, "measure", measure)
    monkeypatch.setattr(tune, "time", SimpleNamespace(monotonic=lambda: now[0]))
    tune.main(["--seconds", "25", "--out", str(tmp_path / "x.json"), "--table", str(tmp_path / "tuned.h")])
    assert "2 of 36 cases fit in 25 s" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "x.json").read_text())["rows"]) == 2


def test_an_error_of_the_gpu_ends_the_run_and_keeps_what_there_is(clock, small, kernels, tmp_path, monkeypatch, capsys):
    rows = [row({"a": 1e-6})]

    def measure(case, options, flush):
        if not rows:
            raise RuntimeError("an illegal memory access was encountered")
        return rows.pop()

    monkeypatch.setattr(tuning, "measure", measure)
    with pytest.raises(SystemExit) as stopped:
        tune.main(["--out", str(tmp_path / "x.json"), "--table", str(tmp_path / "tuned.h")])
    assert stopped.value.code == 1
    assert "the run ends here: RuntimeError: an illegal memory access" in capsys.readouterr().out
    assert "{2, 64, 64, 224, 224, 8, true, TileId::a}" in (tmp_path / "tuned.h").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bf16", "tf32"])
def test_sweep_on_the_simulated_gpu(clock, small, sim, dtype, tmp_path, monkeypatch):
    """Real kernels by every tile: all are right, and all were the ones asked for."""
    backend = Simulated(sim)
    monkeypatch.setitem(_backends.OF_DEVICE, "cpu", lambda index: backend)
    sim.clear_counters()
    arguments = ["--dtypes", dtype, "--batches", "1", "--passes", "fprop", "--rounds", "2"]
    tune.main([*arguments, "--out", str(tmp_path / "x.json"), "--table", str(tmp_path / "tuned.h")])
    rows = json.loads((tmp_path / "x.json").read_text())["rows"]
    assert len(rows) == 2
    for found in rows:
        assert found["not timed"] == {}
        assert set(found["seconds"]) == set(found["estimates"]) >= {"halo-64x112", "halo-128x224"}
    assert "conv_fprop_hopper_kernel" in sim.counters()
    assert "conv_fprop_kernel" not in sim.counters()
    assert sim.cuda.conv_tile() == "auto"


# ---- the table ------------------------------------------------------------------------------------------------------


def test_the_fastest_of_one_problem_measured_twice():
    """bf16 and fp16, or a layer's gradient that is another's forward, share an entry."""
    rows = [row({"a": 2.0, "b": 1.0, "c": 1.1}), row({"a": 1.0, "b": 5.0, "c": 1.1})]
    assert tuning.entries(rows) == {LAYER: "c"}
    assert tuning.entries([rows[0], row({"a": 1.0, "b": 5.0})]) == {LAYER: "a"}
    assert tuning.entries([row({"a": 1.0}), row({"b": 1.0})]) == {}


def test_between_tiles_as_fast_the_estimate_decides():
    assert tuning.fastest([row({"a": 1.005, "b": 1.0})]) == "a"
    assert tuning.fastest([row({"a": 1.02, "b": 1.0})]) == "b"


def test_table_is_sorted_and_written_whole(tmp_path):
    path = tmp_path / "tuned.h"
    rows = [row({"im2col-64x64": 1.0}, LAYER._replace(n=64)), row({"halo-64x112": 1.0}, LAYER._replace(n=1)),
            row({"halo-64x112": 1.0}, LAYER._replace(pool=False, n=128))]  # fmt: skip
    tuning.write_table(path, rows, 132, "a run")
    lines = [line.strip() for line in path.read_text().splitlines() if line.strip().startswith("{")]
    assert lines == ["{2, 64, 64, 224, 224, 128, false, TileId::halo_64x112},",
                     "{2, 64, 64, 224, 224, 1, true, TileId::halo_64x112},",
                     "{2, 64, 64, 224, 224, 64, true, TileId::im2col_64x64},"]  # fmt: skip
    assert "tuned_num_sms = 132;" in path.read_text()
    assert [p.name for p in tmp_path.iterdir()] == ["tuned.h"]
    assert max(map(len, path.read_text().splitlines())) <= 120


def test_the_table_of_the_tree_is_as_it_was_written():
    """Nobody has edited it by hand."""
    text = tune.TABLE.read_text()
    entry = re.compile(r"\{(\d+), (\d+), (\d+), (\d+), (\d+), (\d+), (true|false), TileId::(\w+)\},")
    found = {Fprop(*map(int, e[:6]), e[6] == "true"): e[7].replace("_", "-") for e in entry.findall(text)}
    header = " ".join(line.removeprefix("// ") for line in text.split("#pragma")[0].splitlines())
    num_sms = int(re.search(r"tuned_num_sms = (\d+);", text)[1])
    assert text == tuning.table_text(found, num_sms, header.partition(" By: ")[2].removesuffix("."))


# ---- predictions ----------------------------------------------------------------------------------------------------


def test_share_of_the_peak():
    assert share(132 * 2048, 1, 2) == 1
    assert share(132 * 2048, 4, 4) == 0.5


def test_the_ladder_quotes_predictions(sim):
    """docs/gpu-ladder.md has the figures of its results file, each marked as an estimate; they are today's."""
    lines = (ROOT / "docs" / "gpu-ladder.md").read_text().splitlines()
    quoted = [re.findall(r"\| est\. ([\d.]+%) ", line) for line in lines]
    rows = json.loads(predict.RESULTS.read_text())["rows"]
    today = [predict.ladder(sim.cuda, [1, 8, 64], "fprop", dtype) for dtype in ("bf16", "e4m3")]
    masks = predict.draw_undone_masks([1, 8, 64])
    assert rows == [*today[0], *today[1], *masks]
    before = list(predict.STEPS).index("im2col tiles pool")  # came e4m3
    expected = [*today[0][:before], today[1][before], *today[0][before:], today[1][-1]]
    assert [figures for figures in quoted if figures] == [[f"{v:.1%}" for v in step["share"]] for step in expected]
    assert not any(re.search(r"%", line) for line, figures in zip(lines, quoted, strict=True) if not figures)
    milliseconds = [figures for line in lines if (figures := re.findall(r"\| est\. ([\d.]+ ms) ", line))]
    assert milliseconds == [
        [f"{sum(row[way] for row in step['rows']) / Ceilings().memory * 1e3:.3f} ms" for step in masks]
        for way in ("scatter", "dgrad")
    ]


@pytest.mark.parametrize("dtype", ["bf16", "tf32", "e4m3"])
def test_no_prediction_beats_the_peak(sim, dtype):
    for layer in predict.layers("fprop", 1024, dtype):
        assert 0.4 < share(layer.multiply_adds, predict.least(sim.cuda, layer)[1], layer.bytes) < 1


def test_predictions(sim, capsys, tmp_path):
    out = tmp_path / "p.json"
    predict.main(["--batches", "1", "64", "--passes", "fprop", "dgrad", "--dtypes", "bf16", "--out", str(out)])
    shown = capsys.readouterr().out
    assert "fprop, bf16, est.: share of an H200's peak, batch 64" in " ".join(shown.split())
    assert shown.count("channels split in clusters") == 2
    tiles = {tile for step in predict.STEPS.values() for tile in step}
    assert tiles == set(sim.cuda.conv_tiles()) - {"auto", "large", "tall", "small"}
    rows = [row["share"] for row in json.loads(out.read_text())["rows"] if row["which"] == "fprop"]
    *steps, overbooked, fitting, overlapped, apart = [share for share, _ in rows]
    assert steps == sorted(steps)
    assert 0 < steps[0] < overbooked < fitting <= steps[-1] < overlapped <= apart < 1
    assert rows[-2][1] < rows[-1][1] < 1  # where blocks have many tiles


@pytest.mark.parametrize(
    ("tile", "layer", "expected"),
    [
        ("halo-64x224-stationary", (64, 64, 224, 224, 2), (2 * 8 * 28, 1)),
        ("halo-128x224-weights2", (64, 200, 29, 9, 1), (2 * 2, 2)),
        ("im2col-128x192-pixels2", (64, 512, 14, 14, 3), (4 * 2, 2)),
        ("halo-128x128-split4", (512, 512, 28, 28, 1), (2 * 4 * 4, 4)),
    ],
)
def test_how_many_tiles_a_layer_has(tile, layer, expected):
    cin, cout, h, w, n = layer
    assert tiles_of(tile, Fprop(2, cin, cout, h, w, n, False)) == expected


def test_clusters_that_do_not_fit_take_a_round_of_their_own():
    """512 channels at 28 x 28, one image: 32 tiles, which four blocks share, each."""
    layer = Fprop(2, 512, 512, 28, 28, 1, False)
    chosen = SimpleNamespace(tile="halo-128x128-split4", clocks_in_step=5.0)
    cuda = SimpleNamespace(conv_choices=lambda *problem: [chosen])
    for fit, rounds in ((32, 1), (31, 2), (15, 3)):
        assert predict.overbooked(cuda, layer, (66, fit, 15)) == 5 * rounds
