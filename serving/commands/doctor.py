"""`gridserve doctor`: what works on this host, and how to mend what does not."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from serving.commands import Subparsers

EXAMPLES = """examples:
  gridserve doctor                                          this host: kernels, power, ledger, ports
  gridserve doctor --policy policy.yaml --powerd /run/gridserve/powerd.sock
  gridserve doctor --json                                   for programs; exit status 1 when something is broken
"""
MARKS = {"ok": "ok", "warning": "!!", "problem": "XX"}


def register(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "doctor",
        help="what works on this host, and how to mend what does not",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", default="smollm2-135m-instruct", help="the model to be served (%(default)s)")
    parser.add_argument("--policy", type=Path, metavar="F", help="the policy; its feeds are asked once")
    parser.add_argument("--powerd", type=Path, metavar="SOCKET", help="where gridserve-powerd should answer")
    parser.add_argument("--ledger", type=Path, metavar="FOLDER", help="where the ledger is to be kept")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="of the inference API (%(default)s)")
    parser.add_argument("--admin-port", type=int, default=9000, help="of the admin API (%(default)s)")
    parser.add_argument("--json", action="store_true", help="one JSON array")
    parser.set_defaults(run=run_doctor)


def run_doctor(arguments: argparse.Namespace) -> int:
    """Print the checks as they are made; 1 when one found a problem."""
    from kernels.threads import configure_environment

    configure_environment()
    from serving.doctor import Subject, examine

    ports = (arguments.port, arguments.admin_port)
    subject = Subject(arguments.model, arguments.policy, arguments.powerd, arguments.ledger, arguments.host, ports)
    found = []
    for check in examine(subject):
        found.append(check)
        if not arguments.json:
            print(f"{MARKS[check.state]}  {check.name:12} {check.found}", flush=True)
            if check.fix is not None and check.state != "ok":
                print(f"    {'':12} -> {check.fix}", flush=True)
    if arguments.json:
        json.dump([dataclasses.asdict(check) for check in found], sys.stdout, indent=2)
        print()
    return int(any(check.state == "problem" for check in found))
