"""Dashboard sessions without a browser: they speak Streamlit's protocol, ask as often as a browser, and draw nothing.

    python scripts/dashboard_sessions.py "http://127.0.0.1:8501/?token=..." --sessions 3 --seconds 30
    python scripts/dashboard_sessions.py --beside-browser        one and a browser, against an emulated admin API

What a browser costs is its machine's affair; these leave what the sessions cost the server. As in a browser, a fragment
with `run_every` runs again because the client's timer asks for it (`AutoRerun` names fragment and interval).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any
from urllib.parse import urlsplit

import psutil
from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from websockets.asyncio.client import ClientConnection, connect

MAX_MESSAGE_BYTES = 64 * 2**20
SETTLE_S = 8.0


@dataclass
class Traffic:
    """`answers_s`: from a request to run to the end of that run; several requests may be answered by one run."""

    asked: int = 0
    messages: int = 0
    received_bytes: int = 0
    errors: int = 0
    answers_s: list[float] = field(default_factory=list)


class Session:
    """One tab. `figures_s`: from its making to the first tile."""

    def __init__(self, link: str, page: str = "") -> None:
        parts = urlsplit(link)
        self._url = f"ws://{parts.netloc}/_stcore/stream"
        self._query, self._page, self._page_hash = parts.query, page, ""
        self._timers: dict[str, tuple[float, asyncio.Task[None]]] = {}
        self._asked_s: float | None = None
        self._began_s = time.monotonic()
        self.traffic = Traffic()
        self.figures_s: float | None = None

    async def run(self) -> None:
        """Until cancelled, or the dashboard hangs up."""
        async with connect(self._url, subprotocols=["streamlit"], max_size=MAX_MESSAGE_BYTES) as socket:  # type: ignore[list-item]
            try:
                await self._ask(socket)
                async for raw in socket:
                    assert isinstance(raw, bytes)
                    self.traffic.messages += 1
                    self.traffic.received_bytes += len(raw)
                    self._take(ForwardMsg.FromString(raw), socket)
            finally:
                self._stop_timers()

    async def _ask(self, socket: ClientConnection, fragment_id: str = "") -> None:
        message = BackMsg()
        state = message.rerun_script
        state.query_string, state.page_script_hash = self._query, self._page_hash
        state.page_name = "" if self._page_hash else self._page
        state.fragment_id, state.is_auto_rerun = fragment_id, bool(fragment_id)
        state.context_info.timezone, state.context_info.locale = "UTC", "en-GB"
        state.context_info.color_scheme = "light"
        self.traffic.asked += 1
        if self._asked_s is None:
            self._asked_s = time.monotonic()
        await socket.send(message.SerializeToString())

    def _take(self, message: ForwardMsg, socket: ClientConnection) -> None:
        kind = message.WhichOneof("type")
        if kind == "new_session":
            self._page_hash = message.new_session.page_script_hash
            if not message.metadata.run.fragment_ids:
                self._stop_timers()
        elif kind == "page_info_changed":
            self._query = message.page_info_changed.query_string
        elif kind == "auto_rerun":
            self._start_timer(message.auto_rerun.fragment_id, message.auto_rerun.interval, socket)
        elif kind == "stop_auto_rerun":
            for fragment_id in message.stop_auto_rerun.fragment_ids:
                self._stop_timer(fragment_id)
        elif kind == "script_finished" and self._asked_s is not None:
            self.traffic.answers_s.append(time.monotonic() - self._asked_s)
            self._asked_s = None
        elif kind == "delta":
            element = message.delta.new_element.WhichOneof("type")
            self.traffic.errors += element == "exception"
            if element == "metric" and self.figures_s is None:
                self.figures_s = time.monotonic() - self._began_s

    def _start_timer(self, fragment_id: str, interval_s: float, socket: ClientConnection) -> None:
        running = self._timers.get(fragment_id)
        if running is not None and running[0] == interval_s:
            return
        self._stop_timer(fragment_id)
        self._timers[fragment_id] = (interval_s, asyncio.create_task(self._tick(fragment_id, interval_s, socket)))

    async def _tick(self, fragment_id: str, interval_s: float, socket: ClientConnection) -> None:
        due_s = time.monotonic()
        while True:
            # Like `setInterval`: late ticks do not shift those that follow.
            due_s = max(due_s + interval_s, time.monotonic())
            await asyncio.sleep(due_s - time.monotonic())
            await self._ask(socket, fragment_id)

    def _stop_timer(self, fragment_id: str) -> None:
        _, task = self._timers.pop(fragment_id, (0.0, None))
        if task is not None:
            task.cancel()

    def _stop_timers(self) -> None:
        for fragment_id in list(self._timers):
            self._stop_timer(fragment_id)


async def serve(link: str, page: str) -> None:
    """Obeys lines of standard input: `open N`, `close`, `count`; answers each with one line of JSON."""
    loop = asyncio.get_running_loop()
    sessions: list[Session] = []
    tasks: list[asyncio.Task[None]] = []
    while line := (await loop.run_in_executor(None, sys.stdin.readline)).split():
        if line[0] == "open":
            sessions = [Session(link, page) for _ in range(int(line[1]))]
            tasks = [asyncio.create_task(session.run()) for session in sessions]
            while not all(session.figures_s for session in sessions) and not any(task.done() for task in tasks):
                await asyncio.sleep(0.05)
        elif line[0] == "close":
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            tasks = []
        lost = [repr(task.exception()) for task in tasks if task.done()]
        found = [asdict(session.traffic) | {"figures_s": session.figures_s} for session in sessions]
        print(json.dumps({"lost": lost, "sessions": found}), flush=True)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class SessionsProcess:
    """Sessions in a process of their own, so that their work is nobody else's."""

    def __init__(self, link: str, page: str = "") -> None:
        command = [sys.executable, __file__, link, "--page", page, "--obey"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.usage = psutil.Process(self._process.pid)

    def tell(self, line: str) -> list[dict[str, Any]]:
        """`open 3`, `close` or `count`; the traffic of each session so far. Raises `RuntimeError` when one was lost."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        found: dict[str, Any] = json.loads(self._process.stdout.readline())
        if found["lost"]:
            raise RuntimeError(f"a session ended: {found['lost']}")
        sessions: list[dict[str, Any]] = found["sessions"]
        return sessions

    def stop(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(15)
        assert self._process.stdout is not None
        self._process.stdout.close()


@contextlib.contextmanager
def sessions_process(link: str, page: str = "") -> Iterator[SessionsProcess]:
    started = SessionsProcess(link, page)
    try:
        yield started
    finally:
        started.stop()


def beside_browser(seconds: float) -> dict[str, dict[str, int]]:
    """Traffic of a session without and of one with a browser, once both have settled."""
    from dashboard_browser import browser, dashboard, emulated_api
    from playwright.sync_api import WebSocket

    def change(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
        return {name: after[name] - before[name] for name in ("asked", "messages", "received_bytes")}

    seen = {"asked": 0, "messages": 0, "received_bytes": 0}

    def count(received: bytes | None) -> None:
        seen["asked"] += received is None
        seen["messages"] += received is not None
        seen["received_bytes"] += len(received or b"")

    def follow(socket: WebSocket) -> None:
        socket.on("framesent", lambda _: count(None))
        socket.on("framereceived", lambda payload: count(payload if isinstance(payload, bytes) else payload.encode()))

    with emulated_api("live") as api, dashboard(api, api, "admin") as link:
        with sessions_process(link) as sessions:
            sessions.tell("open 1")
            time.sleep(SETTLE_S)
            before = sessions.tell("count")[0]
            time.sleep(seconds)
            bare = change(before, sessions.tell("close")[0])
        with browser() as chromium:
            page = chromium.new_context(viewport={"width": 1280, "height": 1000}).new_page()
            page.on("websocket", follow)
            page.goto(link)
            page.wait_for_timeout(SETTLE_S * 1000)
            before = dict(seen)
            page.wait_for_timeout(seconds * 1000)
            return {"session": bare, "browser": change(before, seen)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("link", nargs="?", help="the dashboard's link, with its token")
    parser.add_argument("--beside-browser", action="store_true", help="compare the traffic with a browser's")
    parser.add_argument("--page", default="", help="such as serving; the overview by default")
    parser.add_argument("--sessions", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--obey", action="store_true", help="be led through standard input by another script")
    arguments = parser.parse_args()
    if arguments.beside_browser:
        print(json.dumps(beside_browser(arguments.seconds), indent=2))
        return
    if arguments.link is None:
        parser.error("give the dashboard's link, or --beside-browser")
    if arguments.obey:
        asyncio.run(serve(arguments.link, arguments.page))
        return
    with sessions_process(arguments.link, arguments.page) as sessions:
        sessions.tell(f"open {arguments.sessions}")
        time.sleep(arguments.seconds)
        print(json.dumps(sessions.tell("close"), indent=2))


if __name__ == "__main__":
    main()
