"""Kill the processes of `gridserve up` under load and look what is left: clocks, rows, chain, service.

    python scripts/server_crash_campaign.py --model smollm2-135m-instruct --kills 100 --json crash.json

Clients ask all the time. Each trial notes which rows are on record, sends SIGKILL to the server, its engine, powerd or
the dashboard, and waits until requests are answered again. After the kill of the server or of powerd the simulated
board must be at driver defaults before anybody sets it again. At the end every row that was on record is still there,
the databases are sound and the audit chain verifies.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import httpx
import psutil

from serving.ledger.engine import Location, sqlite_module
from serving.ledger.reader import LedgerReader

TOKEN = "crash-campaign-token"  # noqa: S105 - of a server on loopback that lives for this run
WORDS = {"server": "serving.cli", "engine": "engine.worker", "powerd": "power.powerd", "dashboard": "dashboard.serve"}
VICTIMS = tuple(WORDS)
DEFAULTS = {"lock_min_mhz": None, "lock_max_mhz": None, "limit_w": None}
PATIENCE_S = 300.0


@dataclass
class Report:
    """Seconds from a kill to a served request, and to driver defaults, by victim."""

    kills: dict[str, int] = field(default_factory=dict)
    back_s: dict[str, list[float]] = field(default_factory=dict)
    clocks_s: list[float] = field(default_factory=list)
    rows_seen: set[str] = field(default_factory=set)
    failures: list[str] = field(default_factory=list)

    def summary(self) -> dict[str, object]:
        return {
            "kills": self.kills,
            "back_s": {
                name: {"median": statistics.median(found), "max": max(found)} for name, found in self.back_s.items()
            },
            "clocks_restored_s": {"median": statistics.median(self.clocks_s), "max": max(self.clocks_s)}
            if self.clocks_s
            else None,
            "rows_on_record_before_kills": len(self.rows_seen),
            "failures": self.failures,
        }


class Campaign:
    def __init__(self, model: str, data: Path, dashboard: bool) -> None:
        command = [sys.executable, "-m", "serving.cli", "up", "--model", model, "--port", "0", "--admin-port", "0"]
        command += ["--device", "simulated:h100-sxm", "--data", str(data), "--served-model-name", "m", "--threads", "1"]
        command += [] if dashboard else ["--no-dashboard"]
        self.data, self.report = data, Report()
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env=os.environ | {"GRIDSERVE_ADMIN_TOKEN": TOKEN}
        )
        said = ""
        assert self.process.stdout is not None
        while "Stop with" not in said and (line := self.process.stdout.readline()):
            said += line
        found = [re.search(what, said) for what in (r"at (http://\S+)/v1", r"API at (http://[^\s,]+)")]
        if None in found:
            raise SystemExit("gridserve up did not start; see above")
        self.url, self.admin = (match[1] for match in found if match is not None)
        self.stopping = threading.Event()
        self.answered = itertools.count()
        self.last_answer_s = time.monotonic()
        self.clients = [threading.Thread(target=self._ask, daemon=True) for _ in range(4)]
        # Kept: to make a client costs tens of milliseconds of a processor that the restarting server needs.
        self.http = httpx.Client(headers={"Authorization": f"Bearer {TOKEN}"}, timeout=30)

    def run(self, victims: Sequence[str], kills: int, until_s: float) -> None:
        for client in self.clients:
            client.start()
        for number in range(kills):
            for victim in victims:
                if time.monotonic() < until_s:
                    self.trial(victim, number)
        self.stopping.set()
        for client in self.clients:
            client.join(60.0)

    def trial(self, victim: str, number: int) -> None:
        report = self.report
        self._wait(lambda: self.get("/api/v1/requests", limit=1000), "the admin API")
        rows = self.get("/api/v1/requests", limit=1000) or {"requests": []}
        report.rows_seen |= {row["request_id"] for row in rows["requests"]}
        process = self.find(victim)
        if process is None:
            report.failures.append(f"{victim} {number}: no such process")
            return
        killed_s = time.monotonic()
        process.kill()
        report.kills[victim] = report.kills.get(victim, 0) + 1
        if victim in ("server", "powerd") and self._wait(
            lambda: self.registers() == DEFAULTS, f"{victim}: clocks", 30.0
        ):
            report.clocks_s.append(time.monotonic() - killed_s)
        again = self._wait(lambda: (new := self.find(victim)) is not None and new.pid != process.pid, f"{victim} again")
        if again and self._wait(lambda: self.last_answer_s > killed_s and self.ready(), f"{victim}: service"):
            report.back_s.setdefault(victim, []).append(max(self.last_answer_s, time.monotonic()) - killed_s)
        took = f"{report.back_s[victim][-1]:.1f} s" if victim in report.back_s else "not back"
        totals = f"kills {report.kills}, rows {len(report.rows_seen)}, failures {len(report.failures)}"
        print(f"{victim} {number}: {took}; {totals}", file=sys.stderr, flush=True)

    def finish(self) -> Report:
        self.process.terminate()
        if self.process.wait(timeout=180) != 0:
            self.report.failures.append("it did not end cleanly")
        for name in ("ledger.db", "telemetry.db"):
            connection = sqlite_module().connect(str(self.data / "ledger" / name))
            found = connection.execute("PRAGMA integrity_check").fetchone()[0]
            connection.close()
            if found != "ok":
                self.report.failures.append(f"{name}: {found}")
        reader = LedgerReader(Location(self.data / "ledger"))
        lost = [name for name in self.report.rows_seen if reader.request(name) is None]
        if lost:
            self.report.failures.append(f"{len(lost)} rows that were on record are gone")
        if not reader.verify_audit().ok:
            self.report.failures.append("the audit chain is broken")
        if self.registers() != DEFAULTS:
            self.report.failures.append(f"the board was left at {self.registers()}")
        reader.close()
        return self.report

    def find(self, victim: str) -> psutil.Process | None:
        try:
            children = psutil.Process(self.process.pid).children(recursive=True)
            return next((one for one in children if WORDS[victim] in one.cmdline()[2:3]), None)
        except psutil.Error:
            return None

    def registers(self) -> dict[str, object]:
        """What the board has now; nobody set it before its file is there."""
        found: dict[str, object] = dict(DEFAULTS)
        for path in (self.data / "power" / "registers").glob("*.json"):
            found = json.loads(path.read_text())
        return found

    def get(self, path: str, **parameters: int) -> dict[str, list[dict[str, str]]] | None:
        try:
            answer = self.http.get(self.admin + path, params=parameters)
        except httpx.HTTPError:
            return None
        return answer.json() if answer.status_code == 200 else None

    def ready(self) -> bool:
        return self.get("/ready") is not None

    def _ask(self) -> None:
        body = {"model": "m", "max_tokens": 16, "messages": [{"role": "user", "content": "Hello"}]}
        with httpx.Client(timeout=60) as client:
            while not self.stopping.is_set():
                asked_s = time.monotonic()
                try:
                    if client.post(f"{self.url}/v1/chat/completions", json=body).status_code == 200:
                        self.last_answer_s = max(self.last_answer_s, asked_s)
                        continue
                except httpx.HTTPError:
                    pass
                time.sleep(0.1)

    def _wait(self, condition: Callable[[], object], what: str, seconds: float = PATIENCE_S) -> bool:
        deadline_s = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline_s:
                self.report.failures.append(f"never: {what}")
                return False
            time.sleep(0.05)
        return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--kills", type=int, default=100, help="of each process (%(default)s)")
    parser.add_argument("--victims", nargs="+", choices=VICTIMS, default=list(VICTIMS))
    parser.add_argument("--minutes", type=float, default=600.0, help="begin no trial after that")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="gridserve-crash-") as folder:
        campaign = Campaign(arguments.model, Path(folder), "dashboard" in arguments.victims)
        try:
            campaign.run(arguments.victims, arguments.kills, time.monotonic() + 60 * arguments.minutes)
        except KeyboardInterrupt:
            print("stopped; what was seen so far is checked and reported", file=sys.stderr)
        finally:
            report = campaign.finish()
    print(json.dumps(report.summary(), indent=2))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(report.summary(), indent=2) + "\n", encoding="utf-8")
    return int(bool(report.failures))


if __name__ == "__main__":
    sys.exit(main())
