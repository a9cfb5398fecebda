"""`gridserve keys create|list|revoke`: API keys of the inference API, in a file that holds their hashes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from serving.commands import CommandError

if TYPE_CHECKING:
    from serving.commands import Subparsers

EXAMPLES = """examples:
  gridserve keys create research --file keys.txt   prints the key, once
  gridserve keys list --file keys.txt
  gridserve keys revoke research --file keys.txt   takes effect without a restart
"""


def register(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "keys",
        help="API keys of the inference API",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    create = actions.add_parser("create", help="make a key, store its hash and print it once")
    create.add_argument("name", help="whose key it is: letters, digits, '.', '_' and '-'")
    create.set_defaults(run=run_create)
    listing = actions.add_parser("list", help="names of the keys")
    listing.set_defaults(run=run_list)
    revoke = actions.add_parser("revoke", help="remove a key")
    revoke.add_argument("name", help="the name it was created under")
    revoke.set_defaults(run=run_revoke)
    for action in (create, listing, revoke):
        action.add_argument("--file", type=Path, required=True, metavar="F", help="the key file")


def run_create(arguments: argparse.Namespace) -> int:
    from serving.auth import check_name, generate_key, hash_key, write_keys

    keys = _read(arguments.file) if arguments.file.exists() else {}
    try:
        name = check_name(arguments.name)
    except ValueError as error:
        raise CommandError(str(error)) from None
    if name in keys:
        raise CommandError(f"{arguments.file} already has a key named {name!r}; revoke it first or take another name")
    key = generate_key()
    try:
        write_keys(arguments.file, keys | {name: hash_key(key)})
    except OSError as error:
        raise CommandError(f"{arguments.file} cannot be written: {error.strerror}") from None
    print(key)
    return 0


def run_list(arguments: argparse.Namespace) -> int:
    for name in _read(arguments.file):
        print(name)
    return 0


def run_revoke(arguments: argparse.Namespace) -> int:
    from serving.auth import write_keys

    keys = _read(arguments.file)
    if keys.pop(arguments.name, None) is None:
        raise CommandError(f"{arguments.file} has no key named {arguments.name!r}; see `gridserve keys list`")
    try:
        write_keys(arguments.file, keys)
    except OSError as error:
        raise CommandError(f"{arguments.file} cannot be written: {error.strerror}") from None
    return 0


def _read(path: Path) -> dict[str, str]:
    from serving.auth import read_keys

    try:
        return read_keys(path)
    except (OSError, ValueError) as error:
        raise CommandError(f"the key file cannot be read: {error}") from None
