"""What the commands of whole networks share on CUDA: options, the races, and the files they leave."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timing
from peers import command, report
from peers.network import ALLOWED, Spec, default_cache
from peers.race import Outcome, race
from peers.registry import Engine

from gpu import choice
from vggfast.console import ProgressBar, console

THREADS = min(8, os.cpu_count() or 1)  # of the host: they prepare and launch, no more


@dataclass(frozen=True)
class Case:
    """A race to run: which engines, on what."""

    spec: Spec
    engines: Sequence[Engine]
    name: str


def parser(
    description: str | None, name: str, engines: Sequence[str], batches: Sequence[int]
) -> argparse.ArgumentParser:
    """The options of a command whose results go to `name`-cuda.json."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = made.add_argument
    # fmt: off
    add("--device", choices=("cpu", "cuda"), default="cpu", help=choice.HELP)
    add("--dtype", choices=choice.DTYPES, default="bf16", help="of weights and activations (default bf16)")
    add("--batches", nargs="+", type=int, default=list(batches), metavar="N",
        help=f"images of a call (default {' '.join(map(str, batches))})")
    add("--network", choices=ALLOWED["network"], default="D", help="configuration (default D)")
    add("--size", type=int, default=224, metavar="N", help="height and width of the images (default 224)")
    add("--engines", nargs="+", metavar="NAME", help=f"engines to compare: {', '.join(engines)} (default: all)")
    add("--without", nargs="+", default=[], metavar="NAME", help="engines to leave out")
    add("--cache", type=Path, default=default_cache(), metavar="DIR",
        help="folder for weights and references (default %(default)s)")
    add("--out", type=Path, metavar="FILE", help=f"JSON (default {choice.out_file(name, 'bf16')}, named by dtype)")
    # fmt: on
    return made


def add_rounds(made: argparse.ArgumentParser) -> None:
    """The options of a command that times."""
    made.add_argument("--rounds", type=int, default=9, metavar="N", help="turns of each engine (default 9)")
    made.add_argument("--seconds", type=float, default=30.0, metavar="S",
                      help="fewer rounds, but at least 3, where one case would take longer (default 30)")  # fmt: skip


def parse(made: argparse.ArgumentParser, arguments: Sequence[str] | None, name: str) -> argparse.Namespace:
    """The options, checked; the result file gets its default name."""
    options = made.parse_args(arguments)
    if getattr(options, "rounds", 3) < 3:
        made.error(f"--rounds must be at least 3 (quartiles are taken), got {options.rounds}")
    if options.out is None:
        options.out = Path(choice.out_file(name, options.dtype))
    return options


def spec(options: argparse.Namespace, part: str, batch: int) -> Spec:
    return Spec(options.network, part, options.size, batch, THREADS, options.dtype)


def chosen(known: dict[str, Engine], options: argparse.Namespace, default: Sequence[str]) -> list[Engine]:
    """What --engines and --without leave.

    Raises:
        ValueError: there is no such engine.
    """
    for name in [*(options.engines or []), *options.without]:
        if name not in known:
            raise ValueError(f"engine must be one of {', '.join(known)}, got {name!r}")
    return [known[name] for name in options.engines or default if name not in options.without]


def title(spec: Spec, what: str) -> str:
    return f"{what}, {spec.network}, {spec.size}x{spec.size}, batch {spec.batch}, {spec.dtype}"


def run(
    cases: Sequence[Case], options: argparse.Namespace, reference: Callable[[Spec, Path], Path], heading: str
) -> None:
    """Races the cases, prints a table of each, and writes the files after each, so that an interrupt loses little.

    Raises:
        SystemExit: with status 1, after all of them, where vggfast was wrong or failed.
    """
    rows: list[dict[str, Any]] = []
    done: list[tuple[str, Spec, list[Outcome]]] = []
    bad: list[str] = []
    with ProgressBar("cases", len(cases)) as live:
        for case in cases:
            live.to(len(done), f"{case.name}: reference in float64")
            exact = reference(case.spec, options.cache)
            before = timing.gpu_state()
            outcomes = race(
                case.engines, case.spec, options.cache, exact, rounds=options.rounds, seconds=options.seconds,
                builders=THREADS, say=lambda text, case=case: live.to(len(done), f"{case.name}: {text}"),
            )  # fmt: skip
            clocks = {"before": before, "after": timing.gpu_state()}
            done.append((case.name, case.spec, outcomes))
            rows += [{**row, "clocks": clocks, "what": case.name} for row in as_rows(outcomes, case.spec)]
            bad += [f"{case.name}: {o.engine.name}: {o.status}: {o.reason}"
                    for o in outcomes if o.engine.ours and o.status != "timed"]  # fmt: skip
            live.to(len(done), "")
            report.show(case.name, outcomes, case.spec)
            timing.write_results(options.out, rows, peers=versions(), gpu=timing.gpu())
    report.plot(options.out.with_suffix(".png"), done, heading)
    console.print(f"samples: {options.out}")
    for line in bad:
        console.print(line)
    if bad:
        raise SystemExit(1)


def as_rows(outcomes: Sequence[Outcome], spec: Spec) -> list[dict[str, Any]]:
    against = report.ratios(outcomes, "vggfast")
    rows = []
    for outcome in outcomes:
        row = outcome.as_row(spec, "none")
        del row["case"]["isa"], row["taken_by_others"]
        rows.append({**row, "time / vggfast's": against.get(outcome.engine.name)})
    return rows


def versions() -> dict[str, str]:
    """Of the packages that run on a GPU here."""
    return command.versions(("torch", "triton", "jax", "jaxlib", "apex", "numpy"))
