"""The command ``vggfast``: a module per command."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import os
import shutil
import sys
import textwrap
from collections.abc import Sequence

from vggfast._version import __version__
from vggfast.cli.errors import UsageError, plain_output, rank, tell
from vggfast.cli.extras import advice
from vggfast.cli.help import describe
from vggfast.cli.options import check_written
from vggfast.cli.spelling import british, near_options

# By what they are for, the commands: the module that has add_arguments(parser) and run(parsed) -> exit code, and a line
# about it. A module is imported when its command is called, so that each command needs its own packages and no others.
GROUPS = {
    "train networks and measure them": {
        "train": ("vggfast.cli.train", "train a network with the paper's recipe"),
        "eval": ("vggfast.cli.eval", "measure the top-1 and top-5 error of trained networks"),
        "report": ("vggfast.cli.report", "write an HTML page about a training run, finished or not, or an evaluation"),
        "reproduce": ("vggfast.cli.reproduce", "run a table of the paper, and print it beside the paper's figures"),
        "cache": (
            "vggfast.cli.cache",
            "decode and resize a data set once, so that training need not do it in each epoch",
        ),
    },
    "use networks": {
        "predict": ("vggfast.cli.predict", "name the likeliest classes of image files"),
        "localise": (
            "vggfast.cli.localise",
            "find the boxes of objects in images, or measure how often they are wrong",
        ),
        "features": ("vggfast.cli.features", "extract the features of a data set, at any layer and several scales"),
        "svm": ("vggfast.cli.svm", "train linear SVMs on features, and print how well they recognise classes"),
        "stylise": ("vggfast.cli.stylise", "give a picture the style of another"),
    },
    "weights, and this machine": {
        "convert": ("vggfast.cli.convert", "convert networks from and to the files of other frameworks"),
        "weights": ("vggfast.cli.weights", "download published weights, once"),
        "info": (
            "vggfast.cli.info",
            "print what is installed here: versions, build, devices, instruction set, packages",
        ),
    },
}
_COMMANDS = {name: command for group in GROUPS.values() for name, command in group.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command line.

    Returns:
        The process' exit code: 0 done, 1 an error (one line on stderr), 2 wrong usage or a package that is not
        installed, 128 + number where a signal stopped it.
    """
    with plain_output():
        return _guarded(list(sys.argv[1:] if arguments is None else arguments))


def _guarded(arguments: list[str]) -> int:
    arguments = british(arguments, _COMMANDS)
    try:
        return _run(arguments)
    except UsageError as error:
        tell(str(error))
        return 2
    except (OSError, ValueError, TypeError, FloatingPointError, ImportError, RuntimeError) as error:
        if os.environ.get("VGGFAST_TRACEBACK"):
            raise
        needed = advice(arguments[0], error)
        tell(" ".join((needed or str(error)).split()))
        return 2 if needed else 1
    except KeyboardInterrupt as error:
        tell(str(error) or "interrupted")
        return getattr(error, "exit_code", 130)


def _run(arguments: list[str]) -> int:
    # All ranks of torchrun's get the same command line: one of them explains it.
    quiet = io.StringIO() if rank() else None
    with contextlib.redirect_stdout(quiet or sys.stdout), contextlib.redirect_stderr(quiet or sys.stderr):
        parser = argparse.ArgumentParser(prog="vggfast", usage="vggfast COMMAND ...")
        describe(parser, _overview(), "vggfast train --data digits --out runs/demo", "vggfast train --help")
        parser.add_argument("--version", action="version", version=f"vggfast {__version__}")
        commands = parser.add_subparsers(required=True, metavar="COMMAND", prog="vggfast", help=argparse.SUPPRESS)
        if not arguments:
            parser.print_help(sys.stderr)
            return 2
        for name, (module, _) in _COMMANDS.items():
            command = commands.add_parser(name, allow_abbrev=False)
            if arguments[:1] == [name]:
                chosen = importlib.import_module(module)
                chosen.add_arguments(command)
        parsed, unknown = parser.parse_known_args(arguments)
        if unknown:
            command = commands.choices.get(arguments[0], parser)
            near = near_options(unknown, command.format_help())
            meant = f"; did you mean {', '.join(near)}?" if near else ""
            command.error(f"unrecognized arguments: {' '.join(unknown)}{meant}")
    check_written(parsed)
    return chosen.run(parsed)


def _overview() -> str:
    """What the commands are for, a line each."""
    width = shutil.get_terminal_size().columns - 2
    parts = ["VGG networks on hand-written kernels. Each command explains itself with --help; commands and options may "
             "be spelt the American way, too (localize, --optimizer)."]  # fmt: skip
    for title, group in GROUPS.items():
        lines = (
            textwrap.fill(text, width, initial_indent=f"    {name:<11}", subsequent_indent=" " * 15)
            for name, (_, text) in group.items()
        )
        parts.append("\n".join([f"{title}:", *lines]))
    return "\n\n".join(parts)
