"""Screenshots of every page of the dashboard, in both themes and at several widths.

`python scripts/dashboard_screenshots.py --out shots` starts an emulated admin API and a dashboard, and takes them with
Chromium. `--api URL --inference-api URL` (token in GRIDSERVE_ADMIN_TOKEN) takes them of a running server instead.
"""

from __future__ import annotations

import argparse
import contextlib
import os
from pathlib import Path

from dashboard_browser import ROOT, browser, dashboard, emulated_api, open_page, outside
from playwright.sync_api import Browser, Page

HEIGHTS = {1280: 1000, 1920: 1080, 820: 1180}
"""A laptop, a wall screen, a tablet."""
ECHARTS, VEGA = "[data-testid=stEChartsChart] canvas", "[data-testid=stVegaLiteChart] .marks"
CHARTS = {"overview": ECHARTS, "gpus": ECHARTS, "serving": ECHARTS, "carbon": ECHARTS, "experiments": VEGA}
PAGES = {
    "overview": "Energy per token",
    "gpus": "Where the",
    "serving": "KV cache",
    "carbon": "Quality of each level",
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


def prepare(page: Page, name: str, question: str | None) -> None:
    """What only a click shows: an answer in the chat, one request's life, the check of the chain."""
    if name == "chat" and question:
        page.get_by_text("side by side").click()
        page.get_by_label("Prompt").fill(question)
        page.get_by_role("button", name="Send").click()
        page.get_by_text("directive given").nth(2).wait_for(timeout=120_000)
    if name == "audit":
        page.get_by_role("button", name="Check the hash chain").click()
        page.get_by_text("The chain").first.wait_for(timeout=60_000)
    if name == "requests":
        # The table is a canvas: its first row's box to tick.
        page.get_by_test_id("stDataFrame").first.click(position={"x": 16, "y": 54})
        page.get_by_text("Policy revision").first.wait_for(timeout=60_000)


def shoot(
    chromium: Browser, link: str, out: Path, names: list[str], width: int, themes: list[str], question: str
) -> None:
    for theme in themes:
        viewport = {"width": width, "height": HEIGHTS.get(width, 1000)}
        context = chromium.new_context(viewport=viewport, color_scheme=theme)  # type: ignore[arg-type]
        left = outside(context)
        page = context.new_page()
        for name in names:
            open_page(page, link, name, PAGES[name])
            if name in CHARTS and not (name == "experiments" and page.get_by_text("--experiments DIR").count()):
                page.locator(CHARTS[name]).last.wait_for(timeout=60_000)
            page.wait_for_timeout(2500)
            with contextlib.suppress(Exception):
                prepare(page, name, question)
            page.wait_for_timeout(500)
            path = out / f"dashboard-{name}-{theme}-{width}.png"
            page.screenshot(path=path)
            print(path.name, flush=True)
        context.close()
        if left:
            raise RuntimeError(f"the page asked outside: {left}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "dashboard")
    parser.add_argument("--api", help="a running admin API; without it an emulated one")
    parser.add_argument("--inference-api", help="with --api, for the chat page")
    parser.add_argument("--condition", default="live", help="of the emulated API (%(default)s)")
    parser.add_argument("--page", action="append", choices=list(PAGES), help="only this page")
    parser.add_argument("--width", type=int, action="append", help="1280, 1920 and 820 (a tablet) by default")
    parser.add_argument("--theme", action="append", choices=("light", "dark"), help="both by default")
    parser.add_argument("--question", default="Why is the sky blue?", help="asked on the chat page")
    parser.add_argument("--experiments", type=Path)
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
        for width in arguments.width or list(HEIGHTS):
            names, themes = arguments.page or list(PAGES), arguments.theme or ["light", "dark"]
            shoot(chromium, link, arguments.out, names, width, themes, arguments.question)


if __name__ == "__main__":
    main()
