"""Options that several commands share."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vggfast.cli.errors import UsageError

if TYPE_CHECKING:
    from vggfast.distributed import DistributedContext
    from vggfast.evaluate.networks import Network

_BYTES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def add_models(parser: argparse.ArgumentParser) -> None:
    """The options --models, --model, --classes, --fusion; :func:`open_models` reads them."""
    parser.add_argument("--models", metavar="FILE", type=Path, nargs="+", action="extend", default=[],
                        help="one or more networks: a run's model.safetensors, a checkpoint of a run, or a file that "
                        "vggfast convert wrote")  # fmt: skip
    parser.add_argument(
        "--model",
        metavar="FILE",
        type=Path,
        action="append",
        dest="models",
        help="the same for one network; may be given several times",
    )
    add_classes(parser)
    parser.add_argument("--fusion", choices=("average", "vote"), default="average",
                        help="how several networks choose the final class in --csv: by the average of their "
                        "posteriors, or by a vote, in which the first network decides a tie (default "
                        "average)")  # fmt: skip


def add_classes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--classes", metavar="FILE", type=Path,
                        help="a text file with the name of a class on each line, for networks whose files do not "
                        "name their classes")  # fmt: skip


def add_images(parser: argparse.ArgumentParser) -> None:
    """The options of what is evaluated, and how."""
    parser.add_argument(
        "--split", choices=("train", "val"), default="val", help="which images of the data set (default val)"
    )
    parser.add_argument("--no-flip", dest="flip", action="store_false", help="do not average with the mirror images")
    parser.add_argument("--on-bad-image", choices=("fail", "skip"), default="fail",
                        help="at an image that does not decode: stop (fail), or leave it out of the errors (skip) "
                        "(default fail)")  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="replace an evaluation with other settings in --out")
    add_machine(parser)


def add_machine(parser: argparse.ArgumentParser) -> None:
    """The options --memory and --device."""
    parser.add_argument("--memory", metavar="BYTES", type=parse_bytes, default=2 << 30,
                        help="memory for activations, such as 512M or 2G; larger images are computed in tiles, with "
                        "the same result (default 2G)")  # fmt: skip
    add_device(parser)


def add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto",
                        help="where to compute; auto takes a GPU for each process if there are any (default "
                        "auto)")  # fmt: skip


def start_alone(parsed: argparse.Namespace, name: str) -> DistributedContext:
    """The context of a command that is for one process.

    Raises:
        UsageError: torchrun started several.
        ValueError: there is no such device.
    """
    from vggfast.distributed import DistributedContext

    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UsageError(f"{name} is for one process: call it without torchrun")
    return DistributedContext.start(parsed.device)


@contextlib.contextmanager
def drawn(context: DistributedContext) -> Iterator[dict[str, Any]]:
    """Arguments `progress` and `warn` of an evaluation: bars and lines on the first rank, nothing on the others."""
    from vggfast.console import ProgressBars

    with ProgressBars(quiet=not context.main) as bars:
        yield {"progress": bars, "warn": lambda text: bars.line(f"warning: {text}; it counts in no error")}


_WRITTEN = ("out", "json", "csv", "sheet")
_POSITIONAL = {"source": "SOURCE", "images": "IMAGE"}


def check_written(parsed: argparse.Namespace) -> None:
    """Raises UsageError where two files that a command writes are one, or where it reads what it writes.

    And OSError where a file cannot be written: it would show after all the work.
    """
    from vggfast.io import check_writable

    positional = _POSITIONAL | ({"out": "OUT"} if "source" in parsed else {})
    seen: list[tuple[str, Path]] = []
    for name, value in sorted(vars(parsed).items(), key=lambda item: item[0] in _WRITTEN):  # what is read comes first
        option = positional.get(name, f"--{name.replace('_', '-')}")
        paths = [path for path in (value if isinstance(value, list) else [value]) if isinstance(path, Path)]
        if name in _WRITTEN:
            for other, path in itertools.product(seen, paths):
                if _same(other[1], path):
                    raise UsageError(f"{option} must be another file than {other[0]}, got {path} for both")
            if name != "out":  # which may be a folder; who makes it says so at once
                for path in paths:
                    check_writable(path)
        seen += [(option, path) for path in paths]


def _same(a: Path, b: Path) -> bool:
    try:
        return a.resolve() == b.resolve() or a.samefile(b)
    except OSError:  # one is not there, or no path that can be: who opens it says so
        return False


def parse_bytes(text: str) -> int:
    """A number of bytes, with K, M or G behind it for 2^10, 2^20 or 2^30."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMG]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if not match or float(match[1]) == 0:
        raise argparse.ArgumentTypeError(f"must be a number of bytes, such as 512M or 2G, got {text!r}")
    return int(float(match[1]) * _BYTES[match[2].upper()])


def parse_duration(text: str) -> float:
    """Seconds, of a time such as 90s, 30m or 2h."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text.strip())
    if not match or float(match[1]) == 0:
        raise argparse.ArgumentTypeError(f"must be a time such as 90s, 30m or 2h, got {text!r}")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]


def open_models(parsed: argparse.Namespace) -> list[Network]:
    """The networks that are asked for.

    Raises:
        UsageError: none is.
        FileNotFoundError, ValueError: as :func:`vggfast.evaluate.networks.open_networks`.
    """
    from vggfast.data.sources.listing import read_classes
    from vggfast.evaluate.networks import open_networks

    if not parsed.models:
        raise UsageError("--models must be given: one file or more")
    return open_networks(parsed.models, read_classes(parsed.classes) if parsed.classes else None)
