"""What open dashboards do to the latency of inference: blocks with none and with three sessions, taking turns.

    python scripts/dashboard_inference.py --blocks 16 --out blocks.jsonl         sessions without a browser
    python scripts/dashboard_inference.py --browsers drawn --browser-nice 0      three Chromiums on the same machine

A server on the CPU with the embedded model, a ledger, a policy that observes and a simulated device answers a closed
loop of streams of one shape. The dashboard gives way as under `gridserve up`, or as `--priority` says: a niceness
beside the server's, or `idle` for SCHED_IDLE. A browser is its operator's machine's affair; sessions without one
(`dashboard_sessions.py`) leave what the service pays. With `--out` each block is a line of that file, and the result is
of all lines there, so that a measurement can be put together from several runs. Run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import httpx
import numpy as np
import psutil
from dashboard_browser import at, browser, dashboard, dashboard_process, renice
from dashboard_sessions import SessionsProcess, sessions_process
from live_server import SIMULATED, LiveServer
from numpy.typing import NDArray
from playwright.sync_api import Browser, Page

from serving.up import DASHBOARD_NICENESS, working_copy

TOKEN = "a-token-of-the-measurement"  # noqa: S105 - of a server that lives for this run
CANVAS = "[data-testid=stEChartsChart] canvas"
SETTLE_S = 2.0
# With the template around it, about 64 tokens of SmolLM2.
PROMPT = "Tell me about the number {} and what it has to do with rivers, bridges, towns and the people who live there."
FIGURES = ("request_s", "ttft_s", "gap_s")

Block = dict[str, Any]


@contextlib.contextmanager
def server(model: str, threads: int) -> Iterator[LiveServer]:
    """One with policy, ledger and a simulated device; it observes, so that no clock slows it down."""
    with tempfile.TemporaryDirectory() as folder:
        policy = Path(folder, "policy.yaml")
        policy.write_text(working_copy().replace("mode: enforce", "mode: observe"), encoding="utf-8")
        options = ["--model", model, "--policy", str(policy), "--ledger", f"{folder}/ledger", "--device", SIMULATED]
        options += ["--threads", str(threads), "--max-model-len", "2048"]
        started = LiveServer("serve", *options, ready="gridserve serves", token=TOKEN)
        try:
            yield started
        finally:
            started.stop()


class Load:
    """`streams` clients, each one stream after another; every prompt is a new one, so that no prefix is found again."""

    def __init__(self, url: str, streams: int, tokens: int) -> None:
        self._http = httpx.Client(base_url=url, timeout=120)
        self._model = self._http.get("/v1/models").json()["data"][0]["id"]
        self._streams, self._tokens = streams, tokens
        self._number = 1000
        self.prompt_tokens = 0

    def block(self, seconds: float) -> dict[str, list[float]]:
        """Every stream begun within `seconds`."""
        found: dict[str, list[float]] = {name: [] for name in FIGURES}
        until_s = time.monotonic() + seconds

        def client() -> None:
            while time.monotonic() < until_s:
                self._number += 1
                request_s, ttft_s, gaps_s = self._stream(self._number)
                found["request_s"].append(request_s)
                found["ttft_s"].append(ttft_s)
                found["gap_s"] += gaps_s

        threads = [threading.Thread(target=client) for _ in range(self._streams)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return found

    def _stream(self, number: int) -> tuple[float, float, list[float]]:
        body = {
            "model": self._model,
            "max_tokens": self._tokens,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            "messages": [{"role": "user", "content": PROMPT.format(number)}],
        }
        began_s, times_s, prompt_tokens = time.monotonic(), [], 0
        with self._http.stream("POST", "/v1/chat/completions", json=body) as answer:
            answer.raise_for_status()
            for line in answer.iter_lines():
                if '"delta":{"content":' in line:
                    times_s.append(time.monotonic())
                elif '"choices":[]' in line:
                    prompt_tokens = json.loads(line.removeprefix("data: "))["usage"]["prompt_tokens"]
        self.prompt_tokens = prompt_tokens
        return time.monotonic() - began_s, times_s[0] - began_s, [float(gap) for gap in np.diff(times_s)]


class Sessions(Protocol):
    """On the overview between `open` and `close`. `seen`: messages of the dashboard since they opened it."""

    def open(self) -> None: ...
    def close(self) -> None: ...
    def seen(self) -> int: ...


class BareSessions:
    """Three tabs that draw nothing, in a process that gives way to everybody."""

    def __init__(self, process: SessionsProcess) -> None:
        self._process = process

    def open(self) -> None:
        self._process.tell("open 3")

    def close(self) -> None:
        self._process.tell("close")

    def seen(self) -> int:
        return sum(int(each["messages"]) for each in self._process.tell("count"))

    def answers_s(self) -> list[float]:
        """How long the dashboard took for each run that it was asked for since they opened it."""
        return [took for each in self._process.tell("count") for took in each["answers_s"]]


COUNT_MESSAGES = """
window.messagesSeen = 0;
window.WebSocket = class extends window.WebSocket {
  constructor(...args) { super(...args); this.addEventListener("message", () => { window.messagesSeen += 1; }); }
};
"""


class BrowserSessions:
    """Three tabs of a browser on this machine, elsewhere on an empty page."""

    def __init__(self, chromium: Browser, link: str, drawn: bool) -> None:
        self._link = at(link, "overview")
        self._sign = CANVAS if drawn else "[data-testid=stMetricValue]"
        self._pages: list[Page] = []
        for _ in range(3):
            page = chromium.new_context(viewport={"width": 1280, "height": 1000}).new_page()
            if not drawn:
                page.route("**/EChartsChart*.js", lambda route: route.abort())
            page.add_init_script(COUNT_MESSAGES)
            self._pages.append(page)

    def open(self) -> None:
        for page in self._pages:
            page.goto(self._link)
        for page in self._pages:
            page.locator(self._sign).first.wait_for(timeout=60_000)

    def close(self) -> None:
        for page in self._pages:
            page.goto("about:blank")

    def seen(self) -> int:
        return sum(int(page.evaluate("window.messagesSeen")) for page in self._pages)


def give_way(process: psutil.Process, priority: str) -> None:
    """`priority`: a niceness beside this process's own, or `idle`."""
    if priority != "idle":
        renice([process], min(19, os.getpriority(os.PRIO_PROCESS, 0) + int(priority)))
        return
    for thread in process.threads():
        os.sched_setscheduler(thread.id, os.SCHED_IDLE, os.sched_param(0))


def spent_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def measure(
    load: Load, sessions: Sessions, blocks: int, seconds: float, processes: dict[str, psutil.Process]
) -> Iterator[Block]:
    """Blocks without and with sessions in the order ABBA..., so that a drift of the machine hits both."""
    load.block(seconds)
    is_open = False
    for number in range(blocks):
        wanted = number % 4 in (1, 2)
        if wanted != is_open:
            sessions.open() if wanted else sessions.close()
            is_open = wanted
        time.sleep(SETTLE_S)
        before = sessions.seen() if wanted else 0
        began_s, spent = time.monotonic(), {name: spent_s(process) for name, process in processes.items()}
        figures = load.block(seconds)
        took_s = time.monotonic() - began_s
        cores = {name: (spent_s(process) - spent[name]) / took_s for name, process in processes.items()}
        block = {"sessions": 3 if wanted else 0, "seconds": took_s, "cores": cores, **figures}
        if wanted:
            block["messages_per_s"] = (sessions.seen() - before) / took_s
            if isinstance(sessions, BareSessions):
                block["answers_s"] = sessions.answers_s()
        yield block


def summary(blocks: list[Block]) -> dict[str, Any]:
    alone, beside = ([block for block in blocks if bool(block["sessions"]) is wanted] for wanted in (False, True))
    found: dict[str, Any] = {"blocks_each_way": len(beside), "requests_each_way": [len(_all(alone, "request_s"))]}
    found["requests_each_way"].append(len(_all(beside, "request_s")))
    for name in FIGURES:
        for percent in (50, 95):
            of = [float(np.percentile(_all(some, name), percent)) for some in (alone, beside)]
            found[f"{name}_p{percent}"] = {
                "ms": [round(1000 * each, 2) for each in of],
                "change": round(of[1] / of[0] - 1, 4),
                "interval_90_percent": interval(alone, beside, name, percent),
            }
    rate = [
        sum(len(block["request_s"]) for block in some) / sum(b["seconds"] for b in some) for some in (alone, beside)
    ]
    found["requests_per_s_change"] = round(rate[1] / rate[0] - 1, 4)
    found["cores"] = {
        name: [round(float(np.mean([block["cores"][name] for block in some])), 3) for some in (alone, beside)]
        for name in blocks[0]["cores"]
    }
    found["messages_per_s"] = round(float(np.mean([block["messages_per_s"] for block in beside])), 1)
    if "answers_s" in beside[0]:
        answers = np.array(_all(beside, "answers_s"))
        found["dashboard_answers_ms"] = {f"p{at}": round(1000 * float(np.percentile(answers, at))) for at in (50, 95)}
    return found


def _all(blocks: list[Block], name: str) -> list[float]:
    return [value for block in blocks for value in block[name]]


def interval(alone: list[Block], beside: list[Block], name: str, percent: int, draws: int = 1000) -> list[float]:
    """Of the change, by a bootstrap over pairs of neighbouring blocks: what is common to a moment is in both."""
    random = np.random.default_rng(1)
    pairs: list[tuple[NDArray[np.float64], NDArray[np.float64]]] = [
        (np.array(one[name]), np.array(other[name])) for one, other in zip(alone, beside, strict=False)
    ]
    changes = []
    for _ in range(draws):
        drawn = [pairs[index] for index in random.integers(0, len(pairs), len(pairs))]
        base, changed = (np.percentile(np.concatenate(some), percent) for some in zip(*drawn, strict=True))
        changes.append(float(changed / base) - 1)
    return [round(float(np.percentile(changes, edge)), 4) for edge in (5, 95)]


def first_figures_s(link: str, load: Load, tries: int = 5) -> list[float]:
    """Seconds from a new session's connection to its first tile, while the engine decodes all the time."""
    stop = threading.Event()

    def busy() -> None:
        while not stop.is_set():
            load.block(1.0)

    thread = threading.Thread(target=busy)
    thread.start()
    found = []
    try:
        time.sleep(SETTLE_S)
        for _ in range(tries):
            with sessions_process(link) as process:
                found.append(round(float(process.tell("open 1")[0]["figures_s"]), 2))
    finally:
        stop.set()
        thread.join()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=16, help="half of them with sessions (%(default)s)")
    parser.add_argument("--seconds", type=float, default=8.0, help="of a block (%(default)s)")
    parser.add_argument("--streams", type=int, default=2, help="at once (%(default)s)")
    parser.add_argument("--tokens", type=int, default=64, help="of each answer (%(default)s)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of the engine (%(default)s)")
    parser.add_argument("--priority", default=str(DASHBOARD_NICENESS), help="of the dashboard (%(default)s)")
    parser.add_argument("--browsers", choices=("none", "undrawn", "drawn"), default="none")
    parser.add_argument("--browser-nice", type=int, default=19, help="beside the server's (%(default)s)")
    parser.add_argument("--out", type=Path, help="JSON lines to add the blocks to")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    arguments = parser.parse_args()
    own_nice = os.getpriority(os.PRIO_PROCESS, 0)
    with contextlib.ExitStack() as stack:
        live = stack.enter_context(server(arguments.model, arguments.threads))
        link = stack.enter_context(dashboard(live.admin, live.url, TOKEN))
        give_way(dashboard_process(link), arguments.priority)
        processes = {"server": psutil.Process(live.process.pid), "dashboard": dashboard_process(link)}
        load = Load(live.url, arguments.streams, arguments.tokens)
        sessions: Sessions
        found: dict[str, Any] = {}
        if arguments.browsers == "none":
            process = stack.enter_context(sessions_process(link))
            renice([process.usage], min(19, own_nice + 19))
            processes["clients"] = process.usage
            sessions = BareSessions(process)
        else:
            chromium = stack.enter_context(browser(min(19, own_nice + arguments.browser_nice)))
            sessions = BrowserSessions(chromium, link, arguments.browsers == "drawn")
        blocks = list(measure(load, sessions, arguments.blocks, arguments.seconds, processes))
        if arguments.browsers == "none":
            sessions.close()
            found["first_figures_under_load_s"] = first_figures_s(link, load)
    if arguments.out is not None:
        with arguments.out.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(block) + "\n" for block in blocks)
        blocks = [json.loads(line) for line in arguments.out.read_text(encoding="utf-8").splitlines()]
    told = {"machine": f"{platform.machine()}, {os.cpu_count()} CPUs", "date": time.strftime("%F")}
    shape = f"{load.prompt_tokens} tokens in, {arguments.tokens} out, {arguments.streams} at once"
    told |= {"shape": shape, "threads": arguments.threads, "dashboard": arguments.priority}
    print(json.dumps(told | {"browsers": arguments.browsers} | summary(blocks) | found, indent=2))


if __name__ == "__main__":
    main()
