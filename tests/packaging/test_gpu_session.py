"""scripts/gpu_session.sh without a GPU: its plan, its errors, and its course with stand-ins for the tools."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "scripts" / "gpu_session.sh"
# fmt: off
STAGES = ["facts", "build", "resources", "goldens", "quick_tests", "calibration", "tune", "bench_conv", "bench_model",
          "bench_train", "bench_memory", "tests", "memcheck", "racecheck", "synccheck", "initcheck", "ncu", "dtypes",
          "autotune"]
FIRST = ["facts", "build", "resources", "goldens", "quick_tests", "bench_conv", "bench_model"]
# fmt: on
# Stands in for Python: a benchmark leaves its file, the build does as it is told, all else says what it was given.
PYTHON = f"""#!/bin/bash
case "$*" in
  *"import card"*) echo h200; exit ;;
  *gpu_verdict.py*) shift; exec {sys.executable} "$@" ;;
esac
"""
PYTHON += """echo "python $*"
while [ $# -gt 0 ]; do
  case "$1" in
    setup.py) exit "${BUILD_CODE:-0}" ;;
    --out) echo '{"rows": []}' >"$2" ;;
    pytest) sleep "${TESTS_TAKE:-0}" ;;
  esac
  shift
done
"""
pytestmark = pytest.mark.skipif(shutil.which("timeout") is None, reason="needs timeout of coreutils")


def run(script, *arguments, **environment):
    return subprocess.run([script, *arguments], capture_output=True, text=True, env={**os.environ, **environment})


@pytest.fixture
def session(tmp_path):
    """Runs a copy of the script in a tree of its own, with stand-ins for Python and NVIDIA's tools."""
    tools = tmp_path / "bin"
    script = tmp_path / "tree" / "scripts" / "gpu_session.sh"
    for folder in (tools, script.parent, tmp_path / "tree" / "csrc", tmp_path / "tree" / "cmake"):
        folder.mkdir(parents=True)
    for name in ("CMakeLists.txt", "setup.py"):
        (tmp_path / "tree" / name).touch()
    hurried = SCRIPT.read_text().replace("POLL=1 ", "POLL=0.05 ").replace("SHORTEST=20 ", "SHORTEST=8 ")
    hurried = hurried.replace("LEAST=8 ", "LEAST=1 ").replace("tests) echo 35", "tests) echo 2")
    script.write_text(hurried)
    for name in ("gpu_stages.sh", "gpu_verdict.py"):
        shutil.copy(SCRIPT.with_name(name), script.with_name(name))
    (tools / "python").write_text(PYTHON)
    for name in ("nvidia-smi", "compute-sanitizer", "ncu"):
        (tools / name).write_text(f"#!/bin/sh\necho {name} $@\n")
    # Stands in for nvcc: what it "compiles", its argument after -o, prints some JSON.
    (tools / "nvcc").write_text("#!/bin/sh\nwhile [ $# -gt 1 ]; do\n  [ $1 = -o ] && out=$2\n  shift\ndone\n"
                                "printf '#!/bin/sh\\necho {}\\n' >$out && chmod +x $out\n")  # fmt: skip
    for path in (script, *tools.iterdir()):
        path.chmod(0o755)

    def call(*arguments, start=run, **environment):
        path = os.pathsep.join([str(tools), os.environ["PATH"]])
        return start(script, *arguments, PATH=path, PYTHON=str(tools / "python"), **environment)

    return call


def states(out: Path) -> dict[str, str]:
    """{stage: state} of a summary."""
    lines = (out / "summary.txt").read_text().split("last line\n")[1].split("\n\n")[0].splitlines()
    return {line[:14].strip(): line[15:37].strip() for line in lines}


def test_dry_run_prints_the_plan_and_touches_nothing(tmp_path):
    done = run(SCRIPT, "--dry-run", str(tmp_path / "out"), "600")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == f"Stages, in at most 600 s, results in {tmp_path / 'out'}:"
    assert [line.split()[0] for line in lines[1:]] == STAGES
    assert lines[2].split(maxsplit=5)[:5] == ["build", "at", "most", "240", "s"]
    assert "VGGFAST_CUDA=on for 90a" in lines[2]
    assert not (tmp_path / "out").exists()


def test_dry_run_of_some_stages_keeps_the_order(tmp_path):
    done = run(SCRIPT, "--dry-run", "--stages", "ncu build", "--archs", "80;90a", str(tmp_path), "1000")
    assert [line.split()[0] for line in done.stdout.splitlines()[1:]] == ["build", "ncu"]
    assert "for 80;90a" in done.stdout


def test_the_first_preset_has_what_a_new_kernel_is_asked(tmp_path):
    done = run(SCRIPT, "--dry-run", "--first", str(tmp_path))
    assert done.stdout.splitlines()[0].startswith("Stages, in at most 600 s")
    assert [line.split()[0] for line in done.stdout.splitlines()[1:]] == FIRST


def test_help():
    done = run(SCRIPT, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith("usage: scripts/gpu_session.sh")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "arguments must be OUT and SECONDS, got 0 of them"),
        (["out", "600", "more"], "arguments must be OUT and SECONDS, got 3 of them"),
        (["out", "ten"], "SECONDS must be a whole number of at least 60, got 'ten'"),
        (["out", "59"], "SECONDS must be a whole number of at least 60, got '59'"),
        (["--stages", "build fly", "out", "600"], "--stages must be among facts build"),
        (["--stages", "", "out", "600"], "--stages must be at least one of facts build"),
        (["--stages"], "--stages needs a value"),
        (
            ["--fast", "out", "600"],
            "option must be one of --first, --later, --dry-run, --stages, --archs, --commit, --help, got '--fast'",
        ),
    ],
)
def test_errors_name_the_argument(arguments, text):
    done = run(SCRIPT, *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("gpu_session: ")
    assert text in done.stderr


def test_without_a_gpu_a_sentence_says_so(tmp_path, session):
    (tmp_path / "bin" / "nvidia-smi").write_text("#!/bin/sh\nexit 9\n")
    done = session(str(tmp_path / "out"), "60")
    assert done.returncode == 2
    assert done.stderr == "gpu_session: no GPU: nvidia-smi is missing or fails here\n"


def test_a_session_leaves_logs_codes_results_and_a_summary(tmp_path, session):
    out = tmp_path / "out"
    stages = "facts build goldens bench_conv bench_model memcheck ncu dtypes"
    done = session("--stages", stages, "--commit", "abc1234", str(out), "300")
    assert done.returncode == 0, done.stdout + done.stderr
    assert states(out) == dict.fromkeys(stages.split(), "ok")
    assert "commit abc1234, architectures 90a, done" in (out / "summary.txt").read_text()
    assert sorted(path.name for path in out.iterdir()) == [
        "conv-h200.json", "goldens-h200.json", "model-h200.json", "session.log", "stages.tar.gz", "summary.txt",
    ]  # fmt: skip
    assert (out / "goldens-h200.json").read_text() == "{}\n"
    with tarfile.open(out / "stages.tar.gz") as archive:
        names = set(archive.getnames())
        assert {"./build.log", "./build.code", "./results/conv-h200-fp16.json", "./results/conv-h200.json"} <= names
        assert archive.extractfile("./build.code").read() == b"0\n"
    log = (out / "session.log").read_text()
    assert "benchmarks/bench_conv.py --device cuda --out" in log
    assert "--without torch.compile autotune" in log
    assert "compute-sanitizer --tool memcheck" in log


@pytest.mark.parametrize("archs", ["90a", "80"])
def test_resources_are_those_of_the_build(tmp_path, session, archs):
    """Loops are looked at where there is code for sm_90a; else a line says that they are not."""
    out, build = tmp_path / "out", tmp_path / "tree" / "build" / "temp.linux"
    build.mkdir(parents=True)
    (build / "libvggfast_core.a").touch()
    done = session("--stages", "build resources", "--archs", archs, str(out), "300")
    assert done.returncode == 0, done.stdout + done.stderr
    log = (out / "session.log").read_text()
    assert "python -u scripts/kernel_resources.py --object build/temp.linux/libvggfast_core.a --log" in log
    assert ("python -u scripts/stage_loops.py --build build/temp.linux\n" in log) == (archs == "90a")
    assert ("left out: no kernels with such loops in a build for 80\n" in log) == (archs == "80")


def test_tuning_knows_its_time_and_its_files_come_home(tmp_path, session):
    out = tmp_path / "out"
    done = session("--stages", "tune", str(out), "300")
    assert done.returncode == 0, done.stdout + done.stderr
    log = (out / "session.log").read_text()
    assert "== tune, at most 75 s: every tile" in log
    assert "benchmarks/tune.py --seconds 50 --out" in log
    assert re.search(r"--table \S+/results/tuned\.h", log)
    with tarfile.open(out / "stages.tar.gz") as archive:
        assert "./results/tune-h200.json" in archive.getnames()


def test_a_later_session_does_what_is_left(tmp_path, session):
    out = tmp_path / "out"
    assert session("--first", "--commit", "abc1234", str(out)).returncode == 0
    done = session("--later", "--stages", "build bench_conv bench_memory", "--commit", "abc1234", str(out))
    assert done.returncode == 0, done.stdout + done.stderr
    assert states(out) == {"build": "ok", "bench_conv": "ok, before", "bench_memory": "ok"}
    assert "kept: built before of the same sources" in (out / "session.log").read_text()
    (tmp_path / "tree" / "csrc" / "new.h").write_text("// new\n")
    session("--later", "--stages", "build bench_conv", "--commit", "abc1234", str(out))
    assert states(out) == {"build": "ok", "bench_conv": "ok"}
    assert "kept" not in (out / "session.log").read_text()


def test_a_session_ends_with_a_verdict(tmp_path, session):
    out = tmp_path / "out"
    session("--stages", "build bench_conv", str(out), "300")
    text = (out / "summary.txt").read_text()
    assert text.endswith("\n\nbuilt: yes\nright: unknown\nunknown: layers, model, train, memory, tune\n")


def test_what_needs_a_build_that_failed_is_skipped(tmp_path, session):
    out = tmp_path / "out"
    done = session("--stages", "facts build bench_conv", str(out), "300", BUILD_CODE="3")
    assert done.returncode == 1
    assert states(out) == {"facts": "ok", "build": "failed (3)", "bench_conv": "skipped: no build"}


def test_a_stage_that_takes_too_long_is_ended_and_the_next_runs(tmp_path, session):
    out = tmp_path / "out"
    script = tmp_path / "tree" / "scripts" / "gpu_session.sh"
    script.write_text(script.read_text().replace("SHORTEST=8 ", "SHORTEST=1 "))
    done = session("--stages", "tests bench_memory", str(out), "60", TESTS_TAKE="30")
    assert done.returncode == 1
    assert states(out) == {"tests": "out of time (1 s)", "bench_memory": "ok"}


def test_a_session_that_is_ended_leaves_what_it_has(tmp_path, session):
    def start(script, *arguments, **environment):
        return subprocess.Popen([script, *arguments], stdout=subprocess.DEVNULL, env={**os.environ, **environment})

    out = tmp_path / "out"
    process = session("--stages", "build tests", str(out), "900", start=start, TESTS_TAKE="60")
    for _ in range(200):
        if "now: tests" in ((out / "summary.txt").read_text() if (out / "summary.txt").exists() else ""):
            break
        time.sleep(0.05)
    process.terminate()
    assert process.wait(timeout=10) == 1
    assert "ended by a signal" in (out / "summary.txt").read_text()
    assert states(out) == {"build": "ok"}
    with tarfile.open(out / "stages.tar.gz") as archive:
        assert "./build.code" in archive.getnames()


@pytest.mark.slow
def test_every_stage_reaches_the_gpu(tmp_path):
    """The script as it is, with this Python: a stage may end for want of a GPU, not for a path, option or import."""
    root, tree, tools = SCRIPT.parents[1], tmp_path / "tree", tmp_path / "bin"
    tools.mkdir()
    (tree / "scripts").mkdir(parents=True)
    for path in filter(Path.is_file, SCRIPT.parent.glob("*")):
        shutil.copy(path, tree / "scripts" / path.name)
    for name in ("benchmarks", "cmake", "csrc", "pyproject.toml", "setup.py", "tests", "vggfast", "CMakeLists.txt"):
        (tree / name).symlink_to(root / name)
    (tools / "nvidia-smi").write_text("#!/bin/sh\necho NVIDIA H100 80GB HBM3\n")
    (tools / "compute-sanitizer").write_text('#!/bin/bash\nwhile [[ "$1" != *python* ]]; do shift; done\nexec "$@"\n')
    for path in tools.iterdir():
        path.chmod(0o755)
    script, out = str(tree / "scripts" / SCRIPT.name), str(tmp_path / "out")
    stages = "calibration tune bench_conv bench_model bench_train bench_memory memcheck dtypes autotune"
    path = os.pathsep.join([str(tools), os.environ["PATH"]])
    done = run(script, "--stages", stages, out, "3000", PATH=path, PYTHON=sys.executable)
    assert done.returncode == 1, done.stdout + done.stderr
    for stage in stages.split():
        log = (tree / "build" / "gpu-session" / f"{stage}.log").read_text()
        wanted = {"calibration": "memcheck: exit 1", "memcheck": "no CUDA GPU"}
        expected = wanted.get(stage, "torch 2.* sees no CUDA GPU here").replace("2.*", torch.__version__)
        assert expected in log, (stage, log)
        assert "Traceback" not in log, (stage, log)
