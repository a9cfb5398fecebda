"""The evaluator in a live server: prompts kept where agreed, judged, learned from, and their cost on record."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving.auth import generate_key, hash_key, write_keys
from serving.prompt_keeper import KEY_FILE, STORE_FILE
from tests.serving.test_live_server import Server, until

pytestmark = pytest.mark.e2e
TOKEN = "an-admin-token-for-tests"
SERIES = Path(__file__).parents[2] / "traces/data/intensity_synthetic_wind.csv"
POLICY = """apiVersion: gridserve/v1
kind: Policy
metadata: {{name: judged}}
spec:
  mode: enforce
  slo: {{ttft_p99_ms: 2000, tpot_p99_ms: 200}}
  carbon:
    zone: GB
    feeds: [{{type: csv, path: {series}, replay_from: "2026-01-06T00:00:00+00:00"}}]
    embodied: {{kg: 164}}
    range: {{low_g_per_kwh: 0, high_g_per_kwh: 1}}
  directives:
    levels:
      - {{id: L0}}
      - {{id: L1, text: Always answer briefly}}
      - {{id: L2, text: Always answer very briefly}}
    optimizer: classed
    quality_floor: 0.9
    confidence: 0.5
    min_judged: 4
    classes: [{{name: chat}}]
    evaluator: {evaluator}
  tenants: [{{name: lab, keep_prompts: true}}, {{name: shop}}]
"""
SECRET = "the recipe of the blue cake"


class Judged:
    """A server with an evaluator, its keys and its admin API."""

    def __init__(self, model: Path, folder: Path) -> None:
        self.folder = folder
        self.policy = folder / "policy.yaml"
        self.keys = {name: generate_key() for name in ("lab", "shop")}
        write_keys(folder / "keys.txt", {name: hash_key(key) for name, key in self.keys.items()})
        prompts = [{"class": "chat", "prompt": f"What is {n} plus {n}?", "answer": str(2 * n)} for n in range(1, 6)]
        (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, prompts)))
        self.write(f"{{judge: exact, prompts: {folder / 'prompts.jsonl'}, max_tokens: 8}}")
        options = ["--max-model-len", "512", "--kv-cache-memory", "4M", "--served-model-name", "tiny"]
        options += ["--device", "simulated:h100-sxm", "--policy", str(self.policy), "--admin-port", "0"]
        options += ["--learned", str(folder / "learned"), "--ledger", str(folder / "ledger")]
        options += ["--api-key-file", str(folder / "keys.txt")]
        self.server = Server(str(model), *options, environment={"GRIDSERVE_ADMIN_TOKEN": TOKEN})
        self.admin = self.server.admin

    def write(self, evaluator: str) -> None:
        self.policy.write_text(POLICY.format(series=SERIES, evaluator=evaluator))

    def ask(self, tenant: str, text: str) -> dict[str, Any]:
        body = {"model": "tiny", "max_tokens": 6, "task": "chat", "messages": [{"role": "user", "content": text}]}
        headers = {"Authorization": f"Bearer {self.keys[tenant]}"}
        answer = httpx.post(f"{self.server.url}/v1/chat/completions", json=body, headers=headers, timeout=60)
        assert answer.status_code == 200, answer.text
        energy: dict[str, Any] = answer.json()["energy"]
        return energy

    def get(self, path: str) -> Any:
        answer = httpx.get(f"{self.admin}{path}", headers={"Authorization": f"Bearer {TOKEN}"}, timeout=30)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def post(self, path: str, **body: Any) -> httpx.Response:
        return httpx.post(f"{self.admin}{path}", json=body, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=30)

    def judge(self, reason: str) -> dict[str, Any]:
        """Run the evaluator and wait for the run's record."""
        before = len(self.get("/api/v1/evaluator")["runs"])
        begun = self.post("/api/v1/evaluator/run", reason=reason)
        assert begun.status_code == 202, begun.text
        until(lambda: len(self.get("/api/v1/evaluator")["runs"]) > before, "the run is on record")
        run: dict[str, Any] = self.get("/api/v1/evaluator")["runs"][0]
        return run


@pytest.fixture(scope="module")
def judged(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Judged]:
    made = Judged(tiny_model, tmp_path_factory.mktemp("judged"))
    yield made
    assert made.server.stop() == 0


def test_before_anything_is_judged_answers_are_undirected(judged: Judged) -> None:
    energy = judged.ask("lab", SECRET)
    assert energy["directive"] == "L0"
    assert energy["carbon_source"]
    assert judged.get("/api/v1/evaluator")["due"]


def test_only_prompts_of_tenants_that_agreed_are_kept_and_they_are_sealed(judged: Judged) -> None:
    for number in range(3):
        judged.ask("lab", f"{SECRET} {number}")
        judged.ask("shop", f"something of the shop {number}")
    until(lambda: judged.get("/api/v1/evaluator")["prompts"] == {"chat": 4}, "four prompts of the lab are kept")
    stored = (judged.folder / "learned" / STORE_FILE).read_bytes()
    assert b"recipe" not in stored
    assert b"shop" not in stored
    assert (judged.folder / "learned" / KEY_FILE).stat().st_mode & 0o777 == 0o600


def test_after_a_run_the_optimizer_chooses_directives_and_the_cost_is_on_record(judged: Judged) -> None:
    run = judged.judge("first evidence")
    assert run["error"] is None
    assert run["judged"] == 10
    assert run["generations"] == 15
    assert run["joules"] > 0
    assert run["grams"] > 0
    assert (run["judge"], run["judge_calls"], run["reason"]) == ("exact", 0, "first evidence")
    rows = judged.get("/api/v1/audit?kind=evaluation")["rows"]
    assert rows[0]["inputs"]["judged"] == 10
    assert {entry["key"]: entry["duels"] for entry in judged.get("/api/v1/evaluator")["quality"]} == {"chat": 5.0}
    energies = [judged.ask("shop", "How do you do?") for _ in range(4)]
    assert {energy["directive_reason"] for energy in energies} == {"mix"}
    # Which level is the cheapest of a random model's is a matter of a few joules; what counts is that the plan is kept.
    plan = judged.get("/api/v1/carbon")["plan"]
    (mix,) = (each for each in plan["mixes"] if each["key"] == "chat")
    assert mix["quality"] is not None, mix
    assert {energy["directive"] for energy in energies} <= {level for level, p in mix["probabilities"].items() if p}


def test_its_own_requests_stand_in_the_ledger_under_its_own_name(judged: Judged) -> None:
    until(lambda: len(_rows_of_the_evaluator(judged)) == 15, "the evaluator's requests are in the ledger")
    assert all(row["energy_j"] > 0 for row in _rows_of_the_evaluator(judged))


def _rows_of_the_evaluator(judged: Judged) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = judged.get("/api/v1/requests?limit=100&tenant=gridserve-evaluator")["requests"]
    return rows


def _policies_carried_out(judged: Judged) -> int:
    return sum(row["result"] == "applied" for row in judged.get("/api/v1/audit?kind=policy")["rows"])


def test_the_served_model_may_judge_kept_prompts_itself(judged: Judged) -> None:
    before = _policies_carried_out(judged)
    judged.write("{judge: self, max_tokens: 8}")
    until(lambda: "judge: self" in judged.get("/api/v1/policy")["text"], "the new policy is in force")
    until(lambda: _policies_carried_out(judged) > before, "it is carried out")
    run = judged.judge("ask the model")
    assert run["error"] is None
    assert run["judge"] == "self"
    # a random model says no verdict: counted, not guessed
    assert run["judge_calls"] > 0
    assert run["judge_joules"] > 0
    assert run["unreadable"] + run["judged"] > 0


def test_withdrawn_consent_deletes_what_was_kept(judged: Judged) -> None:
    text = judged.policy.read_text().replace("keep_prompts: true", "keep_prompts: false")
    judged.policy.write_text(text)
    until(lambda: judged.get("/api/v1/evaluator")["prompts"] == {}, "what was kept is gone")
    refused = judged.post("/api/v1/evaluator/run", reason="once more")
    assert refused.status_code == 422
    assert "keep_prompts" in refused.json()["detail"]


def test_a_run_by_hand_needs_a_reason(judged: Judged) -> None:
    assert judged.post("/api/v1/evaluator/run", reason=" ").status_code == 422
