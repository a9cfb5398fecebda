"""Kill engine, control plane and powerd at random and look whether a GPU is left locked.

    python scripts/power_crash_campaign.py --kills 500 --json crash.json

Real processes on the stateful fake NVML: a daemon, a control plane that holds the lease and keeps changing clocks
and limits, and an engine the lease is tied to. Each trial waits until something is locked, then sends SIGKILL to one
of the three, to a pair or to all (or stops the control plane, so that only the lease's expiry can help). With the
daemon alive the GPU must be as it was found within TTL + 1 s; with the daemon dead, after its restart or a
`--restore-only` run.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from power import powerd
from power.actuator import LeaseError
from power.client import ActuatorUnavailableError, PowerdClient
from power.fake_nvml import FakeNvml
from power.simulated import simulated_twin
from power.twin import decode_work

TTL_S = 1.0
ROLES = ("engine", "control", "powerd")
VICTIMS = [frozenset(chosen) for size in (1, 2, 3) for chosen in itertools.combinations(ROLES, size)]
PATIENCE_S = 20.0


@dataclass
class Report:
    """What the campaign found. `seconds_to_clean` counts trials in which the daemon lived."""

    kills: int = 0
    trials: Counter[str] = field(default_factory=Counter)
    left_behind: list[str] = field(default_factory=list)
    seconds_to_clean: list[float] = field(default_factory=list)

    def summary(self) -> dict[str, object]:
        times = sorted(self.seconds_to_clean)
        return {
            "kills": self.kills,
            "ttl_s": TTL_S,
            "left_behind": len(self.left_behind),
            "failures": self.left_behind[:10],
            "trials": dict(self.trials),
            "seconds_to_clean": {
                "median": round(times[len(times) // 2], 3) if times else None,
                "max": round(times[-1], 3) if times else None,
            },
        }


class Cell:
    """One GPU with its three processes, all children of this one."""

    def __init__(self, directory: Path, rng: random.Random) -> None:
        self.directory, self.rng = directory, rng
        self.twin = simulated_twin("h100-sxm", "llama-3.1-8b")
        self.fake = FakeNvml(self.twin, directory / "gpus")
        self.fake.set_load(self.twin.demand(decode_work(32, 500)))
        self.socket = directory / "powerd.sock"
        self.pids: dict[str, int] = {}

    def start(self) -> None:
        if "powerd" not in self.pids:
            self.pids["powerd"] = fork(self.run_powerd)
            wait_for(self.reachable, "powerd to answer")
        if "engine" not in self.pids:
            self.pids["engine"] = fork(lambda: time.sleep(3600))
        if "control" not in self.pids:
            self.pids["control"] = fork(self.run_control)

    def run_powerd(self, *more: str) -> None:
        with self.fake.installed():
            powerd.main(["--socket", str(self.socket), "--state-dir", str(self.directory / "state"), *more])

    def run_control(self) -> None:
        client = PowerdClient(self.socket, holder="campaign", ttl_s=TTL_S, watch_pids=(self.pids["engine"],))
        rng, uuid = random.Random(self.rng.random()), self.fake.uuids[0]
        with contextlib.suppress(LeaseError, ActuatorUnavailableError, ValueError):
            client.acquire()
            while True:
                client.heartbeat()
                if rng.random() < 0.7:
                    clock = rng.choice(self.twin.gpu.clocks_mhz[:-5])
                    client.lock_clocks(uuid, clock, clock)
                else:
                    client.set_power_limit(uuid, rng.uniform(200, 650))
                if rng.random() < 0.1:
                    client.reset_clocks(uuid)
                time.sleep(rng.uniform(0.0, 0.12))

    def reachable(self) -> bool:
        client = PowerdClient(self.socket, timeout_s=1.0)
        try:
            client.status()
        except (ActuatorUnavailableError, ValueError):
            return False
        finally:
            client.close()
        return True

    def at_work(self) -> bool:
        """All three live (started again where need be) and something is changed."""
        self.reap()
        self.start()
        return not self.clean()

    def clean(self) -> bool:
        return not self.fake.left_behind()

    def stays_clean(self) -> float | None:
        """When the board was seen clean, if it still is a moment later. One look does not do: the control plane may
        have undone its setting itself and make another before the daemon learns that the engine is gone."""
        now = time.monotonic()
        if not self.clean():
            return None
        time.sleep(0.05)
        return now if self.clean() else None

    def kill(self, role: str, number: int = signal.SIGKILL) -> None:
        os.kill(self.pids[role], number)
        if number == signal.SIGKILL:
            os.waitpid(self.pids.pop(role), 0)

    def reap(self) -> None:
        """Forget children that ended by themselves (the control plane does when its lease ends)."""
        for role in ("control", "engine"):
            if role in self.pids and os.waitpid(self.pids[role], os.WNOHANG)[0]:
                del self.pids[role]

    def stop(self) -> None:
        for role in list(self.pids):
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                self.kill(role)

    def trial(self, report: Report) -> None:
        wait_for(self.at_work, "the control plane to change something")
        time.sleep(self.rng.uniform(0.0, 0.25))
        hang = self.rng.random() < 0.1
        victims = frozenset({"control"}) if hang else self.rng.choice(VICTIMS)
        name = "control stopped" if hang else "+".join(sorted(victims))
        before = time.monotonic()
        for role in self.rng.sample(sorted(victims), len(victims)):
            self.kill(role, signal.SIGSTOP if hang else signal.SIGKILL)
            report.kills += not hang
        if "powerd" in victims:
            if self.rng.random() < 0.5:
                name += ", restore"
                os.waitpid(fork(lambda: self.run_powerd("--restore-only")), 0)
            else:
                name += ", restart"
                if "control" in self.pids:
                    self.kill("control")
                self.pids["powerd"] = fork(self.run_powerd)
                wait_for(self.reachable, "powerd to answer")
            self.settle(report, name, time.monotonic() + 1.0, before, timed=False)
        else:
            self.settle(report, name, before + TTL_S + 1.0, before, timed=True)
        if hang:
            self.kill("control")
        time.sleep(0.02)
        self.reap()

    def settle(self, report: Report, name: str, deadline: float, before: float, *, timed: bool) -> None:
        seen_clean = self.stays_clean()
        while seen_clean is None and time.monotonic() < deadline:
            time.sleep(0.01)
            seen_clean = self.stays_clean()
        if timed:
            report.seconds_to_clean.append((seen_clean or time.monotonic()) - before)
        left = self.fake.left_behind()
        report.trials[name] += 1
        if left:
            while not self.clean() and time.monotonic() < deadline + PATIENCE_S:
                time.sleep(0.01)
            took = time.monotonic() - before
            what = f"clean after {took:.1f} s" if self.clean() else "never clean"
            report.left_behind.append(f"{name}: {', '.join(left)}; {what}")


def fork(run: Callable[[], object]) -> int:
    """A child process that runs a function and ends."""
    pid = os.fork()
    if pid == 0:
        try:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 2)
            run()
        finally:
            os._exit(0)
    return pid


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {PATIENCE_S:g} s for {what}")
        time.sleep(0.01)


def campaign(kills: int, seed: int, directory: Path, progress: Callable[[Report], None] | None = None) -> Report:
    """Trials until at least `kills` signals were sent."""
    report = Report()
    cell = Cell(directory, random.Random(seed))
    try:
        while report.kills < kills:
            cell.trial(report)
            if progress is not None:
                progress(report)
    finally:
        cell.stop()
    return report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()

    def progress(report: Report) -> None:
        if sys.stderr.isatty():
            print(f"\r{report.kills}/{arguments.kills} kills, {len(report.left_behind)} left", end="", file=sys.stderr)

    with tempfile.TemporaryDirectory() as directory:
        report = campaign(arguments.kills, arguments.seed, Path(directory), progress)
    print(json.dumps(report.summary(), indent=2))
    if arguments.json is not None:
        raw = {"seconds_to_clean_each": report.seconds_to_clean}
        arguments.json.write_text(json.dumps({**report.summary(), **raw}, indent=2))
    return 1 if report.left_behind else 0


if __name__ == "__main__":
    sys.exit(main())
