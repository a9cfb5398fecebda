"""A dashboard process and a headless Chromium for it: shared by the scripts beside it and by the browser's tests."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psutil
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

ROOT = Path(__file__).parents[1]
NAMES = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
LOOPBACK = ("127.0.0.1", "localhost", "[::1]", "::1")


def chromium_path() -> str | None:
    """`$CHROMIUM`, or the first browser of that family on the path."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(url: str, seconds: float = 90.0) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(url, timeout=2).close()  # noqa: S310 - a loopback URL made here
            return
        time.sleep(0.2)
    raise RuntimeError(f"{url} did not answer within {seconds:.0f} s")


@contextlib.contextmanager
def process(command: list[str], environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    started = subprocess.Popen(command, cwd=ROOT, env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True)
    try:
        yield started
    finally:
        started.terminate()
        try:
            started.wait(15)
        except subprocess.TimeoutExpired:
            started.kill()
            started.wait(15)
        if started.stdout is not None:
            started.stdout.close()


@contextlib.contextmanager
def emulated_api(condition: str) -> Iterator[str]:
    port = free_port()
    script = str(ROOT / "tests" / "dashboard" / "emulator.py")
    with process([sys.executable, script, "--port", str(port), "--condition", condition], {}):
        wait_for(f"http://127.0.0.1:{port}/v1/models")
        yield f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def dashboard(api: str, inference: str, token: str, *more: str, port: int | None = None) -> Iterator[str]:
    """The link that opens it."""
    port = port or free_port()
    command = [sys.executable, "-m", "dashboard", "--api", api, "--inference-api", inference, "--port", str(port)]
    with process([*command, *more], {"GRIDSERVE_ADMIN_TOKEN": token}) as started:
        assert started.stdout is not None
        link = started.stdout.readline().split()[-1]
        wait_for(f"http://127.0.0.1:{port}/_stcore/health")
        yield link


def dashboard_process(link: str) -> psutil.Process:
    """The child of this process that listens where the link leads."""
    port = urlsplit(link).port
    (found,) = (
        child
        for child in psutil.Process().children(recursive=True)
        if any(at.laddr.port == port and at.status == psutil.CONN_LISTEN for at in child.net_connections())
    )
    return found


def renice(processes: list[psutil.Process], nice: int) -> None:
    """Every thread of them; what they start later inherits it."""
    for one in processes:
        for thread in one.threads():
            with contextlib.suppress(ProcessLookupError):
                os.setpriority(os.PRIO_PROCESS, thread.id, nice)


@contextlib.contextmanager
def browser(nice: int | None = None) -> Iterator[Browser]:
    """Raises `RuntimeError` where there is none. `nice`: of the browser alone; 19 leaves it the processor time that
    nobody else wants, which is as good as on another machine while there is enough of that."""
    path = chromium_path()
    if path is None:
        raise RuntimeError("no Chromium found; install the package `chromium` or set CHROMIUM")
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        if nice is not None:
            renice([child for child in psutil.Process().children(recursive=True) if child.pid not in before], nice)
        try:
            yield chromium
        finally:
            chromium.close()


def outside(context: BrowserContext) -> list[str]:
    """A list that grows by the URL of every request that leaves this machine; those are stopped."""
    found: list[str] = []

    def is_outside(url: str) -> bool:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https", "ws", "wss") and parts.hostname not in LOOPBACK

    def stop(route) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
        found.append(route.request.url)
        route.abort()

    context.route(is_outside, stop)
    return found


def at(link: str, name: str) -> str:
    """The link to one page; `overview` is the root."""
    base, query = link.split("/?", 1)
    return f"{base}/{'' if name == 'overview' else name}?{query}"


def open_page(page: Page, link: str, name: str, words: str, seconds: float = 60.0) -> None:
    """Go to a page and wait for words of its own."""
    page.goto(at(link, name))
    page.get_by_text(words).first.wait_for(timeout=seconds * 1000)
