"""The command: see the package."""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from tests.fuzz import KINDS, watch
from tests.fuzz.worker import run_case
from vggfast.io import write_json


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz",
        description="Random inputs for whatever vggfast reads or is called with.",
        epilog="example: python -m tests.fuzz weights shards --minutes 30 --out fuzz.json",
    )
    parser.add_argument("kinds", nargs="*", default=KINDS, metavar="KIND", help=f"of {', '.join(KINDS)}; default: all")
    parser.add_argument("--minutes", type=float, default=10, help="for all kinds together (default: 10)")
    parser.add_argument("--seed", type=int, default=0, help="decides each case, with its number (default: 0)")
    parser.add_argument("--jobs", type=int, default=1, help="kinds that run at one time (default: 1)")
    parser.add_argument("--case", type=int, help="run this case alone, in this process")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="write counts and findings there")
    parsed = parser.parse_args()
    if odd := [kind for kind in parsed.kinds if kind not in KINDS]:
        parser.error(f"KIND must be one of {', '.join(KINDS)}, got {odd[0]}")
    if parsed.minutes <= 0:
        parser.error(f"--minutes must be greater than 0, got {parsed.minutes:g}")
    if parsed.jobs < 1:
        parser.error(f"--jobs must be at least 1, got {parsed.jobs}")
    if parsed.case is not None and len(parsed.kinds) != 1:
        parser.error("--case must be given with one KIND")
    return parsed


def main() -> int:
    parsed = _arguments()
    if parsed.case is not None:
        outcome, detail = run_case(parsed.kinds[0], parsed.seed, parsed.case)
        print(outcome, detail)
        return outcome in watch.BAD
    seconds = 60 * parsed.minutes * min(parsed.jobs, len(parsed.kinds)) / len(parsed.kinds)
    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[said]}"), TimeRemainingColumn()
    with Progress(*columns) as bars, ThreadPoolExecutor(parsed.jobs) as pool:

        def one(kind: str) -> watch.Result:
            bar = bars.add_task(kind, total=seconds, said="")

            def show(result: watch.Result) -> None:
                said = f"{result.cases} cases, {len(result.findings)} wrong"
                bars.update(bar, completed=bars.tasks[bar].elapsed or 0, said=said)

            return watch.run(kind, parsed.seed, seconds=seconds, progress=show)

        results = list(pool.map(one, parsed.kinds))
    _print(results)
    if parsed.out:
        found = [{**asdict(result), "counts": dict(result.counts), "cases": result.cases} for result in results]
        write_json(parsed.out, {"minutes": parsed.minutes, "jobs": parsed.jobs, "kinds": found})
    return any(result.findings for result in results)


def _print(results: list[watch.Result]) -> None:
    table = Table("kind", "cases", *watch.GOOD, *watch.BAD)
    for result in results:
        table.add_row(result.kind, str(result.cases), *(str(result.counts[name]) for name in (*watch.GOOD, *watch.BAD)))
    console = Console()
    console.print(table)
    for result in results:
        for finding in result.findings[:20]:
            last = finding.detail.strip().splitlines()[-1:] or [""]
            console.print(
                f"{finding.outcome}: python -m tests.fuzz {result.kind} --seed {result.seed} --case {finding.number}"
                f"\n    {last[0][:300]}",
                markup=False, highlight=False, soft_wrap=True,
            )  # fmt: skip
        if (more := len(result.findings) - 20) > 0:
            console.print(f"and {more} more of {result.kind}; --out FILE.json has them all")


if __name__ == "__main__":
    sys.exit(main())
