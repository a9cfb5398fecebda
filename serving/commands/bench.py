"""`gridserve bench NAME`: benchmarks, imported only when asked for."""

from __future__ import annotations

import argparse
import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from serving.commands import Subparsers

BENCHMARKS: dict[str, str] = {}


def register(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser("bench", help="benchmarks beside peers", description=__doc__, add_help=False)
    parser.add_argument("name", choices=sorted(BENCHMARKS), help="which benchmark")
    parser.add_argument("rest", nargs=argparse.REMAINDER, help="its own options; try `gridserve bench NAME --help`")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    module = importlib.import_module(f"bench.{arguments.name}")
    return int(module.main(arguments.rest))
