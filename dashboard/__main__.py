"""`python -m dashboard`: Streamlit as its own process, with a configuration that gives nothing away.

Secrets come through the environment (`GRIDSERVE_ADMIN_TOKEN`, `GRIDSERVE_API_KEY`), never through arguments, which
other users of the machine can read.
"""

from __future__ import annotations

import argparse
import os
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path

from dashboard import access, settings

HERE = Path(__file__).parent


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m dashboard", description="The operator dashboard.")
    made.add_argument("--api", default=settings.DEFAULT_API, help="the admin API (%(default)s)")
    made.add_argument("--inference-api", default=settings.DEFAULT_INFERENCE_API, help="for the chat page (%(default)s)")
    made.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    made.add_argument("--port", type=int, default=8501, help="(%(default)s)")
    made.add_argument(
        "--access", choices=("local", "proxy", "oidc"), default="local", help="who may open it (%(default)s)"
    )
    made.add_argument("--users", type=Path, metavar="FILE", help="roles of users, for proxy and oidc access")
    made.add_argument("--secrets", type=Path, metavar="FILE", help="TOML with [auth], for oidc access")
    made.add_argument("--user-header", default=settings.DEFAULT_USER_HEADER, help="with proxy access (%(default)s)")
    made.add_argument("--allowed-host", action="append", default=[], metavar="NAME", help="Host header to serve")
    made.add_argument("--experiments", type=Path, metavar="DIR", help="result folders for the experiments page")
    return made


def options(
    host: str, port: int, allowed_hosts: Sequence[str], secrets_file: Path | None = None
) -> list[tuple[str, str]]:
    """Streamlit's options. `allowedHosts` names who may be asked for: an empty list would accept any."""
    hosts = (
        list(dict.fromkeys([host, *access.LOOPBACK, *allowed_hosts])) if access.is_loopback(host) else [*allowed_hosts]
    )
    return [
        ("server.address", host),
        ("server.port", str(port)),
        ("server.headless", "true"),
        *(("server.allowedHosts", name) for name in hosts),
        ("server.enableCORS", "true"),
        ("server.enableXsrfProtection", "true"),
        ("server.fileWatcherType", "none"),
        ("server.maxUploadSize", "1"),
        ("browser.gatherUsageStats", "false"),
        ("client.showErrorDetails", "none"),
        ("client.toolbarMode", "minimal"),
        ("logger.hideWelcomeMessage", "true"),
        ("runner.magicEnabled", "false"),
        # A full collection after each run of each fragment was two thirds of the process's time; Python's own suffice.
        ("runner.postScriptGC", "false"),
        ("theme.base", str(HERE / "theme.toml")),
        *([("secrets.files", str(secrets_file.resolve()))] if secrets_file is not None else []),
    ]


def check(arguments: argparse.Namespace) -> None:
    """Raises `ValueError` for a combination that would let strangers in or nobody."""
    if arguments.access == "local" and not access.is_loopback(arguments.host):
        raise ValueError("--access local listens on loopback only; use --access proxy or oidc to serve other machines")
    if arguments.access != "local":
        if arguments.users is None:
            raise ValueError(f"--access {arguments.access} needs --users FILE with a role for each user")
        access.read_users(arguments.users)
        if arguments.access == "oidc":
            if arguments.secrets is None:
                raise ValueError("--access oidc needs --secrets FILE with [auth], which names your identity provider")
            arguments.allowed_host.append(access.read_auth(arguments.secrets))
        if not access.is_loopback(arguments.host) and not arguments.allowed_host:
            raise ValueError("beyond loopback give --allowed-host NAME, the name people open the dashboard by")


def environment(arguments: argparse.Namespace, link_token: str) -> dict[str, str]:
    made = {
        settings.API: arguments.api,
        settings.INFERENCE_API: arguments.inference_api,
        settings.ACCESS: arguments.access,
        settings.USER_HEADER: arguments.user_header,
        settings.LINK_TOKEN: link_token,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(HERE.parent), os.environ.get("PYTHONPATH")])),
    }
    if arguments.users is not None:
        made[settings.USERS] = str(arguments.users.resolve())
    if arguments.experiments is not None:
        made[settings.EXPERIMENTS] = str(arguments.experiments.resolve())
    return made


def main(argv: Sequence[str] | None = None) -> int:  # noqa: RET503 - execve never returns
    """Becomes Streamlit; returns only on wrong usage."""
    arguments = parser().parse_args(argv)
    try:
        check(arguments)
    except ValueError as error:
        print(f"gridserve dashboard: {error}", file=sys.stderr)
        return 2
    link_token = secrets.token_urlsafe(24)
    url = f"http://{'[::1]' if arguments.host == '::1' else arguments.host}:{arguments.port}"
    if arguments.access == "local" and os.environ.get(settings.ADMIN_TOKEN):
        print(f"Dashboard: {url}/?token={link_token}", flush=True)
    else:
        print(f"Dashboard: {url}/", flush=True)
    command = [sys.executable, "-m", "dashboard.serve", "run", str(HERE / "app.py")]
    secrets_file = arguments.secrets if arguments.access == "oidc" else None
    told = options(arguments.host, arguments.port, arguments.allowed_host, secrets_file)
    command += [f"--{name}={value}" for name, value in told]
    os.execve(sys.executable, command, {**os.environ, **environment(arguments, link_token)})  # noqa: S606


if __name__ == "__main__":
    sys.exit(main())
