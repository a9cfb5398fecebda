"""`gridserve bench NAME`: benchmarks, each a module of `bench/` with `main(argv)`, imported only when asked for."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import pkgutil
from typing import TYPE_CHECKING

from serving.commands import CommandError

if TYPE_CHECKING:
    from serving.commands import Subparsers


def register(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser("bench", help="benchmarks beside peers", description=__doc__)
    parser.add_argument("name", choices=benchmark_names(), help="which benchmark")
    parser.add_argument("rest", nargs=argparse.REMAINDER, help="its own options; try `gridserve bench NAME --help`")
    parser.set_defaults(run=run)


def benchmark_names() -> list[str]:
    package = importlib.util.find_spec("bench")
    locations = package.submodule_search_locations if package else None
    return sorted(found.name for found in pkgutil.iter_modules(locations or []) if not found.name.startswith("_"))


def run(arguments: argparse.Namespace) -> int:
    module = importlib.import_module(f"bench.{arguments.name}")
    try:
        return int(module.main(arguments.rest))
    except ValueError as error:
        raise CommandError(str(error)) from error
