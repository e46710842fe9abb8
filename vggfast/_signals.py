"""Interrupt and SIGTERM where this process is the command ``vggfast``: each ends it in one line.

A handler that raises while a module is imported hands the exception to that module, which may make of it an
ImportError, a traceback, or a call of std::terminate. While anything is imported, nothing is half written: the process
ends there.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

_WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


class Stopped(KeyboardInterrupt):
    """A signal stopped the command. The text says which; `exit_code` is a shell's for it."""

    def __init__(self, number: int) -> None:
        super().__init__(_WORDS[signal.Signals(number)])
        self.exit_code = 128 + number


def handle() -> None:
    """Takes both signals where this process is the command, and nobody has taken them before."""
    if not _is_command():
        return
    for number, usual in {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}.items():
        if signal.getsignal(number) is usual:
            signal.signal(number, _on_signal)


def _is_command() -> bool:
    started = getattr(sys, "argv", [""])[:1]
    if started == ["-m"]:  # which Python says until it has found the module
        return "-m vggfast" in " ".join(sys.orig_argv)
    return bool(started) and Path(started[0]).stem == "vggfast"


def _on_signal(number: int, frame: FrameType | None) -> Any:
    signal.signal(number, signal.SIG_DFL)  # a second one ends it wherever it is
    if _imports(frame):
        os.write(2, f"vggfast: {_WORDS[signal.Signals(number)]}\n".encode())
        os._exit(128 + number)
    raise Stopped(number)


def _imports(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib._bootstrap"):
            return True
        frame = frame.f_back
    return False


handle()
