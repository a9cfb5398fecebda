"""Several processes as one: start them, begin again what dies, stop them in order. What `gridserve up` stands on.

    Supervisor([Service("powerd", ...), Service("server", ...)], folder, on_ready=...).run()

One thread and no waiting on any child: a child that hangs or dies never delays what concerns another. A child outlives
the supervisor by no more than its own clean-up, however the supervisor ends (`PR_SET_PDEATHSIG`).
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from serving.notify import VARIABLE, NotifyListener

TURN_S = 0.05
BACKOFF_S = (0.0, 0.2, 0.5, 1.0, 2.0, 5.0)
STEADY_S = 30.0
"""After so long a life a death counts as the first again."""
_PR_SET_PDEATHSIG = 1

OnReady = Callable[[Mapping[str, str]], None]


@dataclass(frozen=True, slots=True)
class Service:
    """A process to keep running.

    `stop_order`: lower ones are stopped, and waited for, first. `stop_s`: then it is killed. `must_start`: when it ends
    before it was ever ready, everything ends with its status. `after`: not started before that one is ready.
    `reloads`: gets SIGHUP passed on. `quiet`: its standard output is dropped. `niceness`: beside the
    supervisor's own.
    """

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    stop_order: int = 0
    stop_s: float = 10.0
    must_start: bool = False
    after: str | None = None
    reloads: bool = False
    quiet: bool = False
    niceness: int = 0


class _Child:
    """One service and its present process."""

    def __init__(self, service: Service, folder: Path) -> None:
        self.service = service
        self.listener = NotifyListener(folder / f"{service.name}.notify")
        self.process: subprocess.Popen[bytes] | None = None
        self.was_ready = self.ready = False
        self.started_s = 0.0
        self.due_s = 0.0
        self.deaths = 0
        self.term_s: float | None = None

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        environment = os.environ | dict(self.service.environment) | {VARIABLE: str(self.listener.path)}
        self.listener.received()
        self.ready, self.term_s, self.started_s = False, None, time.monotonic()
        self.process = subprocess.Popen(
            self.service.command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL if self.service.quiet else None,
            process_group=0,  # Ctrl-C goes to the supervisor alone, which stops its children in order
            preexec_fn=partial(_begin, self.service.niceness),
        )

    def died(self, status: int) -> None:
        """Note a death and when to begin again."""
        now = time.monotonic()
        self.deaths = 0 if now - self.started_s >= STEADY_S else self.deaths
        self.due_s = now + BACKOFF_S[min(self.deaths, len(BACKOFF_S) - 1)]
        self.deaths += 1
        self.process, self.ready = None, False

    def signal(self, number: int) -> None:
        if self.running:
            assert self.process is not None
            self.process.send_signal(number)


class Supervisor:
    """`run` until stopped by SIGTERM or SIGINT; returns the exit status. `folder`: a short path for sockets.
    `on_ready`: what a service said when it was ready, by its name; called each time."""

    def __init__(
        self,
        services: Sequence[Service],
        folder: Path,
        on_ready: Mapping[str, OnReady] | None = None,
        say: Callable[[str], None] = lambda text: print(f"gridserve up: {text}", file=sys.stderr, flush=True),
    ) -> None:
        self._children = [_Child(service, folder) for service in services]
        self._on_ready = dict(on_ready or {})
        self._say = say
        self._status: int | None = None
        self._stops = 0
        self._hups = 0

    def run(self) -> int:
        before = {number: signal.signal(number, self._on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
        before[signal.SIGHUP] = signal.signal(signal.SIGHUP, self._on_signal)
        try:
            while not self._stops and self._status is None:
                self._turn()
            self._stop()
        finally:
            for child in self._children:
                child.signal(signal.SIGKILL)
                if child.process is not None:
                    child.process.wait()
                child.listener.close()
            for number, handler in before.items():
                signal.signal(number, handler)
        return self._status or 0

    def _on_signal(self, number: int, _frame: object) -> None:
        if number == signal.SIGHUP:
            self._hups += 1
        else:
            self._stops += 1

    def _turn(self) -> None:
        """Look at every child once, then wait a moment for one to speak."""
        now = time.monotonic()
        for child in self._children:
            self._listen(child)
            if child.process is not None and child.process.poll() is not None:
                self._on_death(child)
            if child.process is None and now >= child.due_s and self._status is None and self._may_start(child):
                child.start()
        while self._hups:
            self._hups -= 1
            for child in self._children:
                if child.service.reloads:
                    child.signal(signal.SIGHUP)
        select.select([child.listener.socket for child in self._children], [], [], TURN_S)

    def _may_start(self, child: _Child) -> bool:
        return child.service.after is None or any(
            other.was_ready for other in self._children if other.service.name == child.service.after
        )

    def _listen(self, child: _Child) -> None:
        words = child.listener.received()
        if "READY" not in words or child.ready:
            return
        again = child.was_ready
        child.ready = child.was_ready = True
        if again:
            self._say(f"{child.service.name} is ready again after {time.monotonic() - child.started_s:.1f} s")
        elif child.service.name in self._on_ready:
            self._on_ready[child.service.name](words)

    def _on_death(self, child: _Child) -> None:
        assert child.process is not None
        status = child.process.returncode
        how = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
        if child.service.must_start and not child.was_ready:
            self._status = status if status > 0 else 1
            return
        child.died(status)
        self._say(f"{child.service.name} {how}; it is started again")

    def _stop(self) -> None:
        """In order, each group waited for; another signal is passed on to those that are being stopped."""
        for order in sorted({child.service.stop_order for child in self._children}):
            group = [child for child in self._children if child.service.stop_order == order and child.running]
            for child in group:
                child.signal(signal.SIGTERM)
                child.term_s = time.monotonic()
            passed_on = self._stops
            while any(child.running for child in group):
                time.sleep(TURN_S)
                for child in self._children:
                    child.listener.received()  # nobody may wait for a reader
                for child in group:
                    assert child.term_s is not None
                    if time.monotonic() - child.term_s > child.service.stop_s:
                        self._say(f"{child.service.name} did not stop within {child.service.stop_s:g} s; it is killed")
                        child.signal(signal.SIGKILL)
                if self._stops > passed_on:
                    passed_on = self._stops
                    for child in group:
                        child.signal(signal.SIGTERM)


def _begin(niceness: int) -> None:
    """In the child: end with the parent, and give way."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    os.nice(niceness)
