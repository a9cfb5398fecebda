"""The `gridserve` command: one parser, one module in `serving/commands` for each group of commands."""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import sys
from collections.abc import Sequence
from importlib import metadata

import serving.commands
from serving.commands import CommandError

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gridserve",
        description="Energy- and carbon-aware serving of large language models.",
        epilog="Exit status: 0 done, 1 failed, 2 wrong usage, 130 interrupted.",
    )
    parser.add_argument("--version", action="version", version=f"gridserve {metadata.version('gridserve')}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in sorted(pkgutil.iter_modules(serving.commands.__path__), key=lambda found: found.name):
        importlib.import_module(f"serving.commands.{module.name}").register(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status; errors a user can mend are one line on stderr."""
    arguments = build_parser().parse_args(argv)
    try:
        return int(arguments.run(arguments) or EXIT_OK)
    except CommandError as error:
        print(f"gridserve: {error}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()
        return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
