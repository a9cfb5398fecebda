"""The doctor finds what is broken and says how to mend it, and survives its own checks."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from serving import doctor
from serving.cli import main
from serving.doctor import Check, Subject, examine

POLICY = """apiVersion: gridserve/v1
kind: Policy
metadata: {name: test}
spec:
  mode: observe
  carbon: {zone: GB, feeds: [{type: constant, g_per_kwh: 200, source: a test}]}
"""


def by_name(checks: list[Check], name: str) -> list[Check]:
    return [check for check in checks if check.name == name]


def test_a_good_host_is_told_so(tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text(POLICY)
    checks = list(examine(Subject("smollm2-135m-instruct", policy=policy, ledger=tmp_path, ports=(0,))))
    names = {check.name for check in checks}
    assert names >= {"python", "cpu kernels", "powerd", "policy", "feeds", "model", "ledger", "disk", "ports"}
    assert [check.state for check in checks if check.state == "problem"] == []
    assert by_name(checks, "feeds")[0].found == "GB: 200 g/kWh, live"
    assert all(check.fix for check in checks if check.state != "ok" and check.name != "policy")


def test_what_is_broken_is_named_with_its_cure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ELECTRICITY_MAPS_TOKEN", raising=False)
    policy = tmp_path / "policy.yaml"
    policy.write_text(POLICY.replace("constant, g_per_kwh: 200, source: a test", "electricity_maps"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        subject = Subject(
            str(tmp_path / "nothing"),
            policy=policy,
            powerd=tmp_path / "none.sock",
            ports=(taken.getsockname()[1],),
        )
        checks = list(examine(subject))
    problems = {check.name: check for check in checks if check.state == "problem"}
    assert set(problems) == {"feeds", "powerd", "ports"}
    assert "ELECTRICITY_MAPS_TOKEN" in problems["feeds"].found
    assert by_name(checks, "model")[0].state == "warning"
    policy.write_text("spec: {")
    (broken,) = [check for check in examine(subject) if check.name == "policy"]
    assert (broken.state, "policy check" in (broken.fix or "")) == ("problem", True)


def test_a_check_that_fails_itself_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(_subject: Subject) -> Any:
        raise RuntimeError("surprise")
        yield

    explode.__name__ = "check_disk"
    monkeypatch.setattr(doctor, "check_disk", explode)
    (check,) = [one for one in examine(Subject("x", ports=())) if one.name == "disk"]
    assert (check.state, "surprise" in check.found) == ("problem", True)


def test_the_command_answers_in_json_and_by_its_status(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["doctor", "--json", "--port", port, "--admin-port", "0"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert {check["state"] for check in found if check["name"] == "ports"} == {"problem", "ok"}
