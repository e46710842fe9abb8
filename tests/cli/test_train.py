"""What `vggfast train` makes of its options: recipes, presets, another replication's flags, resuming."""

import argparse
import dataclasses
from pathlib import Path

import pytest

from vggfast.cli import main, recipe, train
from vggfast.cli.errors import UsageError
from vggfast.runs.config import TrainConfig
from vggfast.training.presets import PRESETS


def _parsed(*arguments):
    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    return parser.parse_args(list(map(str, arguments)))


def _order(*arguments):
    return recipe.order(_parsed(*arguments))


@pytest.fixture
def yaml_file(tmp_path):
    def write(text):
        path = tmp_path / "recipe.yaml"
        path.write_text(text)
        return path

    return write


@pytest.fixture
def stored_run(tmp_path):
    """A folder with a run of some recipe."""

    def store(**values):
        out = tmp_path / "run"
        TrainConfig(**values).write(out / "config.yaml")
        return out

    return store


# ---- recipes -------------------------------------------------------------------------------------------------------


def test_nothing_given_is_the_preset_of_the_digits():
    found = _order()
    assert found.config == TrainConfig(**PRESETS["digits"])
    assert (str(found.out), found.resume, found.note) == ("runs/digits-A", False, "")


@pytest.mark.parametrize(
    ("file", "arguments", "batch_size"),
    [
        ("", ["--preset", "none"], 256),
        ("", ["--preset", "tiny-imagenet"], 128),
        ("batch_size: 32", ["--preset", "tiny-imagenet"], 32),
        ("batch_size: 32", ["--preset", "tiny-imagenet", "--batch-size", "16"], 16),
        ("batch_size: 32", [], 32),
        ("preset: tiny-imagenet", [], 128),
        ("preset: tiny-imagenet\nbatch_size: 32", [], 32),
        ("preset: tiny-imagenet", ["--preset", "paper-A"], 256),
        ("preset: none", [], 256),
        ("data: tiny-imagenet:there", [], 128),
        ("data: tiny-imagenet:there", ["--data", "imagefolder:here"], 256),
    ],
)
def test_each_source_goes_over_the_one_before(yaml_file, file, arguments, batch_size):
    recipes = ["--recipe", yaml_file(file)] if file else []
    assert _order(*recipes, *arguments).config.batch_size == batch_size


@pytest.mark.parametrize("name", [name for name in PRESETS if name != "finetune"])  # which looks into a file
def test_every_preset_resolves(name):
    start = ["--init-from", "net.safetensors"] if PRESETS[name].get("init_layers") else []
    config = dataclasses.asdict(_order("--preset", name, *start).config)
    defaults = dataclasses.asdict(TrainConfig()) | ({"init_from": "net.safetensors"} if start else {})
    assert config == {**defaults, **PRESETS[name]}


def test_a_stored_configuration_is_a_recipe(tmp_path):
    config = _order("--data", "tiny-imagenet:there", "--no-flip", "--lr", "1e-3", "--optimiser", "adamw").config
    config.write(tmp_path / "config.yaml")
    assert _order("--recipe", tmp_path / "config.yaml").config == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr: [", r"recipe\.yaml is not a YAML file: while parsing"),
        ("- lr", r"recipe\.yaml must hold lines such as 'lr: 0\.01', and holds no values"),
        ("learning_rate: 1", r"recipe\.yaml must have names among .*batch_size.*, got learning_rate"),
        ("lr: fast", r"lr must be a number, got 'fast'"),
        ("flip: 1", r"flip must be true or false, got 1"),
        ("epochs: 2.5", r"epochs must be a whole number, got 2\.5"),
        ("optimiser: lion", r"optimiser must be one of sgd, adam, adamw, got 'lion'"),
        ("preset: paper-F", r"preset must be one of paper-A, .*tiny-imagenet.*, got 'paper-F'"),
        ("preset: [A]", r"preset must be one of paper-A.*, got \"\['A'\]\""),
    ],
)
def test_files_that_are_no_recipe(yaml_file, text, message):
    with pytest.raises((ValueError, TypeError), match=message):
        _order("--recipe", yaml_file(text))


def test_a_recipe_that_is_not_there():
    with pytest.raises(FileNotFoundError, match=r"nowhere\.yaml: no such file"):
        _order("--recipe", "nowhere.yaml")


@pytest.mark.parametrize(
    ("name", "scale"), [(name, 256 if name.endswith("384") else 384) for name in PRESETS if name[-3:] in ("384", "ter")]
)
def test_presets_that_go_on_from_a_net_ask_for_it(name, scale):
    said = f"{name} goes on from the net of S = {scale}: give --init-from RUN/model.safetensors"
    with pytest.raises(ValueError, match=said) as error:
        _order("--preset", name)
    assert "\n" not in str(error.value)
    assert _order("--preset", name, "--init-layers", "ends").config.init_from == ""


def test_all_layers_of_no_net():
    with pytest.raises(ValueError, match="init_layers is 'all', and init_from names no net"):
        _order("--init-layers", "all")


@pytest.mark.parametrize(
    ("arguments", "noted"),
    [
        (["--preset", "paper-D"], "the paper started D's first four convolutions"),
        (["--preset", "paper-B"], "the paper started B's first four convolutions"),
        (["--preset", "paper-D", "--init-from", "a.safetensors"], ""),
        (["--preset", "paper-A"], ""),
        (["--config", "D"], ""),
    ],
)
def test_deeper_nets_are_noted(arguments, noted):
    note = _order(*arguments).note
    assert noted in note
    assert bool(note) == bool(noted)


@pytest.mark.parametrize(
    ("arguments", "out"),
    [
        (["--data", "imagenet:DIR", "--config", "D"], "runs/imagenet-D"),
        (["--data", "imagenet:DIR", "--preset", "paper-D"], "runs/imagenet-D"),
        (["--data", "imagenet:DIR", "--preset", "paper-D-384", "-i", __file__], "runs/imagenet-D-384"),
        (["--out", "there"], "there"),
    ],
)
def test_the_runs_folder(arguments, out):
    assert str(_order(*arguments).out) == out


# ---- another replication's flags -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "values"),
    [
        ("-d 11", {"config": "A"}),
        ("-d 13", {"config": "B"}),
        ("-d 16", {"config": "D"}),
        ("-d 19", {"config": "E"}),
        ("-d 16 -c11", {"config": "C"}),
        ("-c11", {"config": "C"}),
        ("-c11 --config C", {"config": "C"}),
        ("-d 19 --config E", {"config": "E"}),
        ("-b 128", {"batch_size": 128}),
        ("-b128", {"batch_size": 128}),
        ("-e 5", {"epochs": 5}),
        ("-es 3", {"early_stop": 3}),
        ("-e 5 -es 3", {"epochs": 5, "early_stop": 3}),
        ("-es 3 -e 5", {"epochs": 5, "early_stop": 3}),
        ("-lr 1e-3", {"lr": 1e-3}),
        ("-lr=0.1", {"lr": 0.1}),
        ("-i paper", {"init": "paper"}),
        (f"-i {__file__}", {"init_from": __file__, "init_layers": "all"}),
        ("-t there", {"data": "imagefolder:there"}),
        (f"-t {Path(__file__).parent} -v there", {"data": f"imagefolder:{Path(__file__).parent}",
                                                  "val_data": "imagefolder:there"}),
        ("-t cache:there -v shards:a.tar", {"data": "cache:there", "val_data": "shards:a.tar"}),
        ("-t there --data imagefolder:there", {"data": "imagefolder:there"}),
        ("-d 16 -c11 -b 64 -e 60 -es 10 -i glorot -lr 0.01 -t a -v b",
         {"config": "C", "batch_size": 64, "epochs": 60, "early_stop": 10, "init": "glorot", "lr": 0.01,
          "data": "imagefolder:a", "val_data": "imagefolder:b"}),
    ],
)  # fmt: skip
def test_replication_flags(arguments, values):
    config = _order("--preset", "none", *arguments.split()).config
    assert dataclasses.asdict(config) == {**dataclasses.asdict(TrainConfig()), **values}


def test_a_folder_is_a_folder_whatever_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("digits", "cache:mine"):
        assert _order("-t", name, "--preset", "none").config.data == name
        Path(name).mkdir()
        assert _order("-t", name, "--preset", "none").config.data == f"imagefolder:{name}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("-d 13 -c11", r"-d must be 16 with -c11, the net of 16 layers with 1x1 convolutions, got 13"),
        ("-d 13 --config A", r"-d 13 means --config B, and --config is A: give only one of them"),
        ("-d 16 --config C", r"-d 16 means --config D, and --config is C"),
        ("-c11 --config D", r"-c11 means --config C, and --config is D"),
        ("-i paper --init glorot", r"-i paper means --init paper, and --init is glorot"),
        ("-t there --data digits", r"-t there means --data imagefolder:there, and --data is digits"),
        ("--resume auto --overwrite", r"--resume auto keeps the run that --overwrite would replace"),
        ("--resume there --overwrite", r"--resume there continues in its own folder: leave out --out and --overwrite"),
        ("--resume there --out here", r"--resume there continues in its own folder"),
        ("--diagnose-steps 5", r"--diagnose-steps is 5, and there is no --diagnose-init"),
        ("--diagnose-init --resume auto", r"--diagnose-init trains no network: leave out --resume, --overwrite and"),
        ("--diagnose-init --stop-after 2h", r"--diagnose-init trains no network"),
    ],
)
def test_contradictions_are_wrong_usage(arguments, message, capsys):
    with pytest.raises(UsageError, match=message):
        train.run(_parsed(*arguments.split()))
    assert main(["train", *arguments.split()]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_weight_file_that_is_not_there():
    with pytest.raises(ValueError, match=r"-i must be a weight file or one of glorot, .*paper, .*, got 'vgg'"):
        _order("-i", "vgg")


@pytest.mark.parametrize(
    "arguments",
    [
        "-d 12",
        "-config D",
        "--conf D",
        "-es x",
        "--preset paper-F",
        "--init-layers",
        "--lr fast",
        "--stop-after 2",
        "--stop-after 0h",
    ],
)
def test_what_argparse_refuses(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["train", *arguments.split()])
    assert stop.value.code == 2
    usage, message = capsys.readouterr().err.splitlines()
    assert usage.startswith("usage: vggfast")
    assert "error: " in message


# ---- resuming ------------------------------------------------------------------------------------------------------

_CHANGES = {"epochs": 3, "steps": 7, "workers": 5, "log_every": 9, "checkpoint_every": 11, "keep": 4, "device": "cpu"}


@pytest.mark.parametrize("auto", [False, True])
def test_a_resumed_run_keeps_its_recipe(stored_run, auto):
    out = stored_run(config="B", lr=0.5)
    where = ["--resume", "auto", "--out", out] if auto else ["--resume", out]
    changes = [text for name, value in _CHANGES.items() for text in (recipe.flag(name), value)]
    found = _order(*where, *changes)
    assert found.config == TrainConfig(config="B", lr=0.5, **_CHANGES)
    assert (found.out, found.resume) == (out, True)
    assert _order(*where, "--lr", 0.5, "--config", "B").config == TrainConfig(config="B", lr=0.5)
    for name, value, stored in (("--lr", 0.1, 0.5), ("--seed", 1, 0), ("--accumulate", 2, 1), ("-b", 8, 256)):
        long = "--batch-size" if name == "-b" else name
        with pytest.raises(ValueError, match=f"{long} is {value}, and the run in .* has {stored}: a resumed run keeps"):
            _order(*where, name, value)


def test_auto_starts_a_run_where_there_is_none(tmp_path):
    arguments = ["--resume", "auto", "--out", tmp_path / "run", "--preset", "tiny-imagenet", "--lr", 0.02]
    first = _order(*arguments)
    assert (first.out, first.resume, first.config.lr) == (tmp_path / "run", False, 0.02)
    first.config.write(tmp_path / "run" / "config.yaml")
    assert _order(*arguments) == dataclasses.replace(first, resume=True)


def test_auto_looks_into_the_default_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = _order("--resume", "auto")
    assert not first.resume
    first.config.write(first.out / "config.yaml")
    assert _order("--resume", "auto").resume
    assert not _order("--resume", "auto", "--config", "B").resume


def test_auto_compares_what_preset_and_file_say(stored_run, yaml_file):
    out = stored_run(**PRESETS["tiny-imagenet"])
    assert _order("--resume", "auto", "--out", out, "--preset", "tiny-imagenet").resume
    with pytest.raises(ValueError, match="--batch-norm is False, and the run in"):
        _order("--resume", "auto", "--out", out, "--recipe", yaml_file("batch_norm: false"))


def test_a_started_net_goes_on_without_being_named_again(stored_run):
    values = {**PRESETS["paper-D-384"], "init_from": "net.safetensors"}
    assert _order("--resume", stored_run(**values)).config == TrainConfig(**values)


@pytest.mark.parametrize("name", ["epochs", "steps"])
@pytest.mark.parametrize(
    "values", [{"schedule": "cosine"}, {"schedule": "one-cycle"}, {"grow_from": 32, "crop": 64, "scale_min": 64}]
)
def test_what_knows_its_end_keeps_it(stored_run, name, values):
    out = stored_run(**values)
    with pytest.raises(ValueError, match=f"--{name} is 5, and the run in"):
        _order("--resume", out, f"--{name}", 5)


def test_nothing_to_resume(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.yaml: not there, so there is no run to resume"):
        _order("--resume", tmp_path / "nowhere")


# ---- help ----------------------------------------------------------------------------------------------------------


def test_help_has_every_option_within_100_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = capsys.readouterr().out
    assert [line for line in text.splitlines() if len(line) > 100] == []
    for field in dataclasses.fields(TrainConfig):
        assert recipe.flag(field.name) in text
    for name in PRESETS:
        assert f"{name}," in text
    assert "torchrun --nproc-per-node=8 -m vggfast train" in text
