"""What the dashboard costs its reader: the browser's main thread and heap, and the times to paint.

    python scripts/dashboard_measure.py --seconds 60       overview at 1 Hz, 15 minutes of data

Against an emulated admin API, whose series are full from the start. One JSON object is printed. Run it on a quiet
machine. What open dashboards do to inference: `dashboard_inference.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from typing import Any

import numpy as np
from dashboard_browser import browser, dashboard, dashboard_process, emulated_api, outside
from playwright.sync_api import Browser, CDPSession

CANVAS = "[data-testid=stEChartsChart] canvas"


def metrics(session: CDPSession) -> dict[str, float]:
    session.send("HeapProfiler.collectGarbage")
    return {each["name"]: each["value"] for each in session.send("Performance.getMetrics")["metrics"]}


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    arguments = parser.parse_args()
    found: dict[str, Any] = {"machine": f"{platform.machine()}, {os.cpu_count()} CPUs", "date": time.strftime("%F")}
    with (
        emulated_api("live") as api,
        dashboard(api, api, "admin") as link,
        browser() as chromium,
    ):
        found |= measure_browser(chromium, link, arguments.seconds)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
