"""What a run writes as it goes: steps.csv, metrics.csv, log.jsonl, and TensorBoard's files when it is installed.

Rows are appended whole and at once, so that ``tail -f`` shows them. A full disk does not stop a run: what cannot be
written waits in memory and is tried again with the next row.
"""

from __future__ import annotations

import contextlib
import csv
import datetime
import errno
import importlib.util
import json
import math
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vggfast._progress import silent
from vggfast.io import shown, write_atomically
from vggfast.runs.error_names import with_error_names

# Errors in per cent, losses in nats, both over the training images since the last row; data_wait is the share of the
# time, 0 to 1, that went by waiting for batches.
STEP_COLUMNS = ("step", "epoch", "loss", "top1_error", "top5_error", "lr", "grad_norm", "images_per_s", "data_wait")
EPOCH_COLUMNS = (
    "epoch", "step", "lr", "train_loss", "train_top1_error", "train_top5_error", "val_loss", "val_top1_error",
    "val_top5_error", "seconds", "core_seconds", "images_per_s", "data_wait", "bad_images",
)  # fmt: skip
# Rooms that are ample. TensorBoard's writer is a thread that dies of a full disk with a traceback on the terminal.
_BYTES_PER_SCALAR, _BYTES_PER_FILE = 200, 16384


def read_csv(path: str | Path) -> list[dict[str, float]]:
    """The rows of steps.csv or metrics.csv; none where there is no such file. A torn last line is left out.

    Raises:
        ValueError: it holds something else; the text names it.
    """
    path = Path(path)
    if not path.exists():
        return []
    lines = path.read_bytes().decode("utf-8", "replace").splitlines(keepends=True)
    whole = (line for line in lines if line.endswith("\n"))
    rows = []
    try:
        for number, row in enumerate(csv.DictReader(whole), 2):
            if None in row or None in row.values():
                raise ValueError(f"line {number} has another number of columns than the first")
            values = {name: int(text) if text.isdecimal() else float(text) for name, text in row.items()}
            rows.append(with_error_names(values))
    except (ValueError, csv.Error) as error:
        raise ValueError(shown(f"{path} is no table of numbers: {error}")) from error
    return rows


class RunLog:
    """The log of the run in folder `out`, for the one process that writes it.

    Args:
        out: the run's folder; made when absent.
        step: steps that the run has done. Rows up to and including it are kept; later ones were written after the
            checkpoint that the run goes on from, and it computes them again.
        warn: is told of rows that cannot be written.

    Raises:
        OSError, ValueError: the files of an earlier session cannot be read or trimmed; the text names the file.
    """

    def __init__(self, out: str | Path, step: int, warn: Callable[[str], object] = silent) -> None:
        self._out, self._warn, self._failing = Path(out), warn, False
        self._out.mkdir(parents=True, exist_ok=True)
        self._steps = _Table(self._out / "steps.csv", STEP_COLUMNS, step)
        self._epochs = _Table(self._out / "metrics.csv", EPOCH_COLUMNS, step)
        self._json = _Lines(self._out / "log.jsonl")
        self._json.keep(lambda line: _kept(line, step))
        self._scalars = None
        if _has_tensorboard():
            if shown(self._out) == str(self._out):
                self._scalars = _Scalars(self._out / "tensorboard", step)
            else:
                warn(f"{shown(self._out)} gets no files for TensorBoard, which takes UTF-8 names alone")

    def step(self, row: Mapping[str, float]) -> None:
        """Logs the training since the last such row: a value for each of STEP_COLUMNS.

        Raises:
            ValueError: names are missing or too many.
        """
        self._row("step", self._steps, row)

    def epoch(self, row: Mapping[str, float]) -> None:
        """Logs a validation: a value for each of EPOCH_COLUMNS. One that the file has already is not written again.

        A run that was killed between a checkpoint and the validation at the same step brings the same row twice.

        Raises:
            ValueError: names are missing or too many.
        """
        if self._epochs.last != (row["epoch"], row["step"]):
            self._row("epoch", self._epochs, row)

    def event(self, text: str, **metadata: Any) -> None:
        """Logs what is no figure, such as a bad image or a resumed run, with `metadata` such as its `step`."""
        self._json.add(_json_line("event", {"text": shown(text), **metadata}))
        self._write()

    def close(self) -> None:
        """Tries for the last time what still waits; a warning says what is lost."""
        self._write()
        if lost := self._json.waiting.count(b"\n"):
            self._warn(f"the last {lost} rows of the log could not be written to {self._out}")
        if self._scalars is not None:
            self._scalars.close()

    def _row(self, kind: str, table: _Table, row: Mapping[str, float]) -> None:
        row = {name: value if isinstance(value, int) else float(value) for name, value in row.items()}
        table.add(row)
        self._json.add(_json_line(kind, row))
        if self._scalars is not None:
            self._scalars.add(kind, row)
        self._write()

    def _write(self) -> None:
        """Writes all that waits; one warning from the first failure until all is well again."""
        problem: OSError | None = None
        for part in (self._steps.lines, self._epochs.lines, self._json, self._scalars):
            try:
                if part is not None and (problem is None or part is not self._scalars):
                    part.write()
            except OSError as error:
                problem = problem or error
        if problem is not None and not self._failing:
            self._warn(f"{self._out}: the log cannot be written ({problem}); rows wait in memory for the next try")
        self._failing = problem is not None


def _json_line(kind: str, values: Mapping[str, Any]) -> str:
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    # JSON has no NaN and no infinity.
    finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
    return json.dumps({**finite, "kind": kind, "time": now}, default=str, allow_nan=False)


def _kept(line: str, step: int) -> str:
    """A line of log.jsonl as it is written today; "" where it does not belong there any more."""
    try:
        content = json.loads(line)
        return f"{json.dumps(with_error_names(content))}\n" if content.get("step", 0) <= step else ""
    except (ValueError, AttributeError, TypeError):
        return ""


class _Lines:
    """A text file that grows by whole lines; what the disk does not take stays in `waiting`."""

    def __init__(self, path: Path) -> None:
        self.path, self.waiting = path, b""
        self._size = path.stat().st_size if path.exists() else 0

    def keep(self, kept: Callable[[str], str]) -> None:
        """Puts what `kept` says in the place of each line, and drops a torn last one."""
        if not self.path.exists():
            return
        before = self.path.read_bytes()
        lines = (line for line in before.splitlines(keepends=True) if line.endswith(b"\n"))
        self.replace(before, b"".join(kept(line.decode(errors="replace")).encode() for line in lines))

    def replace(self, before: bytes, after: bytes) -> None:
        """Makes the file's content `after`, at once."""
        if before.startswith(after):
            os.truncate(self.path, len(after))  # needs no room, which a full disk would not have
        else:
            write_atomically(self.path, lambda temporary: temporary.write_bytes(after))
        self._size = len(after)

    def add(self, line: str) -> None:
        self.waiting += line.encode() + b"\n"

    def write(self) -> None:
        if not self.waiting:
            return
        try:
            with self.path.open("ab", buffering=0) as file:
                self._size = min(self._size, file.tell())
                file.truncate(self._size)  # of what an earlier try left
                rest = memoryview(self.waiting)
                while rest:
                    rest = rest[file.write(rest) :]
        except OSError:
            with contextlib.suppress(OSError):
                os.truncate(self.path, self._size)
            raise
        self._size += len(self.waiting)
        self.waiting = b""


class _Table:
    """A CSV file of numbers."""

    def __init__(self, path: Path, columns: tuple[str, ...], step: int) -> None:
        self.lines, self._columns = _Lines(path), columns
        self.last: tuple[float, float] | None = None  # epoch and step of the last row
        rows = [row for row in read_csv(path) if row["step"] <= step]
        if path.exists():
            texts = [self._text({name: row.get(name, math.nan) for name in columns}) for row in rows]
            self.lines.replace(path.read_bytes(), "".join(f"{t}\n" for t in [",".join(columns), *texts]).encode())
        else:
            self.lines.add(",".join(columns))
        if rows:
            self.last = (rows[-1]["epoch"], rows[-1]["step"])

    def _text(self, row: Mapping[str, float]) -> str:
        return ",".join(repr(row[name]) for name in self._columns)

    def add(self, row: Mapping[str, float]) -> None:
        if row.keys() != set(self._columns):
            raise ValueError(
                f"row must have {', '.join(self._columns)} for {self.lines.path.name}, got {', '.join(row)}"
            )
        self.lines.add(self._text(row))
        self.last = (row["epoch"], row["step"])


def _has_tensorboard() -> bool:
    return importlib.util.find_spec("tensorboard") is not None


class _Scalars:
    """TensorBoard's files: the columns over steps, named step/loss, epoch/val_top1_error and so on."""

    def __init__(self, folder: Path, step: int) -> None:
        self._folder = folder
        self._writer: Any = None
        self._purge: int | None = step + 1  # hides what an earlier session wrote from there on
        self._waiting: list[tuple[str, float, int]] = []
        for file in folder.glob("events.out.tfevents.*") if step == 0 else ():
            file.unlink()  # of a run that this one replaces

    def add(self, kind: str, row: Mapping[str, float]) -> None:
        step = int(row["step"])
        self._waiting += [(f"{kind}/{name}", row[name], step) for name in row if name not in ("step", "epoch")]

    def write(self) -> None:
        if not self._waiting:
            return
        if shutil.disk_usage(self._folder.parent).free < _BYTES_PER_SCALAR * len(self._waiting) + _BYTES_PER_FILE:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._folder))
        try:
            self._open()
            for name, value, step in self._waiting:
                self._writer.add_scalar(name, value, step)
            self._writer.flush()
        except OSError:
            self._writer = None  # its thread has ended; the next try begins a file of its own
            raise
        self._waiting.clear()

    def _open(self) -> None:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._folder), purge_step=self._purge)
            self._purge = None

    def close(self) -> None:
        if self._writer is not None:
            with contextlib.suppress(OSError):  # all was written, or `write` would have let the writer go
                self._writer.close()
