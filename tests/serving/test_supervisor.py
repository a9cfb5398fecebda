"""The supervisor over small real processes: order, restarts, readiness, signals, and its own death."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from serving.notify import NotifyListener, notify
from serving.supervisor import Service, Supervisor
from serving.up import options_text, url_of

CHILD = """
import os, signal, sys, time
from serving.notify import notify
name, log = sys.argv[1], sys.argv[2]
def say(text):
    with open(log, "a") as file:
        file.write(f"{name} {text} {os.getpid()}\\n")
def stop(number, frame):
    say("stops")
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGHUP, lambda *_: say("reloads"))
say("starts")
notify(READY="1", X_NAME=name)
while True:
    signal.pause()
"""


class Rig:
    """A supervisor in a process of its own, over children that write down what happens to them."""

    def __init__(self, folder: Path, services: str) -> None:
        self.log = folder / "log"
        self.log.touch()
        child = folder / "child.py"
        child.write_text(CHILD)
        script = f"""
import sys
from pathlib import Path
from serving.supervisor import Service, Supervisor
def child(name, **more):
    return Service(name, (sys.executable, {str(child)!r}, name, {str(self.log)!r}), **more)
def ready(said):
    print("ready", said["X_NAME"], flush=True)
sys.exit(Supervisor({services}, Path({str(folder)!r}), {{"a": ready}}).run())
"""
        self.process = subprocess.Popen(
            [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def lines(self, words: str = "") -> list[str]:
        return [line for line in self.log.read_text().splitlines() if words in line]

    def pid(self, name: str) -> int:
        return int(self.lines(f"{name} starts")[-1].split()[-1])

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str, str]:
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=30)
        return self.process.returncode, out, err


def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.02)


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"


def test_what_dies_is_started_again_and_everything_stops_in_order(short_folder: Path) -> None:
    rig = Rig(short_folder, "[child('b', stop_order=1), child('a', reloads=True), child('c', after='a', stop_order=2)]")
    until(lambda: len(rig.lines("starts")) == 3, "three children")
    first = rig.pid("a")
    os.kill(first, signal.SIGKILL)
    until(lambda: len(rig.lines("a starts")) == 2, "a again")
    rig.process.send_signal(signal.SIGHUP)
    until(lambda: rig.lines("a reloads"), "the reload")
    status, out, err = rig.end()
    assert status == 0
    assert [line.split()[0] for line in rig.lines("stops")] == ["a", "b", "c"]
    assert out == "ready a\n"
    assert "a was ended by signal 9; it is started again" in err
    assert not rig.lines("b reloads")
    assert all(gone(int(line.split()[-1])) for line in rig.lines("starts"))


def test_children_do_not_outlive_a_killed_supervisor(short_folder: Path) -> None:
    rig = Rig(short_folder, "[child('a'), child('b', niceness=3)]")
    until(lambda: len(rig.lines("starts")) == 2, "two children")
    priorities = [os.getpriority(os.PRIO_PROCESS, rig.pid(name)) for name in "ab"]
    own = os.getpriority(os.PRIO_PROCESS, 0)
    assert priorities == [own, min(19, own + 3)], "the second gives way"
    rig.end(signal.SIGKILL)
    until(lambda: len(rig.lines("stops")) == 2, "their clean end")


def test_one_that_cannot_start_ends_everything_with_its_status(short_folder: Path) -> None:
    stays = Service("stays", (sys.executable, "-c", "import time; time.sleep(60)"))
    fails = Service("fails", (sys.executable, "-c", "raise SystemExit(3)"), must_start=True)
    said: list[str] = []
    assert Supervisor([stays, fails], short_folder, say=said.append).run() == 3
    assert said == []


def test_one_that_does_not_stop_is_killed(short_folder: Path) -> None:
    stubborn = """
import signal, time
from serving.notify import notify
signal.signal(signal.SIGTERM, signal.SIG_IGN)
notify(READY="1")
time.sleep(600)
"""
    said: list[str] = []
    service = Service("stubborn", (sys.executable, "-c", stubborn), stop_s=0.3)
    stop = {"stubborn": lambda words: os.kill(os.getpid(), signal.SIGTERM)}
    assert Supervisor([service], short_folder, stop, say=said.append).run() == 0
    assert any("it is killed" in text for text in said)


def test_nobody_waits_for_a_reader(short_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listener = NotifyListener(short_folder / "n")
    monkeypatch.setenv("NOTIFY_SOCKET", str(listener.path))
    for number in range(5000):
        notify(READY="1", X_COUNT=str(number))
    assert listener.received()["READY"] == "1"
    listener.close()
    notify(READY="1")


def test_options_are_written_as_they_were_parsed() -> None:
    given = {"model": "m", "allowed_host": ["a", "b"], "managed_policy": True, "threads": None, "x": False, "port": 0}
    written = "--model m --allowed-host a --allowed-host b --managed-policy --port 0"
    assert options_text(given) == written.split()
    assert url_of("0.0.0.0", 80) == "http://127.0.0.1:80"
    assert url_of("::", 80) == "http://[::1]:80"
