"""What the commands share: options, the run of one case after the other, and the files they leave."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timing
from gpu import choice

from peers import report
from peers.network import Spec, default_cache
from peers.race import Outcome, race
from peers.registry import ISAS, WAITS, Engine, with_before
from vggfast.console import ProgressBar, console

PACKAGES = ("torch", "torchao", "onnxruntime", "onnx", "openvino", "nncf", "ncnn", "MNN", "ai-edge-litert", "numpy")


@dataclass(frozen=True)
class Case:
    """A race to run: which engines, on what, how often."""

    spec: Spec
    engines: Sequence[Engine]
    rounds: int
    name: str


def add_common(parser: argparse.ArgumentParser, engines: Sequence[str], out: str, seconds: float) -> None:
    """The options that every command of races has."""
    add = parser.add_argument
    # fmt: off
    add("--device", choices=("cpu", "cuda"), default="cpu", help=choice.HELP)
    add("--engines", nargs="+", metavar="NAME", help=f"engines to compare: {', '.join(engines)}")
    add("--threads", nargs="+", type=int, metavar="N", help="threads of each engine (default 2 1)")
    add("--rounds", type=int, metavar="N", help="samples of each engine (default 9 or fewer, by case)")
    add("--seconds", type=float, default=seconds, metavar="S",
        help="take fewer rounds, but at least 3, where one case would take longer (default %(default).0f)")
    add("--isa", choices=ISAS, default="best",
        help="instruction set: the machine's best, or AVX2 for vggfast and torch (default best)")
    add("--wait", choices=WAITS, default="own",
        help="how threads wait for work: as each engine does, or all passively (default own)")
    add("--cache", type=Path, default=default_cache(), metavar="DIR",
        help="folder for weights, references and converted models (default %(default)s)")
    add("--before", type=Path, metavar="DIR",
        help="another checkout of vggfast, built in place: each engine of ours is raced against the same of that one")
    add("--quick", action="store_true",
        help="a few cases and rounds to see that it works; writes no file unless --out names one")
    add("--out", type=Path, metavar="FILE", help=f"JSON of every sample (default {out})")
    add("--plot", type=Path, metavar="FILE", help="PNG or SVG (default: PNG beside --out)")
    # fmt: on


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str] | None, out: str) -> argparse.Namespace:
    """The options, checked; files get their default names."""
    options = parser.parse_args(arguments)
    if options.rounds is not None and options.rounds < 3:
        parser.error(f"--rounds must be at least 3 (quartiles are taken), got {options.rounds}")
    if not options.quick and options.out is None:
        options.out = Path(out)
    options.cache = options.cache.resolve()  # engines of another checkout run in its folder
    if options.before and not list(options.before.glob("vggfast/_C*.so")):
        parser.error(f"--before must be a checkout of vggfast that is built in place, got {options.before}")
    if options.plot is None and options.out is not None:
        options.plot = options.out.with_suffix(".png")
    if options.isa == "avx2":
        os.environ["VGGFAST_CPU_ISA"] = "avx2"  # what the result file then says, too
    return options


def versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Installed versions of the engines' packages."""
    from importlib import metadata

    found = {}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def run(
    cases: Sequence[Case], options: argparse.Namespace, reference: Callable[[Spec, Path], Path], heading: str
) -> list[tuple[Case, list[Outcome]]]:
    """Races the cases, prints a table of each, and writes the files after each, so that an interrupt loses little."""
    done: list[tuple[Case, list[Outcome]]] = []
    with ProgressBar("cases", len(cases)) as live:
        for case in cases:
            live.to(len(done), f"{case.name}: reference in float64")
            exact = reference(case.spec, options.cache)
            engines = with_before(case.engines, options.before) if options.before else case.engines
            outcomes = race(
                engines, case.spec, options.cache, exact, rounds=case.rounds, seconds=options.seconds,
                isa=options.isa, wait=options.wait,
                say=lambda text, case=case: live.to(len(done), f"{case.name}: {text}"),
            )  # fmt: skip
            done.append((case, outcomes))
            live.to(len(done), "")
            report.show(case.name, outcomes, case.spec)
            write(done, options, heading)
    for kind, path in (("samples", options.out), ("plot", options.plot)):
        if path:
            console.print(f"{kind}: {path}")
    return done


def write(done: Sequence[tuple[Case, list[Outcome]]], options: argparse.Namespace, heading: str) -> None:
    """The result file and the plot of what was run so far."""
    rows: list[dict[str, Any]] = []
    for case, outcomes in done:
        against = report.ratios(outcomes, "vggfast")
        for outcome in outcomes:
            ratio = against.get(outcome.engine.name)
            rows.append({**outcome.as_row(case.spec, options.isa), "time / vggfast's": ratio})
    if options.out:
        timing.write_results(options.out, rows, peers=versions(), wait=options.wait)
    if options.plot:
        report.plot(options.plot, [(case.name, case.spec, outcomes) for case, outcomes in done], heading)
