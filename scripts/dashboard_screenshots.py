"""Screenshots of every page of the dashboard in both themes, and what the overview costs the browser.

`python scripts/dashboard_screenshots.py --out docs/images` starts an emulated admin API and a dashboard, and takes them
with Chromium. `--api URL` (token in GRIDSERVE_ADMIN_TOKEN) takes them of a real one. `--measure SECONDS` measures the
overview instead: main thread, heap and time to the first tile.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright

ROOT = Path(__file__).parents[1]
CHROMIUM = "/usr/bin/chromium"
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PAGES = {
    "overview": "Energy per token",
    "gpus": "What each device draws",
    "serving": "Queue, batch, KV",
    "carbon": "Intensity of the grid",
    "requests": "Finished requests",
    "policies": "In force",
    "holds": "Place a hold",
    "budgets": "of the UTC day",
    "audit": "Decisions, actuations",
    "experiments": "Results that",
    "reports": "Recorded requests",
    "chat": "Answers stream",
    "feeds": "Feeds of zone",
    "alerts": "What is wrong now",
    "access": "You are",
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(url: str, seconds: float = 40.0) -> None:
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
        started.wait(15)


@contextlib.contextmanager
def emulated_api(condition: str) -> Iterator[str]:
    port = free_port()
    script = str(ROOT / "tests" / "dashboard" / "emulator.py")
    with process([sys.executable, script, "--port", str(port), "--condition", condition], {}):
        wait_for(f"http://127.0.0.1:{port}/v1/models")
        yield f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def dashboard(api: str, inference: str, token: str, *more: str) -> Iterator[str]:
    """The link that opens it."""
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "dashboard",
        "--api",
        api,
        "--inference-api",
        inference,
        "--port",
        str(port),
        *more,
    ]
    with process(command, {"GRIDSERVE_ADMIN_TOKEN": token}) as started:
        assert started.stdout is not None
        link = started.stdout.readline().split()[-1]
        wait_for(f"http://127.0.0.1:{port}/_stcore/health")
        yield link


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield chromium
        chromium.close()


def visit(page: Page, link: str, name: str) -> None:
    base, query = link.split("/?", 1)
    page.goto(f"{base}/{'' if name == 'overview' else name}?{query}")
    page.get_by_text(PAGES[name]).first.wait_for(timeout=20000)
    page.wait_for_timeout(2500)


def shoot(chromium: Browser, link: str, out: Path, names: list[str], width: int) -> None:
    for theme in ("light", "dark"):
        context = chromium.new_context(viewport={"width": width, "height": 1000}, color_scheme=theme)  # type: ignore[arg-type]
        page = context.new_page()
        for name in names:
            visit(page, link, name)
            page.screenshot(path=out / f"dashboard-{name}-{theme}.png")
            print(f"dashboard-{name}-{theme}.png", flush=True)
        context.close()


def measure(chromium: Browser, link: str, seconds: float) -> dict[str, Any]:
    page = chromium.new_context(viewport={"width": 1280, "height": 1000}).new_page()
    hosts: set[str] = set()
    page.on("request", lambda request: hosts.add(re.sub(r"^(\w+://[^/:]+).*", r"\1", request.url)))
    started = time.monotonic()
    page.goto(link)
    page.get_by_text("Energy per token").first.wait_for()
    first_paint_s = time.monotonic() - started
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable")
    page.wait_for_timeout(5000)
    before = _metrics(session)
    page.wait_for_timeout(seconds * 1000)
    after = _metrics(session)
    busy = (after["TaskDuration"] - before["TaskDuration"]) / (after["Timestamp"] - before["Timestamp"])
    return {
        "first_tile_s": round(first_paint_s, 2),
        "main_thread_busy": round(busy, 3),
        "heap_mb": [round(each["JSHeapUsedSize"] / 1e6, 1) for each in (before, after)],
        "dom_nodes": [int(each["Nodes"]) for each in (before, after)],
        "listeners": [int(each["JSEventListeners"]) for each in (before, after)],
        "seconds": seconds,
        "hosts": sorted(hosts),
    }


def _metrics(session: Any) -> dict[str, float]:
    session.send("HeapProfiler.collectGarbage")
    return {each["name"]: each["value"] for each in session.send("Performance.getMetrics")["metrics"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images")
    parser.add_argument("--api", help="a running admin API; without it an emulated one")
    parser.add_argument("--inference-api", help="with --api, for the chat page")
    parser.add_argument("--condition", default="live", help="of the emulated API (%(default)s)")
    parser.add_argument("--page", action="append", choices=list(PAGES), help="only this page")
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--experiments", type=Path)
    parser.add_argument("--measure", type=float, metavar="SECONDS", help="measure the overview for so long")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    more = ["--experiments", str(arguments.experiments)] if arguments.experiments else []
    with contextlib.ExitStack() as stack:
        if arguments.api:
            api, token = arguments.api, os.environ["GRIDSERVE_ADMIN_TOKEN"]
        else:
            api, token = stack.enter_context(emulated_api(arguments.condition)), "admin"
        link = stack.enter_context(dashboard(api, arguments.inference_api or api, token, *more))
        chromium = stack.enter_context(browser())
        if arguments.measure:
            print(json.dumps(measure(chromium, link, arguments.measure), indent=2))
        else:
            shoot(chromium, link, arguments.out, arguments.page or list(PAGES), arguments.width)


if __name__ == "__main__":
    main()
