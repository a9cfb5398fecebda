"""`gridserve dashboard`: the operator dashboard, its own process and a client of the admin API."""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from typing import TYPE_CHECKING

from serving.commands import CommandError

if TYPE_CHECKING:
    from serving.commands import Subparsers

EXAMPLES = """examples:
  GRIDSERVE_ADMIN_TOKEN=... gridserve dashboard --api http://127.0.0.1:9000 --port 8501
  gridserve dashboard --access proxy --users users.toml --host 0.0.0.0 --allowed-host ops.example.org
  gridserve dashboard --access oidc --users users.toml --secrets secrets.toml
"""


def register(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "dashboard",
        help="the operator dashboard",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--api", metavar="URL", help="the admin API (http://127.0.0.1:9000)")
    parser.add_argument("--inference-api", metavar="URL", help="for the chat page (http://127.0.0.1:8000)")
    parser.add_argument("--host", help="address to listen on (127.0.0.1)")
    parser.add_argument("--port", type=int, help="(8501)")
    parser.add_argument("--access", choices=("local", "proxy", "oidc"), help="who may open it (local)")
    parser.add_argument("--users", metavar="FILE", help="roles of users, for proxy and oidc access")
    parser.add_argument("--secrets", metavar="FILE", help="TOML with [auth], for oidc access")
    parser.add_argument("--user-header", metavar="NAME", help="with proxy access (X-Forwarded-Email)")
    parser.add_argument("--allowed-host", action="append", metavar="NAME", help="Host header to serve")
    parser.add_argument("--experiments", metavar="DIR", help="result folders for the experiments page")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    if importlib.util.find_spec("dashboard") is None or importlib.util.find_spec("streamlit") is None:
        raise CommandError("the dashboard is not installed here; install gridserve with its dependencies")
    command = [sys.executable, "-m", "dashboard"]
    for name in ("api", "inference_api", "host", "port", "access", "users", "secrets", "user_header", "experiments"):
        value = getattr(arguments, name)
        if value is not None:
            command += [f"--{name.replace('_', '-')}", str(value)]
    for host in arguments.allowed_host or ():
        command += ["--allowed-host", host]
    sys.stdout.flush()
    os.execv(sys.executable, command)  # noqa: S606
