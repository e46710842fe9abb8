"""The command line as a stranger uses it."""

import json
import os
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError

import pytest
from PIL import Image

from vggfast.cli import main
from vggfast.data.sources import SPECS


def _run(capsys, *arguments):
    code = main(list(map(str, arguments)))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A short run on the digits."""
    out = tmp_path_factory.mktemp("runs") / "digits"
    arguments = ["train", "--data", "digits", "--out", str(out), "--width", "0.1", "--hidden", "16", "--steps", "25"]
    assert main(arguments) == 0
    return out


def test_train_writes_the_whole_folder(run_folder):
    names = {path.name for path in run_folder.iterdir()}
    assert names >= {
        "config.yaml", "metrics.json", "metrics.csv", "steps.csv", "curves.png", "predictions.png",
        "model.safetensors", "checkpoints",
    }  # fmt: skip
    for name in ("curves.png", "predictions.png"):
        with Image.open(run_folder / name) as image:
            assert min(image.size) > 300
    metrics = json.loads((run_folder / "metrics.json").read_text())
    assert metrics["steps"] == 25
    assert set(metrics["evaluation"]) == {"dense, one scale", "dense, 3 scales"}


@pytest.mark.parametrize(("protocol", "scales"), [("single", [36]), ("dense", [32, 36, 40])])
def test_eval_repeats_the_runs_figures(run_folder, capsys, tmp_path, protocol, scales):
    found = tmp_path / "found.json"
    model = run_folder / "model.safetensors"
    code, out, _ = _run(capsys, "eval", "--model", model, "--protocol", protocol, "--json", found)
    assert code == 0
    assert "top-1 error %" in out
    found = json.loads(found.read_text())
    assert found["scales"] == scales
    recorded = json.loads((run_folder / "metrics.json").read_text())["evaluation"]
    (row,) = found["rows"]
    assert (row["top1_error"], row["top5_error"]) in [
        (each["top1_error"], each["top5_error"]) for each in recorded.values()
    ]


def test_predict_prints_the_top_classes(run_folder, capsys, tmp_path):
    Image.new("L", (40, 60)).save(tmp_path / "a.png")
    checkpoint = max((run_folder / "checkpoints").iterdir())
    for model in (run_folder / "model.safetensors", checkpoint):
        code, out, _ = _run(capsys, "predict", "--model", model, "--top", 3, tmp_path / "a.png")
        assert code == 0
        assert out.splitlines()[0].endswith("a.png")
        assert len(out.splitlines()) == 4


def test_info(capsys):
    code, out, _ = _run(capsys, "info")
    assert code == 0
    for name in ("torch", "module: compiler", "module: CUDA architectures", "instruction set in use", "OpenMP runtime"):
        assert f"\n{name} " in out


def test_info_lists_optional_packages(capsys, monkeypatch):
    def version(name):
        if name == "rich":
            raise PackageNotFoundError
        return "1.2"

    monkeypatch.setattr("vggfast.cli.info.version", version)
    out = _run(capsys, "info")[1]
    for line in ("package: rich +not installed +train", "package: matplotlib +1.2 +train", "package: tensorboard +1.2",
                 "package: datasets +1.2 +data hf:NAME"):  # fmt: skip
        assert re.search(f"^{line}", out, re.MULTILINE)


def test_info_says_why_the_module_does_not_load(tmp_path):
    program = (
        "import sys, importlib\n"
        "load = importlib.import_module\n"
        "def fail(name):\n"
        "    if name != 'vggfast._C':\n"
        "        return load(name)\n"
        "    raise ImportError('libfoo.so: cannot open')\n"
        "importlib.import_module = fail\n"
        "from vggfast.cli import main\nsys.exit(main(['info']))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1
    assert "cannot be loaded: libfoo.so: cannot open" in done.stdout
    assert "python setup.py build_ext --inplace" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["eval", "--model", "nothing.safetensors"], "nothing.safetensors: no such weight file"),
        (["train", "--data", "cifar"], f"data must be one of {SPECS}, got 'cifar'"),
        (["train", "--resume", "nowhere"], "config.yaml: not there, so there is no run to resume"),
        (["train", "--data", "digits", "--lr", "-1"], "lr must be at least 0, got -1.0"),
    ],
)
def test_errors_are_one_line(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, _, err = _run(capsys, *arguments)
    assert code == 1
    assert message in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_resumed_run_keeps_its_recipe(run_folder, capsys):
    code, _, err = _run(capsys, "train", "--resume", run_folder, "--lr", 0.5)
    assert code == 1
    assert "--lr is 0.5, and the run in" in err


def test_wrong_image_and_wrong_classes(run_folder, capsys, tmp_path, photos):
    model = run_folder / "model.safetensors"
    (tmp_path / "a.png").write_text("no image")
    assert "a.png: not an image that decodes" in _run(capsys, "predict", "--model", model, tmp_path / "a.png")[2]
    assert (
        "--top must be 1 to 10, the number of classes, got 11"
        in _run(capsys, "predict", "--model", model, "--top", 11, tmp_path / "a.png")[2]
    )
    assert "classes that are not the 2" in _run(capsys, "eval", "--model", model, "--data", f"imagefolder:{photos}")[2]
    assert "must be one scale for the protocol 'single', got " in _run(
        capsys, "eval", "--model", model, "--protocol", "single", "--scales", 32, 36
    )[2]  # fmt: skip


_COMMANDS = [
    "train", "eval", "report", "reproduce", "cache", "predict", "localise", "features", "svm", "stylise", "convert",
    "weights", "info",
]  # fmt: skip


@pytest.mark.parametrize("command", _COMMANDS)
def test_help_and_unknown_options(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    _check_help([command], capsys)
    with pytest.raises(SystemExit) as stop:
        main([command, "--unheard-of"])
    assert stop.value.code == 2


def _check_help(command, capsys):
    """The usage, an example of it, what it does: within 100 columns."""
    with pytest.raises(SystemExit) as stop:
        main([*command, "--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    called = " ".join(["vggfast", *command])
    usage, examples, description = out.split("\n\n")[:3]
    assert usage.startswith(f"usage: {called} ")
    assert re.match(rf"examples?:\n  (torchrun .* -m )?{called}\b", examples)
    assert re.match(r"[A-Z]\w+s ", description)
    assert [line for line in out.splitlines() if len(line) > 100] == []


@pytest.mark.parametrize("command", ["localise eval", "localise predict", "weights list", "weights get"])
def test_help_of_parts(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    _check_help(command.split(), capsys)


def test_help_lists_the_commands(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert re.findall(r"^    (\w+)(?: |$)", out, re.MULTILINE) == _COMMANDS
    code, nothing, err = _run(capsys)
    assert (code, nothing, err) == (2, "", out)


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (RuntimeError("out of\n  memory"), 1, "vggfast: out of memory\n"),
        (KeyboardInterrupt(), 130, "vggfast: interrupted\n"),
        (ModuleNotFoundError("No module named 'rich'", name="rich"), 2,
         "vggfast: info needs rich: pip install 'vggfast[train]'\n"),
        (ModuleNotFoundError("No module named 'h5py.x'", name="h5py.x"), 2,
         "vggfast: info needs h5py: pip install 'vggfast[convert]'\n"),
        (ModuleNotFoundError("No module named 'tensorflow'", name="tensorflow"), 2,
         "vggfast: info needs tensorflow: pip install tensorflow\n"),
        (ModuleNotFoundError("No module named 'vggfast.mist'", name="vggfast.mist"), 1,
         "vggfast: No module named 'vggfast.mist'\n"),
    ],
)  # fmt: skip
def test_what_goes_wrong_is_a_line_and_a_code(monkeypatch, capsys, error, code, line):
    def run(_):
        raise error

    monkeypatch.setattr("vggfast.cli.info.run", run)
    assert _run(capsys, "info") == (code, "", line)
    monkeypatch.setenv("VGGFAST_TRACEBACK", "1")
    if isinstance(error, RuntimeError):
        with pytest.raises(RuntimeError, match="memory"):
            main(["info"])


@pytest.mark.parametrize("program", ["import vggfast", "from vggfast.cli import main; main(['predict'])"])
def test_import_stays_light(program):
    heavy = ["matplotlib", "sklearn", "PIL", "rich", "safetensors", "yaml"]
    program = f"""import sys
try:
    {program}
except SystemExit:
    pass
print([name for name in {heavy} if name in sys.modules])"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(("isa", "code"), [("portable", 0), ("amx-emulated", 0), ("mmx", 1)])
def test_environment_chooses_the_instruction_set(isa, code):
    environment = {**os.environ, "VGGFAST_CPU_ISA": isa}
    done = subprocess.run([sys.executable, "-m", "vggfast", "info"], env=environment, capture_output=True, text=True)
    assert done.returncode == code
    in_use, refused = f"instruction set in use         {isa}", "VGGFAST_CPU_ISA must be one of amx-emulated, portable"
    assert (refused if code else in_use) in done.stdout
    assert re.search("^AMX +the processor has ", done.stdout, re.MULTILINE) or code
