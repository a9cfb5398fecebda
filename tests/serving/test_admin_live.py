"""`gridserve up` as users run it: engine, control plane and simulated device together, with real files and signals."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from serving.ledger.engine import Location
from serving.ledger.reader import LedgerReader

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from live_server import LiveServer, small, until

pytestmark = pytest.mark.e2e
TOKEN = "a-token-of-these-tests"


class Up(LiveServer):
    """One `gridserve up` process."""

    def __init__(self, model: Path, data: Path) -> None:
        self.data = data
        options = ["--data", str(data), "--no-dashboard", "--vllm-metric-names"]
        super().__init__("up", *small(model), *options, ready="Stop with", token=TOKEN)


@pytest.fixture(scope="module")
def up(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    started = Up(tiny_model, tmp_path_factory.mktemp("up"))
    yield started
    if started.process.poll() is None:
        assert started.stop() == 0


def test_up_says_what_is_simulated_and_replayed(up: Up) -> None:
    assert "bundled synthetic series" in up.said
    assert str(up.data / "policy.yaml") in up.said
    assert TOKEN not in up.said
    policy = up.get("policy")
    assert policy["name"] == "follow-the-grid"
    assert policy["mode"] == "enforce"
    assert "replays" in policy["override"]
    assert httpx.get(f"{up.admin}/ready").status_code == 200
    assert httpx.get(f"{up.admin}/api/v1/state").status_code == 401


def test_a_request_leaves_a_settled_row_a_sound_audit_and_metrics(up: Up) -> None:
    answer = up.ask().json()
    assert answer["energy"]["method"] == "simulated"
    until(lambda: up.get("requests")["requests"], "a row")
    row = up.get(f"requests/{answer['id']}")
    assert row["energy_j"] == pytest.approx(row["prefill_j"] + row["decode_j"] + row["idle_j"])
    assert 0 <= row["queue_s"] < row["ttft_s"]
    assert row["intensity_kind"] == "replayed"
    assert row["completion_tokens"] == answer["usage"]["completion_tokens"]
    assert up.get("audit/verify")["ok"] is True
    text = httpx.get(f"{up.url}/metrics").text
    assert re.search(r"^DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION\{.*modelName=", text, re.MULTILINE)
    assert re.search(r"^vllm:time_to_first_token_seconds_count\{.*\} [1-9]", text, re.MULTILINE)


def test_editing_the_policy_on_disk_changes_what_runs(up: Up) -> None:
    path = up.data / "policy.yaml"
    old = path.read_text()
    before = up.get("policy")["revision"]
    path.write_text(old.replace("governor: slo_slack", "governor: static\n    static: {clock_mhz: 1110}"))
    until(lambda: up.get("policy")["revision"] != before, "the new revision")
    until(lambda: up.get("state")["power"]["devices"][0]["asked_clock_mhz"] == 1110, "the new clock")
    until(lambda: any(row["actor"] == "file" for row in up.get("audit", kind="policy")["rows"]), "a row")
    path.write_text("spec: [")
    until(lambda: up.get("policy")["alarm"], "an alarm")
    assert up.ask().status_code == 200
    path.write_text(old)
    os.kill(up.process.pid, signal.SIGHUP)
    until(lambda: up.get("policy")["revision"] == before, "the old policy")
    assert up.get("policy")["alarm"] is None


def registers(up: Up) -> dict[str, Any]:
    """What the simulated board's driver has now."""
    (path,) = (up.data / "power" / "registers").glob("*.json")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def child(up: Up, word: str) -> psutil.Process:
    """The supervised process whose third word of the command line this is."""
    (found,) = [one for one in psutil.Process(up.process.pid).children() if word in one.cmdline()[2]]
    return found


def test_powerd_is_a_process_of_its_own_and_its_clocks_reach_the_engine(up: Up) -> None:
    path = up.data / "policy.yaml"
    old = path.read_text()
    path.write_text(old.replace("governor: slo_slack", "governor: static\n    static: {clock_mhz: 1110}"))
    until(lambda: registers(up)["lock_max_mhz"] == 1110, "the clock, set by powerd")
    until(lambda: up.get("state")["power"]["devices"][0]["asked_clock_mhz"] == 1110, "the same in the state")
    assert up.get("state")["power"]["leased"] is True
    path.write_text(old)
    until(lambda: registers(up)["lock_max_mhz"] != 1110, "the old policy")


def test_each_process_killed_comes_back_and_leaves_no_clock_behind(up: Up) -> None:
    identity = up.ask().json()["id"]
    until(lambda: identity in [row["request_id"] for row in up.get("requests")["requests"]], "its row")
    until(lambda: registers(up)["lock_max_mhz"] is not None, "a lock")
    before = child(up, "power.powerd")
    before.kill()
    until(lambda: any(p.pid != before.pid and "power.powerd" in p.cmdline()[2] for p in children(up)), "powerd again")
    until(lambda: registers(up)["lock_max_mhz"] is not None, "a lock again, by a new lease")
    server = child(up, "serving.cli")
    server.kill()
    until(lambda: registers(up) == {"lock_min_mhz": None, "lock_max_mhz": None, "limit_w": None}, "driver defaults")
    until(lambda: answers(f"{up.admin}/ready"), "the server again", 240.0)
    assert up.get(f"requests/{identity}")["request_id"] == identity
    assert up.get("audit/verify")["ok"] is True
    assert up.ask().status_code == 200


def children(up: Up) -> list[psutil.Process]:
    return psutil.Process(up.process.pid).children()


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def test_deferrable_work_runs_when_its_time_is_up(up: Up) -> None:
    assert up.ask(deferrable_until=time.time() - 1).status_code == 200
    assert up.ask(deferrable_until="tomorrow").status_code == 400
    assert up.ask(deferrable_until=time.time() + 1e9).status_code == 400


def test_a_deferred_request_outlives_its_server(up: Up) -> None:
    request = {"model": "tiny", "max_tokens": 6, "messages": [{"role": "user", "content": "Later"}]}

    def leave(until: float) -> dict[str, Any]:
        answer = httpx.post(f"{up.url}/v1/deferred", json={"deferrable_until": until, "request": request}, timeout=60)
        assert answer.status_code == 202, answer.text
        found: dict[str, Any] = answer.json()
        return found

    soon, later = leave(time.time() + 30), leave(time.time() + 6 * 86_400)
    until(lambda: httpx.get(f"{up.url}/v1/deferred/{soon['id']}").json()["status"] == "done", "an answer")
    assert httpx.get(f"{up.url}/v1/deferred/{soon['id']}").json()["answer"]["usage"]["completion_tokens"] <= 6
    assert httpx.get(f"{up.url}/v1/deferred/{later['id']}").json()["status"] in ("waiting", "done")
    assert (up.data / "ledger" / "deferred" / f"{later['id']}.json").stat().st_mode & 0o777 == 0o600
    bad = {"deferrable_until": time.time() + 60, "request": request | {"stream": True}}
    assert httpx.post(f"{up.url}/v1/deferred", json=bad).status_code == 400
    assert httpx.get(f"{up.url}/v1/deferred/defer-none").status_code == 404


def test_a_stop_restores_the_clocks_first_and_loses_no_row(up: Up) -> None:
    identity = up.ask(max_tokens=20).json()["id"]
    assert up.stop() == 0
    reader = LedgerReader(Location(up.data / "ledger"))
    try:
        assert reader.request(identity) is not None
        newest = reader.audit(limit=3)
        assert {row["kind"] for row in newest} == {
            "restore",
            *{row["kind"] for row in newest if row["kind"] != "restore"},
        }
        assert any(row["kind"] == "restore" and row["actor"] == "shutdown" for row in newest)
        assert reader.verify_audit().ok
    finally:
        reader.close()
