"""What the dashboard costs: the browser's main thread and heap, times to paint, and the latency of inference beside it.

    python scripts/dashboard_measure.py browser --seconds 60       overview at 1 Hz, 15 minutes of data
    python scripts/dashboard_measure.py inference --rounds 3       p95 of requests with no and with three sessions

`browser` measures against an emulated admin API, whose series are full from the start. `inference` starts a server on
the CPU with a simulated device and the embedded model; rounds without and with sessions take turns. Its browser, which
in operation runs on the operators' machines, gets only processor time that nobody else wants (`--browser-nice`);
`--undrawn` takes the drawing out too, and `--no-browser` the browser: sessions that speak the protocol remain. The
dashboard has the priority that `gridserve up` gives it (`--dashboard-nice`). `frames_per_s` shows whether the pages
tick all the same. One JSON object is printed. Run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import psutil
from dashboard_browser import at, browser, dashboard, emulated_api, outside, renice
from dashboard_sessions import SessionsProcess, sessions_process
from live_server import SIMULATED, LiveServer
from numpy.typing import NDArray
from playwright.sync_api import Browser, CDPSession, Page

from serving.up import DASHBOARD_NICENESS

TOKEN = "a-token-of-the-measurement"  # noqa: S105 - of a server that lives for this run
CANVAS = "[data-testid=stEChartsChart] canvas"
Latencies = NDArray[np.float64]


def metrics(session: CDPSession) -> dict[str, float]:
    session.send("HeapProfiler.collectGarbage")
    return {each["name"]: each["value"] for each in session.send("Performance.getMetrics")["metrics"]}


def dashboard_process(link: str) -> psutil.Process:
    port = urlsplit(link).port
    (found,) = (
        child
        for child in psutil.Process().children(recursive=True)
        if any(at.laddr.port == port and at.status == psutil.CONN_LISTEN for at in child.net_connections())
    )
    return found


class CpuShare:
    """Processor time of the dashboard's process, in cores, since this was made."""

    def __init__(self, link: str) -> None:
        self._process = dashboard_process(link)
        self._spent_s, self._began_s = self._total_s(), time.monotonic()

    def _total_s(self) -> float:
        times = self._process.cpu_times()
        return float(times.user + times.system)

    def __call__(self) -> float:
        return round((self._total_s() - self._spent_s) / (time.monotonic() - self._began_s), 3)


def first_paint(chromium: Browser, link: str) -> float:
    """Seconds from navigation to the first tile with a figure, in a fresh session and browser profile."""
    context = chromium.new_context(viewport={"width": 1280, "height": 1000})
    page = context.new_page()
    started = time.monotonic()
    page.goto(link)
    page.get_by_test_id("stMetricValue").first.wait_for(timeout=60_000)
    took = time.monotonic() - started
    context.close()
    return took


def measure_browser(chromium: Browser, link: str, seconds: float) -> dict[str, Any]:
    paints = [first_paint(chromium, link) for _ in range(4)]
    context = chromium.new_context(viewport={"width": 1280, "height": 1000})
    left = outside(context)
    page = context.new_page()
    page.goto(link)
    page.locator(CANVAS).first.wait_for(timeout=60_000)
    session = context.new_cdp_session(page)
    # CPU time of the main thread, so that what else the machine does is not counted.
    session.send("Performance.enable", {"timeDomain": "threadTicks"})
    page.wait_for_timeout(8000)
    samples, at_s, cpu = [metrics(session)], [time.monotonic()], CpuShare(link)
    for _ in range(10):
        page.wait_for_timeout(seconds * 100)
        samples.append(metrics(session))
        at_s.append(time.monotonic())
    first, last = samples[0], samples[-1]
    busy = (last["TaskDuration"] - first["TaskDuration"]) / (at_s[-1] - at_s[0])
    cpu_share = cpu()
    heap_mb = [each["JSHeapUsedSize"] / 1e6 for each in samples]
    ranges = [long_range(page) for _ in range(3)]
    context.close()
    return {
        "seconds": seconds,
        "first_useful_paint_s": {"first": round(paints[0], 2), "later": [round(each, 2) for each in paints[1:]]},
        "main_thread_cpu_share": round(busy, 3),
        "dashboard_process_cpu_share": cpu_share,
        "heap_mb": [round(each, 1) for each in heap_mb],
        "heap_mb_per_10_min": round(float(np.polyfit(at_s, heap_mb, 1)[0]) * 600, 2),
        "dom_nodes": [int(first["Nodes"]), int(last["Nodes"])],
        "listeners": [int(first["JSEventListeners"]), int(last["JSEventListeners"])],
        "range_24h_s": [round(each, 2) for each in ranges],
        "outside_requests": left,
    }


def long_range(page: Any) -> float:
    """Seconds from the click on 24 h until a chart of that range is drawn; then back to 15 minutes."""
    page.evaluate("() => performance.clearMarks()")
    started = time.monotonic()
    page.get_by_text("24 h", exact=True).click()
    page.get_by_text("Range: 24 h").wait_for(timeout=60_000)
    page.locator(CANVAS).first.wait_for(timeout=60_000)
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    took = time.monotonic() - started
    page.get_by_text("15 min", exact=True).click()
    page.get_by_text("Range: 15 min").wait_for(timeout=60_000)
    page.wait_for_timeout(1500)
    return took


@contextlib.contextmanager
def server(model: str) -> Iterator[LiveServer]:
    """One with policy, ledger and a simulated device; it observes, so that no clock slows it down."""
    from serving.up import working_copy

    with tempfile.TemporaryDirectory() as folder:
        policy = Path(folder, "policy.yaml")
        policy.write_text(working_copy().replace("mode: enforce", "mode: observe"), encoding="utf-8")
        options = ["--model", model, "--policy", str(policy), "--ledger", f"{folder}/ledger", "--device", SIMULATED]
        options += ["--threads", "1", "--max-model-len", "2048"]
        started = LiveServer("serve", *options, ready="gridserve serves", token=TOKEN)
        try:
            yield started
        finally:
            started.stop()


def latencies(url: str, requests: int) -> list[float]:
    """Seconds of each of `requests` answers of 16 tokens, one after another."""
    found = []
    with httpx.Client(base_url=url, timeout=60) as client:
        model = client.get("/v1/models").json()["data"][0]["id"]
        body = {"model": model, "max_tokens": 16, "temperature": 0, "messages": [{"role": "user", "content": "Hello"}]}
        for _ in range(requests):
            started = time.monotonic()
            client.post("/v1/chat/completions", json=body).raise_for_status()
            found.append(time.monotonic() - started)
    return found


COUNT_FRAMES = """
window.framesSeen = 0;
window.WebSocket = class extends window.WebSocket {
  constructor(...args) { super(...args); this.addEventListener("message", () => { window.framesSeen += 1; }); }
};
"""


class Sessions:
    """Three browser tabs: on the overview between `open` and `close`, on an empty page otherwise."""

    def __init__(self, chromium: Browser, link: str, drawn: bool) -> None:
        self._link = at(link, "overview")
        self._sign = CANVAS if drawn else "[data-testid=stMetricValue]"
        self.pages: list[Page] = []
        for _ in range(3):
            page = chromium.new_context(viewport={"width": 1280, "height": 1000}).new_page()
            if not drawn:
                page.route("**/EChartsChart*.js", lambda route: route.abort())
            page.add_init_script(COUNT_FRAMES)
            self.pages.append(page)

    def open(self) -> None:
        for page in self.pages:
            page.goto(self._link)
        for page in self.pages:
            page.locator(self._sign).first.wait_for(timeout=60_000)
        time.sleep(2)

    def close(self) -> None:
        for page in self.pages:
            page.goto("about:blank")
        time.sleep(2)

    def frames(self) -> int:
        """What the dashboard has sent to all three since they opened it: they tick, or they do not."""
        return sum(int(page.evaluate("window.framesSeen")) for page in self.pages)


class ProtocolSessions:
    """Three tabs that draw nothing, in a process that gives way to everybody."""

    def __init__(self, process: SessionsProcess) -> None:
        self._process = process
        process.usage.nice(19)

    def open(self) -> None:
        self._process.tell("open 3")
        time.sleep(2)

    def close(self) -> None:
        self._process.tell("close")
        time.sleep(2)

    def frames(self) -> int:
        return sum(int(each["messages"]) for each in self._process.tell("count"))


def measure_inference(
    sessions: Sessions | ProtocolSessions, link: str, url: str, requests: int, rounds: int
) -> dict[str, Any]:
    """Rounds without and with sessions, in the order ABBA..., so that a drift of the machine hits both."""
    latencies(url, 10)
    sessions.open()
    before, began, cpu = sessions.frames(), time.monotonic(), CpuShare(link)
    time.sleep(5)
    idle_rate, cpu_share = (sessions.frames() - before) / (time.monotonic() - began), cpu()
    found: dict[bool, list[float]] = {False: [], True: []}
    rates = []
    is_open = True
    for number in range(2 * rounds):
        wanted = number % 4 in (1, 2)
        if wanted != is_open:
            sessions.open() if wanted else sessions.close()
            is_open = wanted
        before, began = sessions.frames() if wanted else 0, time.monotonic()
        found[wanted] += latencies(url, requests)
        if wanted:
            rates.append((sessions.frames() - before) / (time.monotonic() - began))
    alone, beside = np.array(found[False]), np.array(found[True])
    return {
        "requests_each_way": len(alone),
        "p50_ms": [round(1000 * float(np.median(each)), 1) for each in (alone, beside)],
        "p95_ms": [round(1000 * float(np.percentile(each, 95)), 1) for each in (alone, beside)],
        "p50_change": round(float(np.median(beside) / np.median(alone)) - 1, 4),
        "p95_change": round(float(np.percentile(beside, 95) / np.percentile(alone, 95)) - 1, 4),
        "p95_change_90_percent_interval": interval(alone, beside),
        "dashboard_process_cpu_share": cpu_share,
        "frames_per_s": {"without_requests": round(idle_rate, 1), "with_requests": [round(each, 1) for each in rates]},
    }


def interval(alone: Latencies, beside: Latencies, draws: int = 2000) -> list[float]:
    """Bootstrap over requests."""
    random = np.random.default_rng(1)
    changes = [
        np.percentile(random.choice(beside, len(beside)), 95) / np.percentile(random.choice(alone, len(alone)), 95) - 1
        for _ in range(draws)
    ]
    return [round(float(np.percentile(changes, edge)), 4) for edge in (5, 95)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("browser", "inference"))
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--requests", type=int, default=60, help="in each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--browser-nice", type=int, default=19, help="of the browser with inference (%(default)s)")
    parser.add_argument(
        "--undrawn", action="store_true", help="the browser gets all of the charts' data and draws none of them"
    )
    parser.add_argument("--no-browser", action="store_true", help="sessions that speak the protocol and draw nothing")
    parser.add_argument("--dashboard-nice", type=int, default=DASHBOARD_NICENESS, help="(default: %(default)s)")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    arguments = parser.parse_args()
    found: dict[str, Any] = {"machine": f"{platform.machine()}, {os.cpu_count()} CPUs", "date": time.strftime("%F")}
    with contextlib.ExitStack() as stack:
        if arguments.what == "browser":
            api = stack.enter_context(emulated_api("live"))
            link = stack.enter_context(dashboard(api, api, "admin"))
            chromium = stack.enter_context(browser())
            found |= measure_browser(chromium, link, arguments.seconds)
        else:
            live = stack.enter_context(server(arguments.model))
            link = stack.enter_context(dashboard(live.admin, live.url, TOKEN))
            renice([dashboard_process(link)], arguments.dashboard_nice)
            sessions: Sessions | ProtocolSessions
            if arguments.no_browser:
                sessions = ProtocolSessions(stack.enter_context(sessions_process(link)))
            else:
                chromium = stack.enter_context(browser(arguments.browser_nice))
                sessions = Sessions(chromium, link, not arguments.undrawn)
            kind = "none" if arguments.no_browser else "undrawn" if arguments.undrawn else "drawn"
            found |= {"browsers": kind, "dashboard_nice": arguments.dashboard_nice}
            found |= measure_inference(sessions, link, live.url, arguments.requests, arguments.rounds)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
