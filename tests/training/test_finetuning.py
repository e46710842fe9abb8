"""Fine-tuning: what a run takes over from the network that it starts from, and a loss that rises."""

import argparse
import math

import pytest

from tests.training.test_trainer import _config
from vggfast import VGG, Preprocessing
from vggfast.cli.recipe import order
from vggfast.cli.train import add_arguments
from vggfast.runs.log import read_csv
from vggfast.tasks import build_trainer
from vggfast.training.presets import PRESETS
from vggfast.weights import load_model, save_model


@pytest.fixture
def donor(tmp_path):
    """Makes the file of a small network."""

    def make(head="none", preprocessing=None, config="A", extra=None, **arguments):
        model = VGG(config, **{"num_classes": 7, "width": 0.1, "hidden": 24, "head": head, **arguments})
        model.preprocessing = preprocessing or Preprocessing.caffe()
        path = tmp_path / f"{config}.safetensors"
        save_model(model, path, extra)
        return path

    return make


def _order(*arguments):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return order(parser.parse_args([*map(str, arguments)]))


DATA = ("--data", "imagefolder:photos")


@pytest.mark.parametrize("start", [(), ("--preset", "finetune"), ("--init-layers", "features"), ("--config", "A")])
def test_convolutions_alone_get_small_fc_layers(donor, start):
    asked = _order(*DATA, "--init-from", donor(batch_norm=True), *start)
    expected = {**PRESETS["finetune"], "config": "A", "batch_norm": True, "width": 0.1, "preprocessing": "caffe",
                "init_layers": "features", "crop": 224, "scale_min": 256, "scale_max": 256}  # fmt: skip
    assert {name: getattr(asked.config, name) for name in expected} == expected
    assert asked.note.startswith(f"note: features of {asked.config.init_from}, its FC layers alone are trained")


@pytest.mark.parametrize(
    ("preprocessing", "name"),
    [(Preprocessing.torchvision(), "torchvision"), (Preprocessing((1.0, 2.0, 3.0)), "measured")],
)
def test_of_a_whole_network_all_but_the_last_layer_is_taken(donor, preprocessing, name):
    path = donor("linear", preprocessing, "C", {"scales": [60, 70, 80]}, pool_size=2)
    config = _order(*DATA, "--init-from", path, "--epochs", 3).config
    found = (config.config, config.init_layers, config.hidden, config.crop, config.scale_min, config.scale_max)
    assert found == ("C", "body", 24, 64, 70, 70)
    assert (config.preprocessing, config.epochs) == (name, 3)


def test_all_layers_are_trained_at_a_lower_rate(donor):
    asked = _order(*DATA, "--init-from", donor(), "--train-layers", "all")
    assert asked.config.lr < PRESETS["finetune"]["lr"]
    assert "all layers are trained" in asked.note
    assert _order(*DATA, "--init-from", donor(), "--train-layers", "all", "--lr", 0.5).config.lr == 0.5


@pytest.mark.parametrize(
    "other",
    [
        ("--preset", "none"), ("--config", "D"), ("--init-layers", "ends"), ("--init-layers", "all"),
        ("--data", "digits"), ("--predict", "box", "--init-layers", "features"),
    ],
)  # fmt: skip
def test_what_is_no_fine_tuning(donor, other):
    config = _order(*DATA, "--init-from", donor(), *other).config
    assert config.optimiser == "sgd"
    assert config.train_layers == "all"


def test_it_asks_for_a_network():
    with pytest.raises(ValueError, match="the preset finetune starts from a trained network: give --init-from FILE"):
        _order(*DATA, "--preset", "finetune")
    with pytest.raises(FileNotFoundError, match="none"):
        _order(*DATA, "--init-from", "none")


def test_a_run_of_it_trains_the_last_layers(donor, photos, tmp_path):
    path = donor(pool_size=1)
    config = _order("--data", f"imagefolder:{photos}", "--init-from", path, "--workers", 0, "--epochs", 2).config
    assert build_trainer(config, tmp_path / "run").run()
    trained, extra = load_model(tmp_path / "run" / "model.safetensors")
    start = load_model(path)[0].features.state_dict()
    assert all((trained.features.state_dict()[name] == tensor).all() for name, tensor in start.items())
    assert trained.preprocessing == Preprocessing.caffe()
    assert len(extra["classes"]) == len(trained.classifier[6].bias)


@pytest.mark.parametrize(("factor", "log_every"), [(50, 2), (50, 1000), (2.5, 2)])
def test_a_rising_loss_ends_the_run_with_advice(photos, tmp_path, factor, log_every):
    """In the rows of steps.csv, or else at the end of an epoch."""

    def made(resume):
        trainer = build_trainer(_config(photos, log_every=log_every, lr=1e-6), tmp_path, resume=resume)
        train_step = trainer.train_step.__class__.__call__

        def stepped(self, batch, step, *rest, **options):
            sums = train_step(self, batch, step, *rest, **options)
            sums.loss *= factor if step >= 6 else 1
            return sums

        trainer.train_step.__class__ = type("Rising", (type(trainer.train_step),), {"__call__": stepped})
        return trainer

    if factor < 5:
        assert made(False).run()
        return
    chance = math.log(2)
    for resume in (False, True):  # a run that is resumed ends again
        with pytest.raises(
            FloatingPointError, match=r"the training loss is .*, more than 5 times the .* --lr than"
        ) as e:
            made(resume).run()
        assert float(str(e.value).split()[4]) > 5 * chance
    assert len(read_csv(tmp_path / "metrics.csv")) >= 1
    assert "the run diverges" in (tmp_path / "log.jsonl").read_text()
