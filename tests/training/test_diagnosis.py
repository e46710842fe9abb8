"""The diagnosis of initialisations: what it records, where it says a run broke, how it goes on."""

import json
import math
from pathlib import Path

import pytest
import torch
from PIL import Image

from vggfast.models import VGG
from vggfast.report.initialisation import layer_figure, step_figure
from vggfast.runs.config import TrainConfig
from vggfast.training import diagnosis
from vggfast.training.build import build_model
from vggfast.training.diagnosis import diagnose, named_layers, predict_outputs, verdicts

LAYERS = ["conv1_1", "conv2_1", "conv3_1", "conv3_2", "conv4_1", "conv4_2", "conv5_1", "conv5_2", "fc1", "fc2", "fc3"]


def _config(photos, **changes):
    small = {"crop": 32, "scale_min": 36, "scale_max": 40, "width": 0.1, "hidden": 16, "batch_size": 4}
    return TrainConfig(data=f"imagefolder:{photos}", **{**small, **changes})


def test_layers_have_the_papers_order():
    assert list(named_layers(VGG("A", width=0.05, hidden=4, init=None))) == LAYERS
    names = list(named_layers(VGG("E", width=0.05, hidden=4, init=None, batch_norm=True)))
    assert len(names) == 19
    assert names[:3] == ["conv1_1", "conv1_2", "conv2_1"]
    assert names[-4:] == ["conv5_4", "fc1", "fc2", "fc3"]


def _assert_figures(result, folder):
    for draw in (step_figure, layer_figure):
        draw(result, folder / "figure.png")
        with Image.open(folder / "figure.png") as image:
            assert min(image.size) > 400


def test_what_is_recorded(photos, tmp_path):
    result = diagnose(_config(photos), ["glorot", "torchvision"], tmp_path, steps=3)
    assert list(result["runs"]) == ["glorot", "torchvision"]
    assert result["guess"] == pytest.approx(math.log(result["classes"]), rel=1e-4)
    for run in result["runs"].values():
        assert len(run["loss"]) == len(run["logits"]) == 3
        assert list(run["gradients"]) == list(run["outputs"]) == list(run["predicted"]) == LAYERS
        assert all(len(norms) == 3 and min(norms) > 0 for norms in run["gradients"].values())
    assert json.loads((tmp_path / "init.json").read_text()) == result
    _assert_figures(result, tmp_path)


def test_figures_are_those_of_a_plain_step(photos, tmp_path):
    """The first iteration again by hand: the loss, a layer's outputs, and the norm of its gradient."""
    config = _config(photos, dropout=0.0, init="torchvision")
    run = diagnose(config, ["torchvision"], tmp_path, steps=1)["runs"]["torchvision"]
    classes, batches = diagnosis._open_batches(config)
    batch = next(diagnosis._endless(batches))
    images, labels = batch.images, batch.labels
    model = build_model(config, classes)
    logits = model(images)
    torch.nn.functional.cross_entropy(logits, labels).backward()
    assert run["loss"][0] == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-4)
    assert run["logits"][0] == pytest.approx(logits.std().item(), rel=1e-4)
    assert run["outputs"]["fc3"] == pytest.approx(logits.square().mean().sqrt().item(), rel=1e-4)
    first = model.features[0]
    assert run["outputs"]["conv1_1"] == pytest.approx(first(images).square().mean().sqrt().item(), rel=1e-4)
    assert run["gradients"]["conv1_1"][0] == pytest.approx(first.weight.grad.norm().item(), rel=1e-4)


def test_every_initialisation_sees_the_same_batches(photos, tmp_path, monkeypatch):
    seen, endless = [], diagnosis._endless

    def watched(batches):
        for batch in endless(batches):
            seen.append(batch.images.clone())
            yield batch

    monkeypatch.setattr(diagnosis, "_endless", watched)
    diagnose(_config(photos), ["glorot", "paper"], tmp_path, steps=2)
    assert torch.equal(seen[0], seen[2])
    assert torch.equal(seen[1], seen[3])
    assert not torch.equal(seen[0], seen[1])


def test_prediction_of_a_plain_chain():
    """Without pools, dropout and zeros around: FC layers alone, wide enough for the law of large numbers."""
    torch.manual_seed(0)
    model = VGG("A", num_classes=400, dropout=0.0, width=0.05, hidden=800, init="paper")
    linears = [module for module in model.classifier if isinstance(module, torch.nn.Linear)]
    x = torch.randn(50, linears[0].in_features)
    found = [(y := linears[0](x)).square().mean().sqrt()]
    found += [(y := linear(y.relu())).square().mean().sqrt() for linear in linears[1:]]
    # The prediction has a ReLU before fc1; here its input is normal, so twice the mean square goes in.
    gains = predict_outputs(model, 1.0)
    for i, name in enumerate(("fc1", "fc2", "fc3")):
        expected = gains[name] / gains["conv5_2"] * math.sqrt(2)
        assert found[i].item() == pytest.approx(expected, rel=0.1), name


def test_it_tells_learning_from_guessing(photos, tmp_path):
    config = _config(photos, lr=0.03, dropout=0.0, colour_shift=0.0)
    result = diagnose(config, ["glorot", "paper"], tmp_path, steps=60)
    assert result["runs"]["glorot"]["status"] == "trains"
    assert result["runs"]["paper"]["status"] == "still at ln K"
    columns, rows = verdicts(result)
    assert columns == ("init", "logits at start", "loss at start", "loss at end", "status")
    assert rows[1][0] == "paper"
    assert float(rows[1][3]) == pytest.approx(result["guess"], rel=0.02)


def test_a_run_that_breaks_stops_there_and_says_where(photos, tmp_path):
    result = diagnose(_config(photos, lr=1e30), ["glorot", "torchvision"], tmp_path, steps=20)
    for run in result["runs"].values():
        assert 1 <= run["broken"]["step"] < 20
        assert len(run["loss"]) == run["broken"]["step"] + 1
        assert run["loss"][-1] in ("nan", "inf", "-inf")
        assert run["status"].startswith(f"diverged at step {run['broken']['step']}: ")
        assert run["broken"]["where"].split()[-1] in LAYERS
    json.loads((tmp_path / "init.json").read_text(), parse_constant=pytest.fail)  # no NaN that JSON has not
    _assert_figures(result, tmp_path)


@pytest.mark.parametrize("name", ["conv3_1", "fc2"])
def test_the_first_layer_that_breaks_is_named(name):
    model = VGG("A", num_classes=5, width=0.1, hidden=8, pool_size=1, dropout=0.0)
    layers = named_layers(model)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        layers[name].weight[0] = 3e38
        layers[name].bias[:] = 3e38
    assert diagnosis._where(model, layers, images, math.nan, {}) == f"outputs of {name}"
    with torch.no_grad():
        layers[name].weight[0] = math.nan
    assert diagnosis._where(model, layers, images, math.nan, {}) == f"weights of {name}"
    norms = dict.fromkeys(layers, 1.0) | {name: math.inf, "conv1_1": math.nan}
    assert diagnosis._where(model, layers, images, 1.0, norms) == f"gradient of {name}"


def test_an_interrupted_call_goes_on(photos, tmp_path, monkeypatch):
    whole = diagnose(_config(photos), ["glorot", "paper"], tmp_path / "whole", steps=2)
    run = diagnosis._run

    def interrupted(config, *rest):
        if config.init == "paper":
            raise KeyboardInterrupt
        return run(config, *rest)

    monkeypatch.setattr(diagnosis, "_run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        diagnose(_config(photos), ["glorot", "paper"], tmp_path / "parts", steps=2)
    assert list(json.loads((tmp_path / "parts" / "init.json").read_text())["runs"]) == ["glorot"]
    started = []
    monkeypatch.setattr(diagnosis, "_run", lambda config, *rest: started.append(config.init) or run(config, *rest))
    assert diagnose(_config(photos), ["glorot", "paper"], tmp_path / "parts", steps=2) == whole
    assert started == ["paper"]


def test_a_folder_of_another_configuration_is_kept(photos, tmp_path):
    diagnose(_config(photos), ["glorot"], tmp_path, steps=1)
    with pytest.raises(FileExistsError, match=r"init\.json is of other runs \(lr is 0\.01 there and 0\.02 here\)"):
        diagnose(_config(photos, lr=0.02), ["glorot"], tmp_path, steps=1)
    with pytest.raises(FileExistsError, match=r"steps is 1 there and 2 here"):
        diagnose(_config(photos), ["paper"], tmp_path, steps=2)
    (tmp_path / "init.json").write_text("{")
    with pytest.raises(ValueError, match=r"init\.json is not a file that --diagnose-init wrote"):
        diagnose(_config(photos), ["glorot"], tmp_path, steps=1)


@pytest.mark.parametrize(
    ("inits", "steps", "message"),
    [
        (["glorot"], 0, "steps must be at least 1, got 0"),
        ([], 1, "inits must have at least one name of an initialisation, got none"),
        (["xavier"], 1, "init must be one of glorot, .*, got 'xavier'"),
    ],
)
def test_arguments_that_cannot_be(photos, tmp_path, inits, steps, message):
    with pytest.raises(ValueError, match=message):
        diagnose(_config(photos), inits, tmp_path / "out", steps=steps)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "name", ["224-mean", "224-std", "224x10-mean", "224x10-std", "64-mean", "digits-mean", "digits-std"]
)
def test_the_page_quotes_what_was_measured(name):
    root = Path(__file__).resolve().parents[2]
    page = (root / "docs" / "initialisation.md").read_text()
    columns, rows = verdicts(json.loads((root / "benchmarks" / "results" / f"init-{name}.json").read_text()))
    for row in (columns, *rows):
        assert f"| {' | '.join(row)} |" in page
