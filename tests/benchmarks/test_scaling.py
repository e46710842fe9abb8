"""The model of a data-parallel step: benchmarks/data_parallel.py, step_times.py, scaling.py, and the page it fills."""

import json
import math
import statistics
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist

import vggfast

pytest.importorskip("rich")
import data_parallel as model
import scaling
import step_times
from data_parallel import NDR, NOTHING, NVLINK4, PCIE, Cluster, Step

# Table 1 of the paper as shared by every published set of its weights.
PARAMETERS = {"A": 132_863_336, "A-LRN": 132_863_336, "B": 133_047_848, "C": 133_638_952, "D": 138_357_544,
              "E": 143_667_240}  # fmt: skip
STEP = Step(1.0, (0.25, 0.5, 0.25), ((6 << 20, 10), (7 << 20, 10), (1 << 20, 10)), update=0.125)
SLOW = Cluster(model.Link("slow", 1e8, 1e-3), achieved=1.0)
FREE = Cluster(NOTHING, NOTHING)


def sizes_of(config):
    return [4 * value for tensors in step_times.gradients(config) for value in tensors]


# ---- bytes and buckets ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("config", "count"), PARAMETERS.items())
def test_bytes_of_a_step_are_those_of_the_papers_parameters(config, count):
    assert sum(sizes_of(config)) == 4 * count
    with torch.device("meta"):
        tensors = [p.numel() for p in vggfast.models.VGG(config).parameters()]
    assert [value for layer in model.layers_of(config) for value in layer.tensors] == tensors


def test_the_share_of_the_fc_layers_in_d():
    assert sum(sum(layer.tensors) for layer in model.layers_of("D")[-3:]) == 123_642_856
    assert model.layers_of("D")[-3].tensors[0] == 102_760_448
    assert sum(layer.multiply_adds for layer in model.layers_of("D")) == 15_470_264_320


def test_gradients_are_ready_last_layer_first():
    """Whether a weight comes before its bias depends on the op: the convolutions' do."""
    net = vggfast.models.VGG("D", width=1 / 32, hidden=8)
    ready = []
    for i, parameter in enumerate(net.parameters()):
        parameter.register_post_accumulate_grad_hook(lambda _, i=i: ready.append(i))
    net(torch.zeros(1, 3, 32, 32)).sum().backward()
    layers = len(model.layers_of("D"))
    assert [i // 2 for i in ready] == [layer for layer in reversed(range(layers)) for _ in range(2)]
    assert ready[6:] == [i for layer in reversed(range(layers - 3)) for i in (2 * layer, 2 * layer + 1)]


@pytest.mark.parametrize("config", PARAMETERS)
def test_buckets_are_torchs_and_hold_every_gradient_once(config):
    sizes = sizes_of(config)
    made = model.buckets(sizes)
    tensors = [torch.empty(size // 4, device="meta") for size in sizes]
    limits = [dist._DEFAULT_FIRST_BUCKET_BYTES, 25 << 20]
    assert made == dist._compute_bucket_assignment_by_size(tensors, limits, [False] * len(sizes))[0]
    assert [i for bucket in made for i in bucket] == list(range(len(sizes)))


def test_a_gradient_above_the_cap_closes_the_bucket_that_it_falls_into():
    assert model.buckets([10, 5, 100, 3, 30, 4], first=10, cap=30) == [[0], [1, 2], [3, 4], [5]]
    assert model.buckets([10, 30], first=10, cap=30) == [[0], [1]]
    assert [sum(sizes_of("D")[i] for i in bucket) for bucket in model.buckets(sizes_of("D"))] == [
        16_384_000, 67_112_864, 411_058_176, 28_332_032, 28_320_768, 2_222_336,
    ]  # fmt: skip


# ---- an all-reduce --------------------------------------------------------------------------------------------------


def test_a_ring_takes_its_closed_form():
    assert SLOW.all_reduce(8e8, 4) == pytest.approx(2 * 3 / 4 * 8 + 6e-3)
    assert replace(SLOW, achieved=0.5).all_reduce(8e8, 4) == pytest.approx(2 * 3 / 4 * 16 + 6e-3)
    assert FREE.all_reduce(8e8, 512) == 0


def test_several_nodes_send_each_gpus_share_between_them():
    both = Cluster(NVLINK4, NDR, achieved=1.0)
    inside = 2 * 7 / 8 * 1e9 / 450e9 + 14 * 3e-6
    assert both.all_reduce(1e9, 8) == pytest.approx(inside)
    assert both.all_reduce(1e9, 32) == pytest.approx(inside + 2 * 3 / 4 * 1e9 / 8 / 50e9 + 6 * 5e-6)
    tree = replace(both, way="tree").all_reduce(1e9, 512)
    assert both.all_reduce(1e9, 512) - tree == pytest.approx((126 - 12) * 5e-6)
    with pytest.raises(ValueError, match="gpus must be a multiple of per_node, 8, or less, got 12"):
        both.all_reduce(1e9, 12)


def test_one_root_sends_and_takes_for_every_other_gpu():
    assert replace(SLOW, way="root").all_reduce(1e8, 4) == pytest.approx(6 * (1 + 1e-3))


# ---- a step ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gpus", [1, 4, 8, 64, 512])
def test_infinite_rates_give_n_times_one_gpu(gpus):
    for step in (STEP, step_times.h200(64), step_times.cpu(32)):
        assert gpus * model.efficiency(step, FREE, gpus) == gpus


@pytest.mark.parametrize("gpus", [2, 4, 8])
def test_without_overlap_a_step_is_its_parts_added(gpus):
    total = sum(map(sum, STEP.gradients))
    made = model.buckets([4 * value for tensors in STEP.gradients for value in tensors])
    reducing = 2 * (gpus - 1) / gpus * 4 * total / 1e8 + len(made) * 2 * (gpus - 1) * 1e-3
    found = model.timeline(STEP, SLOW, gpus, overlap=False)
    assert found.seconds == pytest.approx(1.0 + 1.0 + 0.125 + reducing)
    assert found.exposed == pytest.approx(reducing)
    assert found.hidden == pytest.approx(0.0)


def test_overlap_hides_what_the_backward_pass_has_left():
    ample = model.timeline(STEP, Cluster(model.Link("fast", 1e10, 0.0), achieved=1.0), 2)
    assert ample.exposed == pytest.approx(((1 << 20) + 20) * 4 / 1e10)  # the last bucket has nothing to hide behind
    assert [size for size, *_ in ample.buckets] == [4 * (6 << 20), 4 * ((7 << 20) + 10), 4 * ((1 << 20) + 20)]
    slow = model.timeline(STEP, Cluster(model.Link("slower", 1e7, 1e-3), achieved=1.0), 2)
    assert slow.exposed == pytest.approx(slow.reducing - 0.75)  # busy from the first gradient, at 0.25, on
    for found in (ample, slow):
        free = 0.0
        for _, ready, begin, end in found.buckets:
            assert begin == max(ready, free)
            free = end


def test_one_gpu_sends_nothing():
    assert model.timeline(STEP, SLOW, 1).seconds == STEP.alone


def test_bf16_halves_the_bytes_and_leaves_the_buckets_as_they_are():
    wide, narrow = (model.timeline(STEP, SLOW, 4, width=width) for width in (4, 2))
    assert [size for size, *_ in wide.buckets] == [2 * size for size, *_ in narrow.buckets]
    assert narrow.seconds < wide.seconds


def test_fc_gradients_last_move_the_same_bytes_later():
    step = step_times.h200(64)
    late = step.fc_last()
    assert late.alone == pytest.approx(step.alone)
    assert sorted(late.gradients) == sorted([*step.gradients, (), (), ()])
    cluster = Cluster(NVLINK4, NDR)
    assert model.efficiency(late, cluster, 64) < model.efficiency(step, cluster, 64)


# ---- step times -----------------------------------------------------------------------------------------------------


def test_the_papers_arithmetic():
    two, three = (step_times.paper(weeks) for weeks in (2, 3))
    assert 4 * two.alone / 3.75 * 370_000 == pytest.approx(2 * 7 * 86400)
    assert three.alone == pytest.approx(1.5 * two.alone)
    assert pytest.approx(74, rel=0.01) == 370_000 * 256 / 1.28e6


def test_steps_come_from_the_result_files():
    rows = json.loads((step_times.RESULTS / "train-cpu-zen.json").read_text())["rows"]
    of_d = next(row for row in rows if row["engine"] == "vggfast" and row["case"]["network"] == "D")
    assert of_d["case"]["batch"] == 8
    assert step_times.cpu(8).alone == pytest.approx(statistics.median(of_d["seconds"]))
    rows = json.loads((step_times.RESULTS / "roofline-h200.json").read_text())["rows"]
    first = [row["estimate_ms"] * 1e-3 for row in rows if row["layer"] == "3→64 224² wgrad"]
    assert step_times.h200(64).backward[-1] == pytest.approx(sum(first))
    assert step_times.h200(32).alone > step_times.h200(64).alone / 2


def test_the_share_of_the_peak_goes_through_the_files_batches():
    shares = [step_times.share(batch) for batch in (1, 2, 8, 32, 64, 128)]
    assert shares == sorted(shares)
    assert shares[-1] == shares[-2]
    steps = json.loads((step_times.RESULTS / "predicted-h200.json").read_text())["rows"]
    (all_tiles,) = [row for row in steps if row.get("dtype") == "bf16" and row["step"] == "im2col tiles pool"]
    for batch, share in zip(all_tiles["batches"], all_tiles["share"], strict=True):
        assert math.isclose(step_times.share(batch), share)


def test_a_step_by_multiply_adds_adds_up():
    step = step_times.by_multiply_adds("D", 3.0)
    assert step.alone == pytest.approx(3.0)
    assert sum(step.backward) / step.forward == pytest.approx(2.0, rel=0.01)  # but for the first layer's input


# ---- the page -------------------------------------------------------------------------------------------------------


def test_the_pages_tables_are_what_the_command_prints():
    rows = scaling.kept(scaling.RESULTS)
    assert rows
    text = scaling.PAGE.read_text()
    assert scaling.on_page(text, scaling.tables(rows)) == text, "python benchmarks/scaling.py --page docs/scaling.md"


def test_the_page_names_files_that_are_there():
    text = scaling.PAGE.read_text()
    for path in (scaling.RESULTS, scaling.PLOT):
        assert path.exists()
        assert path.name in text


def test_the_buckets_measured_are_the_models():
    (said,) = (row for row in scaling.kept(scaling.RESULTS) if row["what"] == "buckets")
    sizes = sizes_of(said["config"])
    assert said["bucket_sizes"] == [sum(sizes)]
    assert said["rebuilt_bucket_sizes"] == [sum(sizes[i] for i in bucket) for bucket in model.buckets(sizes)]


def test_a_page_without_a_mark_is_refused():
    with pytest.raises(ValueError, match="no <!-- bytes -->"):
        scaling.on_page("<!-- weak -->\n<!-- end -->", {"bytes": scaling.bytes_of_a_step()})


def test_the_command_writes_what_it_prints_and_keeps_what_was_measured(tmp_path, capsys):
    out, plot = tmp_path / "scaling.json", tmp_path / "scaling.png"
    kept = scaling.kept(scaling.RESULTS)
    out.write_text(json.dumps({"rows": [*kept, {"table": "old", "estimate": True}]}))
    scaling.main(["--json", str(out), "--png", str(plot)])
    rows = json.loads(out.read_text())["rows"]
    assert [row for row in rows if row.get("measured")] == kept
    assert {row["table"] for row in rows if row.get("estimate")} == {
        "bytes", "when", "weak", "strong", "machines", "helps", "paper",
    }  # fmt: skip
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert "138,357,544" in capsys.readouterr().out


def test_links_have_their_nominal_rates():
    assert NVLINK4.rate == 450e9
    assert NDR.rate == 400e9 / 8
    assert [round(PCIE[n].rate / 1e9, 2) for n in (3, 4, 5)] == [15.75, 31.5, 63.0]
    assert model.ethernet(100, 8).rate == 100e9 / 8 / 8
