"""A signal ends the command in one line, from its first import on."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vggfast import _signals

_STOP = f"""
import os, signal, sys
class Finder:  # that sends a signal while one of torch's modules is imported
    def find_spec(self, name, *_):
        if name == "torch.{{module}}":
            os.kill(os.getpid(), {{number}})
sys.meta_path.insert(0, Finder())
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell has ignored for what it runs in the background
sys.argv = ["vggfast", "info"]
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from vggfast.cli import main
sys.exit(main())
"""


@pytest.mark.parametrize("module", ["_C", "nn", "ao"])
@pytest.mark.parametrize(("number", "word"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated")])
def test_while_modules_are_imported(module, number, word):
    program = _STOP.format(module=module, number=int(number))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (128 + number, "", f"vggfast: {word}\n")


def test_a_module_that_is_run(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "vggfast", "train", "--data", "digits", "--out", str(tmp_path / "run")],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # as above
    )  # fmt: skip
    maps = Path(f"/proc/{process.pid}/maps")
    while process.poll() is None and "libtorch" not in maps.read_text():
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[1] == "vggfast: interrupted\n"
    assert process.returncode == 130


def test_another_program_keeps_its_own(monkeypatch):
    before = signal.getsignal(signal.SIGINT)
    for argv in (["pytest"], ["-m"], [], [""]):
        monkeypatch.setattr(sys, "argv", argv)
        monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "pytest", "vggfast"])
        _signals.handle()
        assert signal.getsignal(signal.SIGINT) is before


def test_the_second_signal_finds_python_s_own(monkeypatch):
    set_to = []
    monkeypatch.setattr(signal, "signal", lambda number, handler: set_to.append((number, handler)))
    with pytest.raises(_signals.Stopped, match=r"^terminated$") as stop:
        _signals._on_signal(signal.SIGTERM, sys._getframe())
    assert stop.value.exit_code == 143
    assert set_to == [(signal.SIGTERM, signal.SIG_DFL)]
