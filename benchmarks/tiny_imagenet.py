"""The runs behind the results on Tiny-ImageNet, one after the other: an ablation on A, the five networks, boxes.

    python benchmarks/tiny_imagenet.py ablation --data cache:DIR --out runs/ablation --stop-after 8h
    python benchmarks/tiny_imagenet.py networks --data cache:DIR --out runs/tiny --core-hours 20 A=10 --stop-after 8h
    python benchmarks/tiny_imagenet.py boxes --data tiny-imagenet:DIR --start runs/tiny/A/model.safetensors --out runs/b

Each row is a run of `vggfast train` in the folder OUT/ROW. The same command goes on where the last one was stopped,
by --stop-after or a kill; what is finished stays. After each row it writes OUT/table.json, table.csv and table.md. The
exit code is 75 while a row is neither finished nor out of its core-hours, and 1 where a run failed, which keeps no
other from being run. Options that it does not know go to `vggfast train`, such as --precision bf16.
docs/tiny-imagenet.md says what each row is.
"""

from __future__ import annotations

import argparse
import csv
import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from vggfast.cli.options import parse_duration
from vggfast.cli.recipe import flag
from vggfast.cli.train import OUT_OF_TIME
from vggfast.environment import environment
from vggfast.evaluate import interval
from vggfast.io import write_atomically, write_json
from vggfast.runs.config import TrainConfig
from vggfast.runs.error_names import read_results
from vggfast.training.checkpoint import Checkpoints
from vggfast.training.presets import PRESETS

_QUARTER = PRESETS["tiny-imagenet"]["epochs"] // 4
# What the paper's recipe keeps of the preset: the images' size, and the network's.
_KEPT = ("crop", "scale_min", "scale_max", "hidden", "workers", "epochs")
_PAPER = {name: getattr(TrainConfig, name) for name in PRESETS["tiny-imagenet"] if name not in _KEPT}
_DONE = ("finished", "core-hours spent")
_COLUMNS = ("row", "changes", "state", "epochs", "wall_seconds", "core_seconds", "last", "last_low", "last_high",
            "best_dense", "best_dense_low", "best_dense_high")  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A run: a preset, what differs from it, and from which row's network it starts ("" for none)."""

    name: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    preset: str = "tiny-imagenet"
    start: str = ""


_ONE_LESS: dict[str, dict[str, Any]] = {
    "preset": {},
    "without-batch-norm": {"batch_norm": False},
    "dropout-0.5": {"dropout": 0.5},
    "crops-at-S": {"min_area": 0.0},
    "one-size": {"grow_from": 0},
    "plateau": {"schedule": "plateau", "lr": 0.01},
    "cosine": {"schedule": "cosine", "warmup": 100},
    "constant-momentum": {"low_momentum": 0.0},
    "without-smoothing": {"label_smoothing": 0.0},
    "without-colour-shift": {"colour_shift": 0.0},
    "decay-all": {"decay_all": True},
    "average": {"ema": 0.995},
    "paper": _PAPER,
    "paper-batch-norm": {**_PAPER, "batch_norm": True},
}
TABLES = {
    "ablation": [Row(name, {"epochs": _QUARTER, **changes}) for name, changes in _ONE_LESS.items()],
    "networks": [Row(config, {"config": config}, start="" if config == "A" else "A") for config in "ABCDE"],
    "boxes": [
        Row(f"{predict}-{layers}", {"train_layers": layers}, preset=f"tiny-imagenet-{predict}")
        for predict in ("box", "boxes")
        for layers in ("all", "fc")
    ],
}


def arguments(row: Row, asked: argparse.Namespace, extra: Sequence[str]) -> list[str]:
    """Those of `vggfast train` for a row; what it changes stands behind what the command line adds."""
    out = asked.out / row.name
    listed = ["--out", str(out), "--resume", "auto", "--preset", row.preset, "--data", asked.data, *extra]
    values = dict(row.changes)
    if (epochs := _of_row(asked.epochs, row)) is not None:
        values["epochs"] = int(epochs)
    start = asked.out / row.start / "model.safetensors" if row.start else asked.start
    if start is not None:
        values["init_from"] = str(start)
    for name, value in values.items():
        if isinstance(value, bool):
            listed.append(flag(name) if value else flag(name).replace("--", "--no-", 1))
        else:
            listed += [flag(name), str(value)]
    return listed


# ---- what a folder holds -------------------------------------------------------------------------------------------


def _checkpoint(out: Path) -> dict[str, Any] | None:
    return Checkpoints(out / "checkpoints").newest(lambda text: print(f"warning: {text}", file=sys.stderr))


def core_seconds(out: Path) -> float:
    """Processors' time of a run's training so far, the epoch under way included."""
    content = _checkpoint(out)
    if content is None:
        return 0.0
    progress = content["progress"]
    own = {row["epoch"]: row["core_seconds"] for row in progress["epochs"]}
    return sum((own | ({progress["epoch"]: progress["core_seconds"]} if progress["batch"] else {})).values())


def finished(out: Path) -> bool:
    """Whether a run has ended and was evaluated: metrics.json is what it writes last of all figures."""
    return (out / "metrics.json").is_file()


def _accuracy(error: float, images: int) -> tuple[float, float, float]:
    """(accuracy, low, high) in per cent, of 95 %."""
    low, high = interval(error, images)
    return 100 - error, 100 - high, 100 - low


def line(row: Row, asked: argparse.Namespace) -> dict[str, Any]:
    """A row of the table; what is not known is None."""
    out, budget = asked.out / row.name, _of_row(asked.core_hours, row)
    found: dict[str, Any] = dict.fromkeys(_COLUMNS)
    found |= {"row": row.name, "changes": " ".join(f"{name}={value}" for name, value in row.changes.items())}
    content = _checkpoint(out) if (out / "checkpoints").is_dir() else None
    if content is None:
        return found | {"state": "not begun"}
    config, progress = TrainConfig.read(out / "config.yaml"), content["progress"]
    images, epochs, spent = content["arguments"]["extra"]["images"][1], progress["epochs"], core_seconds(out)
    over = budget is not None and _is_spent(budget, spent)
    found |= {
        "state": "finished" if finished(out) else "core-hours spent" if over else "stopped",
        "epochs": f"{len({each['epoch'] for each in epochs})} of {config.epochs}", "core_seconds": spent,
        "wall_seconds": sum({each["epoch"]: each["seconds"] for each in epochs}.values()),
    }  # fmt: skip
    if epochs:
        found |= zip(("last", "last_low", "last_high"), _accuracy(epochs[-1]["val_top1_error"], images), strict=True)
    dense = read_results(out / "metrics.json").get("evaluation", {}).get("dense, one scale")
    if dense:
        names = ("best_dense", "best_dense_low", "best_dense_high")
        found |= zip(names, _accuracy(dense["top1_error"], images), strict=True)
    return found


# ---- the table -----------------------------------------------------------------------------------------------------


def write_table(asked: argparse.Namespace, rows: Sequence[Row], extra: Sequence[str]) -> list[dict[str, Any]]:
    """OUT/table.json, table.csv and table.md, each at once; the lines."""
    lines = [line(row, asked) for row in rows]
    for each in lines:
        if code := asked.failed.get(each["row"]):
            each["state"] = f"failed, exit code {code}"
    budgets = {name or "each": hours for name, hours in asked.core_hours.items()}
    what = {"table": asked.table, "data": asked.data, "extra": list(extra), "core_hours": budgets, "rows": lines}
    write_json(asked.out / "table.json", {**what, "environment": environment(1)})

    def write_csv(temporary: Path) -> None:
        with open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, _COLUMNS)
            writer.writeheader()
            writer.writerows(lines)

    write_atomically(asked.out / "table.csv", write_csv)
    text = markdown(asked.table, lines)
    write_atomically(asked.out / "table.md", lambda temporary: temporary.write_text(text, encoding="utf-8"))
    return lines


def markdown(table: str, lines: Sequence[Mapping[str, Any]]) -> str:
    right = "boxes with an IoU over 0.5" if table == "boxes" else "top-1 accuracy"
    header = ["row", "epochs", "wall s", "core s", f"{right}, last epoch, centre crop, % (95 %)"]
    if table != "boxes":
        header.append("best epoch, dense, % (95 %)")
    header += ["state", "changes"]

    def percent(each: Mapping[str, Any], name: str) -> str:
        if each[name] is None:
            return "-"
        return f"{each[name]:.2f} ({each[f'{name}_low']:.1f}-{each[f'{name}_high']:.1f})"

    cells = [
        [each["row"], each["epochs"] or "-", *("-" if each[name] is None else f"{each[name]:.0f}"
                                               for name in ("wall_seconds", "core_seconds")), percent(each, "last"),
         *([] if table == "boxes" else [percent(each, "best_dense")]), each["state"], each["changes"]]
        for each in lines
    ]  # fmt: skip
    return "".join(f"| {' | '.join(row)} |\n" for row in [header, ["---"] * len(header), *cells])


# ---- the runs ------------------------------------------------------------------------------------------------------


def _is_spent(hours: float, seconds: float) -> bool:
    """A rest of less than 1 % is no session of its own."""
    return seconds > 0.99 * 3600 * hours


def train(row: Row, asked: argparse.Namespace, extra: Sequence[str], deadline: float, lock: TextIO) -> None:
    """Trains a row until it is finished, fails, its core-hours are spent, or the time of all is over."""
    out, hours = asked.out / row.name, _of_row(asked.core_hours, row)
    while not finished(out) and time.monotonic() < deadline:
        seconds = deadline - time.monotonic()
        if hours is not None:
            spent = core_seconds(out)
            if _is_spent(hours, spent):
                return
            seconds = min(seconds, (3600 * hours - spent) / (os.cpu_count() or 1))
        limit = [] if seconds == float("inf") else ["--stop-after", f"{max(seconds, 0.001):.3f}s"]
        command = [sys.executable, "-m", "vggfast", "train", *arguments(row, asked, extra), *limit]
        print(f"{row.name}: {' '.join(command[1:])}", flush=True)
        code = _call(command, lock)
        if code not in (0, OUT_OF_TIME):
            asked.failed[row.name] = code
            return


def _call(command: Sequence[str], lock: TextIO) -> int:
    """The exit code of a command, which keeps the lock where it outlives this process, as a kill may let it."""
    return subprocess.run(command, pass_fds=[lock.fileno()]).returncode


def _of_row(values: Mapping[str, float], row: Row) -> float | None:
    return values.get(row.name, values.get(""))


def _by_row(texts: Sequence[str], rows: Sequence[str], option: str, whole: bool) -> dict[str, float]:
    """{row, or "" for all others: number} of texts such as 20 and A=10."""
    kind = "whole numbers" if whole else "numbers"
    found = {}
    for text in texts:
        name, equals, number = text.rpartition("=")
        try:
            found[name] = float(number)
        except ValueError:
            found[name] = -1.0
        if (equals and name not in rows) or found[name] <= 0 or (whole and not found[name].is_integer()):
            raise SystemExit(
                f"{option} must be {kind} above 0, or ROW=NUMBER with a row of {', '.join(rows)}, got {text}"
            )
    return found


def _parse(texts: Sequence[str] | None) -> tuple[argparse.Namespace, list[Row], list[str]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)  # fmt: skip
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("--data", required=True, help="images, as vggfast train takes them")
    parser.add_argument("--out", required=True, type=Path, help="folder of the runs and of the table")
    parser.add_argument("--rows", nargs="+", help="only these rows")
    parser.add_argument("--start", type=Path, help="for boxes: the classification network that all start from")
    parser.add_argument("--epochs", nargs="+", default=[], metavar="N", help="of all rows, or ROW=N")
    parser.add_argument("--core-hours", nargs="+", default=[], metavar="H", help="largest of each row, or ROW=H")
    parser.add_argument("--stop-after", type=parse_duration, default=float("inf"), metavar="TIME",
                        help="of this session, such as 8h")  # fmt: skip
    asked, extra = parser.parse_known_args(texts)
    names = [row.name for row in TABLES[asked.table]]
    if odd := [name for name in asked.rows or () if name not in names]:
        parser.error(f"--rows must be of {', '.join(names)}, got {' '.join(odd)}")
    if (asked.table == "boxes") != (asked.start is not None):
        parser.error(f"--start is for boxes, which need it, got {asked.table} and {asked.start}")
    asked.epochs = _by_row(asked.epochs, names, "--epochs", True)
    asked.core_hours = _by_row(asked.core_hours, names, "--core-hours", False)
    asked.failed = {}
    return asked, [row for row in TABLES[asked.table] if row.name in (asked.rows or names)], extra


def _ready(start: Row, asked: argparse.Namespace) -> bool:
    """Whether another row may start from this one."""
    return line(start, asked)["state"] in _DONE and (asked.out / start.name / "model.safetensors").is_file()


def main(texts: Sequence[str] | None = None) -> int:
    asked, rows, extra = _parse(texts)
    deadline, by_name = time.monotonic() + asked.stop_after, {row.name: row for row in TABLES[asked.table]}
    asked.out.mkdir(parents=True, exist_ok=True)
    with open(asked.out / "lock", "w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SystemExit(f"--out is {asked.out}, in which another process still trains") from None
        for row in rows:
            if row.start and not _ready(by_name[row.start], asked):
                print(f"{row.name}: waits for {row.start}, from whose layers it starts", flush=True)
                continue
            train(row, asked, extra, deadline, lock)
            write_table(asked, rows, extra)
        lines = write_table(asked, rows, extra)
    print(markdown(asked.table, lines), end="")
    if asked.failed:
        return 1
    return 0 if all(each["state"] in _DONE for each in lines) else OUT_OF_TIME


if __name__ == "__main__":
    sys.exit(main())
