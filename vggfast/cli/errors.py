"""How a command says that something is wrong: one line on stderr, however many processes find the same."""

from __future__ import annotations

import codecs
import contextlib
import hashlib
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

_PACKAGE = str(Path(__file__).parents[1])


class UsageError(ValueError):
    """Options that contradict each other; the process' exit code is 2."""


def rank() -> int:
    """Which of torchrun's processes this is; 0 without torchrun."""
    return int(os.environ.get("RANK", 0))


def tell(text: str) -> None:
    """Prints an error, with the rank where that is not 0. Of ranks that have the same one to tell, the first does."""
    if _first(text):
        print(f"vggfast: {f'rank {rank()}: ' if rank() else ''}{text}", file=sys.stderr, flush=True)


def _first(text: str) -> bool:
    """Whether no other rank has told this: torchrun's own store counts, which outlives the ranks."""
    environment = os.environ
    if environment.get("WORLD_SIZE", "1") == "1" or environment.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return True
    from torch.distributed import TCPStore

    key = f"vggfast/{environment.get('TORCHELASTIC_RESTART_COUNT')}/{hashlib.sha256(text.encode()).hexdigest()}"
    try:
        address, port = environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
        return TCPStore(address, port, is_master=False, timeout=timedelta(seconds=5)).add(key, 1) == 1
    except RuntimeError:  # told twice is better than not at all
        return True


def write_all(*writes: Callable[[], Any]) -> int:
    """Writes one file after the other, and tells which could not be written; an exit code, 1 where there are such."""
    code = 0
    for write in writes:
        try:
            write()
        except OSError as error:
            tell(" ".join(str(error).split()))
            code = 1
    return code


@contextlib.contextmanager
def plain_output() -> Iterator[None]:
    """While a command runs, names that are no UTF-8 are printed with replacement characters, our warnings as lines."""
    codecs.register_error("vggfast.replace", _replaced)
    streams: list[Any] = [stream for stream in (sys.stdout, sys.stderr) if hasattr(stream, "reconfigure")]
    before = [(stream, stream.errors) for stream in streams]
    with warnings.catch_warnings():
        usual = warnings.showwarning
        told = set()  # both splits of a data set may have the same to say

        def show(message: Any, category: Any, filename: str, *rest: Any) -> None:
            if filename.startswith(_PACKAGE) and issubclass(category, UserWarning):
                if str(message) not in told:
                    tell(f"warning: {message}")
                told.add(str(message))
            else:
                usual(message, category, filename, *rest)

        warnings.showwarning = show  # type: ignore[assignment]
        try:
            for stream in streams:
                stream.reconfigure(errors="vggfast.replace")
            yield
        finally:
            for stream, errors in before:
                stream.reconfigure(errors=errors)


def _replaced(error: UnicodeError) -> tuple[str | bytes, int]:
    """The error handler of :func:`plain_output`."""
    assert isinstance(error, UnicodeEncodeError)
    count = error.end - error.start
    utf_8 = error.encoding.lower().replace("-", "") == "utf8"
    return ("\N{REPLACEMENT CHARACTER}".encode() if utf_8 else b"?") * count, error.end
