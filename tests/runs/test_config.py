"""Recipes and the configurations of runs: read as they are meant, or refused with the file's name."""

import pytest

from vggfast.runs.config import TrainConfig, read_values


@pytest.fixture
def file(tmp_path):
    return tmp_path / "mine.yaml"


@pytest.mark.parametrize(
    ("text", "values"),
    [
        (b"lr: 1e-3\nbatch_size: 64\n", {"lr": 0.001, "batch_size": 64}),
        (b"lr: .5\r\nwidth: 1.\r\nflip: off\r\n", {"lr": 0.5, "width": 1.0, "flip": False}),
        (b"\xef\xbb\xbflr: 1 # high\n", {"lr": 1.0}),
        ("data: 'imagefolder:żółw'".encode(), {"data": "imagefolder:żółw"}),
        ("lr: 2".encode("utf-16"), {"lr": 2.0}),
        (b'"lr": 1\npreset: digits', {"lr": 1.0, "preset": "digits"}),
    ],
)
def test_recipes(file, text, values):
    file.write_bytes(text)
    assert read_values(file) == values


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"lr: 1\nseed: 2\nlr: 2", "'lr' stands there twice"),
        (b"epochs: 010", "epochs must be a whole number, got '010'"),
        (b"epochs: 1:30", "epochs must be a whole number, got '1:30'"),
        (b"epochs: 1.0", "epochs must be a whole number, got 1.0"),
        (b"epochs: 1_000", "epochs must be a whole number, got '1_000'"),
        (b"lr: .nan", "lr must be a number, got '.nan'"),
        (b"lr: 1e999", "lr must be at least 0, got inf"),
        (b"width: 1e999", "width must be finite, got inf"),
        (b"lr: " + b"9" * 400, "lr must be a number, got 999"),
        (b"seed: " + b"9" * 400, "seed must be at most 9223372036854775807, got 999"),
        (b"seed: " + b"9" * 5000, "is not a YAML file: Exceeds the limit"),
        (b"flip: 1", "flip must be true or false, got 1"),
        (b"data: 12", "data must be a text, got 12"),
        (b"data: null", "data must be a text, got None"),
        (b"optimiser: [sgd]", r"optimiser must be a text, got \['sgd'\]"),
        (b"optimiser: lion", "optimiser must be one of sgd, adam, adamw, got 'lion'"),
        (b"learning_rate: 1", "must have names among accumulate, .*, got learning_rate"),
        (b"1: 2", "must have names among accumulate, .*, got 1"),
        (b"a: &a [x, x]\nb: &b [*a, *a]\nlr: [*b, *b]", r"has no aliases and no tags, got \*a"),
        (b"lr: !!python/object/apply:os.system ['true']", "no tags, got !tag:yaml.org,2002:python/object/apply"),
        (b"seed: !!int ''", "no tags, got !tag:yaml.org,2002:int"),
        (b"<<: {lr: 1}", "is not a YAML file: "),
        (b"lr:\t1", "is not a YAML file: .* cannot start any token"),
        (b"- lr", "must hold lines such as 'lr: 0.01'"),
        (b"", "must hold lines such as 'lr: 0.01'"),
        (b"lr: 1\n---\nlr: 2", "is not a YAML file: expected a single document"),
        (b"[lr]: 1", "is not a YAML file: "),
        (b"\xff", "is not a YAML file: "),
        (b"lr: " + b"[" * 2000, "is not a YAML file: maximum recursion depth"),
    ],
)
def test_refused_recipes(file, text, message):
    file.write_bytes(text)
    with pytest.raises((ValueError, TypeError), match=message) as error:
        TrainConfig.read(file)
    assert str(error.value).startswith(str(file))
    assert len(str(error.value)) < 1500


def test_a_value_that_does_not_fit_another_is_of_the_file(file):
    file.write_text("crop: 64\nscale_min: 32\n")
    with pytest.raises(ValueError, match=r"mine\.yaml: crop, scale_min and scale_max must be"):
        TrainConfig.read(file)


def test_what_is_written_is_read(file):
    config = TrainConfig(data="imagefolder:caf\udce9: # 1e5", lr=1e-5, weight_decay=3e-20, ema=0.999, seed=2**62)
    config.write(file)
    assert TrainConfig.read(file) == config
