"""The admin API over a fake engine and a simulated device: access, bodies, edits, holds, keys. In process."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.routing import APIRoute

from engine.config import EngineConfig
from power.model_shape import model_shape
from serving.admin_api import create_admin_app
from serving.admin_context import AdminContext
from serving.composition import Parts, build_parts, serve_with
from serving.inference_api import create_app
from serving.server_options import AdminOptions, ServerOptions
from serving.settings import ApiSettings
from serving.tenants_keys import KeyRing

TOKEN = "a-token-of-these-tests"
POLICY = """apiVersion: gridserve/v1
kind: Policy
metadata: {name: first}
spec:
  mode: enforce
  slo: {ttft_p99_ms: 2000, tpot_p99_ms: 200}
  power: {governor: static, static: {clock_mhz: 1200}}
  carbon:
    zone: GB
    feeds: [{type: constant, g_per_kwh: 300, source: a test}]
  directives:
    levels: [{id: L0}, {id: L1, text: Always answer briefly}]
    optimizer: classed
  tenants: [{name: research, energy_budget_j_per_day: 1000, on_exceed: refuse}]
"""


@dataclass
class Admin:
    parts: Parts
    context: AdminContext
    app: Any
    service: Any
    client: httpx.AsyncClient
    policy: Path

    async def get(self, path: str, token: str = TOKEN, **parameters: Any) -> Any:
        answer = await self.client.get(path, params=parameters, headers={"Authorization": f"Bearer {token}"})
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def post(self, path: str, body: dict[str, Any], token: str = TOKEN) -> httpx.Response:
        return await self.client.post(path, json=body, headers={"Authorization": f"Bearer {token}"})


@pytest.fixture
async def admin(tmp_path: Path, fake: Any, fake_text: Any) -> AsyncIterator[Admin]:
    policy = tmp_path / "policy.yaml"
    policy.write_text(POLICY)
    options = ServerOptions(
        EngineConfig(model="none", model_id="fake/model", max_num_seqs=8),
        ApiSettings(api_keys=KeyRing(tmp_path / "keys.json")),
        0,
        policy=policy,
        power_device="simulated:h100-sxm",
        ledger=tmp_path / "ledger",
        admin=AdminOptions(token=TOKEN),
    )
    parts = build_parts(options, model_shape("llama-3.1-8b"))
    power = parts.steering.power
    assert power is not None
    power.start()
    await parts.control.start()
    service, context = serve_with(parts, fake(), fake_text)
    app = create_admin_app(context)
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost")
    yield Admin(parts, context, app, service, client, policy)
    await client.aclose()
    await parts.control.close()
    await asyncio.to_thread(power.stop)
    assert parts.ledger is not None
    parts.ledger.close()


async def until(condition: Any, what: str) -> None:
    for _ in range(600):
        found = condition()
        if await found if asyncio.iscoroutine(found) else found:
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"never: {what}")


def api_routes(app: Any) -> list[APIRoute]:
    """Every route, those of included routers too."""
    found: list[APIRoute] = []

    def walk(routes: Any) -> None:
        for route in routes:
            inner = getattr(getattr(route, "original_router", None), "routes", None)
            if inner is not None:
                walk(inner)
            else:
                assert isinstance(route, APIRoute), route
                found.append(route)

    walk(app.routes)
    return found


def routes_of(app: Any) -> list[tuple[str, str]]:
    return [
        (method, re.sub(r"\{[^}]*\}", "x", route.path)) for route in api_routes(app) for method in sorted(route.methods)
    ]


OPEN = {("GET", "/health"), ("GET", "/ready")}


async def test_every_route_but_the_probes_wants_a_token(admin: Admin) -> None:
    walked = routes_of(admin.app)
    assert len(walked) > 30
    for method, path in walked:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {TOKEN}"}):
            for host in ("localhost", "a/health?", "evil@localhost"):
                answer = await admin.client.request(method, path, headers=headers | {"Host": host})
                assert (answer.status_code == 401) != ((method, path) in OPEN), (method, path, answer.text)
                if answer.status_code == 401:
                    assert answer.headers["content-type"] == "application/problem+json"
                    assert answer.json()["status"] == 401


async def test_every_route_of_the_inference_api_wants_a_key_but_the_open_ones(admin: Admin) -> None:
    app = create_app(admin.service, admin.parts.options.api)
    opened = {("GET", "/"), ("HEAD", "/"), ("GET", "/health"), ("GET", "/version"), ("GET", "/metrics")}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        for method, path in routes_of(app):
            answer = await client.request(method, path)
            assert (answer.status_code == 401) != ((method, path) in opened), (method, path)


async def test_roles_are_enforced_on_every_route(admin: Admin) -> None:
    ring = admin.parts.options.keys
    assert ring is not None
    tokens = {
        "inference": ring.create("someone", ("inference",))[1],
        "viewer": ring.create("looker", ("control:read",))[1],
        "operator": ring.create("hand", ("control:write",))[1],
    }
    operator = {"/api/v1/holds", "/api/v1/holds/release", "/api/v1/panic", "/api/v1/policy/reload",
                "/api/v1/feeds/refresh", "/api/v1/what-if", "/api/v1/evaluator/run",
                "/api/v1/exports/requests", "/api/v1/exports/audit"}  # fmt: skip
    admins = {"/api/v1/policy/activate", "/api/v1/policy/rollback", "/api/v1/keys", "/api/v1/keys/x/rotate",
              "/api/v1/keys/x/revoke"}  # fmt: skip
    reads = {("GET", "/api/v1/holds")}
    for method, path in routes_of(admin.app):
        if (method, path) in OPEN:
            continue
        for role, token in tokens.items():
            answer = await admin.client.request(method, path, headers={"Authorization": f"Bearer {token}"})
            needed = "admin" if path in admins else "operator" if path in operator else "viewer"
            needed = "viewer" if (method, path) in reads else needed
            if role == "inference":
                assert answer.status_code == 401, (path, role)
            else:
                allowed = needed == "viewer" or needed == role
                assert (answer.status_code != 403) == allowed, (method, path, role, answer.text)


async def test_the_state_names_everything_that_runs(admin: Admin) -> None:
    state = await admin.get("/api/v1/state")
    assert state["simulated"] is True
    assert state["engine"]["model"] == "fake/model"
    assert state["power"]["mode"] == "enforce"
    assert state["power"]["totals"]["method"] == "simulated"
    assert state["policy"]["name"] == "first"
    await until(lambda: admin.parts.control.carbon.reading().g_per_kwh, "an intensity")  # type: ignore[union-attr]
    carbon = await admin.get("/api/v1/carbon")
    assert carbon["intensity"]["g_per_kwh"] == 300
    assert [level["level_id"] for level in carbon["levels"]] == ["L0", "L1"]
    for path in ("feeds", "evaluator", "budgets", "jobs", "series", "holds", "audit/verify", "policy/schema", "keys"):
        assert await admin.get(f"/api/v1/{path}")


async def test_the_document_describes_every_route_and_names_only_what_it_defines(admin: Admin) -> None:
    document = await admin.get("/openapi.json")
    described = {(method.upper(), path) for path, found in document["paths"].items() for method in found}
    stated = {
        (method, route.path) for route in api_routes(admin.app) if route.include_in_schema for method in route.methods
    }
    assert described == stated
    for name in re.findall(r"#/components/schemas/([A-Za-z]+)", json.dumps(document)):
        assert name in document["components"]["schemas"]
    listed = Path("docs/admin-api.md").read_text()
    for _, path in stated:
        assert path in listed, f"{path} is missing in docs/admin-api.md"


async def test_a_request_is_on_record_with_its_settled_energy(admin: Admin) -> None:
    app = create_app(admin.service, admin.parts.options.api)
    ring = admin.parts.options.keys
    assert ring is not None
    _, secret = ring.create("research", ("inference",))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        body = {"messages": [{"role": "user", "content": "a secret word"}], "max_tokens": 5}
        answer = await client.post("/v1/chat/completions", json=body, headers={"Authorization": f"Bearer {secret}"})
        assert answer.status_code == 200, answer.text
    admin.parts.log.sweep(everything=True)

    async def recorded() -> bool:
        return bool((await admin.get("/api/v1/requests"))["requests"])

    await until(recorded, "a row")
    page = await admin.get("/api/v1/requests", tenant="research")
    (row,) = page["requests"]
    assert (row["tenant"], row["completion_tokens"], row["status"], row["finish_reason"]) == (
        "research",
        5,
        200,
        "length",
    )
    assert row["energy_method"] == "simulated"
    assert row["policy_mode"] == "enforce"
    assert row["ttft_s"] > 0
    assert (await admin.get(f"/api/v1/requests/{row['request_id']}")) == row
    assert (await admin.get("/api/v1/budgets"))["tenants"][0]["requests"] == 1
    export = await admin.client.get("/api/v1/exports/requests", headers={"Authorization": f"Bearer {TOKEN}"})
    assert export.text.count("\r\n") == 2
    assert "a secret word" not in export.text


async def test_a_used_up_budget_refuses_and_says_when_it_reopens(admin: Admin) -> None:
    app = create_app(admin.service, admin.parts.options.api)
    ring = admin.parts.options.keys
    assert ring is not None
    _, secret = ring.create("research", ("inference",))
    admin.parts.budgets._used["research"] = type(admin.parts.budgets.used("x"))(joules=2000.0)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        body = {"messages": [{"role": "user", "content": "hello"}]}
        answer = await client.post("/v1/chat/completions", json=body, headers={"Authorization": f"Bearer {secret}"})
    assert answer.status_code == 429
    assert answer.json()["error"]["code"] == "energy_budget_exceeded"
    assert 0 < int(answer.headers["retry-after"]) <= 86_400


async def test_an_edit_needs_the_present_revision_a_reason_and_a_good_policy(admin: Admin) -> None:
    old = await admin.get("/api/v1/policy")
    text = POLICY.replace("1200", "900").replace("first", "second")
    edit = {"text": text, "expected_revision": old["revision"], "reason": "try less"}
    refused = await admin.post("/api/v1/policy/activate", edit | {"expected_revision": "0" * 64})
    assert refused.status_code == 409
    assert refused.json()["current_revision"] == old["revision"]
    assert (await admin.post("/api/v1/policy/activate", edit | {"reason": " "})).status_code == 422
    bad = await admin.post("/api/v1/policy/activate", edit | {"text": text.replace("static,", "statik,")})
    assert bad.status_code == 422
    assert bad.json()["problems"][0]["line"] == 7
    assert (await admin.get("/api/v1/policy"))["revision"] == old["revision"]

    changed = await admin.post("/api/v1/policy/diff", {"text": text})
    assert {one["path"] for one in changed.json()["changes"]} >= {"spec.power.static.clock_mhz"}
    done = await admin.post("/api/v1/policy/activate", edit)
    assert done.status_code == 200, done.text
    assert done.json()["name"] == "second"
    assert "900" in admin.policy.read_text()
    power = admin.parts.steering.power
    assert power is not None
    await until(lambda: power.controller.gpus[0].asked.sm_clock_mhz == 900, "the new clock")
    back = {"revision": old["revision"], "expected_revision": done.json()["revision"], "reason": "it was worse"}
    assert (await admin.post("/api/v1/policy/rollback", back)).json()["name"] == "first"
    revisions = (await admin.get("/api/v1/policy/revisions"))["revisions"]
    assert [one["actor"] for one in revisions] == ["local", "local", "start"]

    async def both() -> bool:
        rows = (await admin.get("/api/v1/audit", kind="policy"))["rows"]
        return [row["reason"] for row in rows[:2]] == [f"rollback to {old['revision']}: it was worse", "try less"]

    await until(both, "the reasons in the audit")


async def test_a_shared_key_acts_in_the_name_of_a_person(admin: Admin) -> None:
    assert admin.parts.options.api.api_keys is not None
    secret = admin.parts.options.api.api_keys.create("hand", ("control:write",))[1]

    async def whoami(user: str) -> httpx.Response:
        headers = {"Authorization": f"Bearer {secret}", "X-Gridserve-User": user}
        return await admin.client.get("/api/v1/whoami", headers=headers)

    named = (await whoami("jos%C3%A9@example.org")).json()
    assert named == {"name": "hand (josé@example.org)", "role": "operator"}
    assert (await whoami("")).json()["name"] == "hand"
    for bad in ("x" * 121, "a%0Ab", "%00"):
        assert (await whoami(bad)).status_code == 422


async def test_validation_finds_what_an_edit_would(admin: Admin) -> None:
    good = await admin.post("/api/v1/policy/validate", {"text": POLICY})
    assert good.json()["ok"] is True
    bad = await admin.post("/api/v1/policy/validate", {"text": POLICY.replace("1200", "99")})
    assert bad.json() | {"problems": []} == {"ok": False, "revision": None, "problems": []}
    assert bad.json()["problems"][0]["path"] == "spec.power.static.clock_mhz"


async def test_holds_take_control_and_give_it_back(admin: Admin) -> None:
    power = admin.parts.steering.power
    assert power is not None
    assert (await admin.post("/api/v1/holds", {"mode": "pin", "reason": "x", "duration_s": 60})).status_code == 422
    assert (await admin.post("/api/v1/holds", {"mode": "freeze", "reason": "x"})).status_code == 422
    pin = {"mode": "pin", "reason": "a look at 900", "duration_s": 60, "clock_mhz": 900}
    placed = await admin.post("/api/v1/holds", pin)
    assert placed.status_code == 200, placed.text
    assert placed.json()["actuations"][0]["read_back"] == 900
    assert (await admin.get("/api/v1/state"))["hold"]["reason"] == "a look at 900"
    panic = await admin.post("/api/v1/panic", {"reason": "smoke"})
    assert panic.json()["hold"]["mode"] == "defaults"
    released = await admin.post("/api/v1/holds/release", {"reason": "all is well"})
    assert released.json() == {"hold": None, "actuations": []}
    assert (await admin.get("/api/v1/state"))["hold"] is None
    await until(lambda: power.controller.gpus[0].asked.sm_clock_mhz == 1200, "the policy's clock again")

    async def written() -> bool:
        kinds = [row["kind"] for row in (await admin.get("/api/v1/audit"))["rows"]]
        return kinds.count("hold") == 2 and kinds.count("release") == 1

    await until(written, "audit rows")
    assert (await admin.get("/api/v1/audit/verify"))["ok"] is True


async def test_keys_are_shown_once_rotated_and_revoked(admin: Admin) -> None:
    ring = admin.parts.options.keys
    assert ring is not None
    made = await admin.post("/api/v1/keys", {"name": "lab", "reason": "a new lab", "joules_per_minute": 50})
    assert made.status_code == 201, made.text
    secret, key_id = made.json()["secret"], made.json()["key"]["key_id"]
    assert ring.owner(secret) == "lab"
    assert secret not in ring.path.read_text()
    rotated = (await admin.post(f"/api/v1/keys/{key_id}/rotate", {"reason": "leaked"})).json()["secret"]
    assert (ring.owner(secret), ring.owner(rotated)) == (None, "lab")
    assert secret.split("_")[2] not in json.dumps(await admin.get("/api/v1/keys"))
    assert (await admin.post(f"/api/v1/keys/{key_id}/revoke", {"reason": "gone"})).json() == {"keys": []}
    assert ring.owner(rotated) is None
    assert (await admin.post("/api/v1/keys", {"name": "a b", "reason": "x"})).status_code == 422


async def test_bad_bodies_and_parameters_are_problems(admin: Admin) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    plain = await admin.client.post("/api/v1/holds", content="{}", headers=headers | {"Content-Type": "text/plain"})
    assert plain.status_code == 415
    broken = await admin.client.post(
        "/api/v1/holds", content="{", headers=headers | {"Content-Type": "application/json"}
    )
    assert broken.status_code == 422
    large = b'"' + b"x" * (2 << 20) + b'"'
    huge = await admin.client.post(
        "/api/v1/holds", content=large, headers=headers | {"Content-Type": "application/json"}
    )
    assert huge.status_code == 413
    extra = await admin.post("/api/v1/panic", {"reason": "x", "surprise": 1})
    assert extra.status_code == 422
    for path in ("requests?limit=0", "requests?cursor=x", "audit?kind=nothing", "series/data?name=nothing",
                 "series/data?name=power_w&points=1e9", "requests?since_unix_s=nan"):  # fmt: skip
        answer = await admin.client.get(f"/api/v1/{path}", headers=headers)
        assert answer.status_code == 422, path
        assert answer.headers["content-type"] == "application/problem+json"
    assert (await admin.client.get("/api/v1/nothing", headers=headers)).status_code == 404
    assert (await admin.client.get("/api/v1/requests/none", headers=headers)).status_code == 404


async def test_series_come_from_memory_and_are_bounded(admin: Admin) -> None:
    for _ in range(3):
        await admin.context.sampler.sample()
    listed = {one["name"]: one for one in (await admin.get("/api/v1/series"))["series"]}
    assert listed["power_w"]["unit"] == "W"
    found = await admin.get("/api/v1/series/data", name=["power_w", "intensity_g_per_kwh"], points=2)
    assert [one["name"] for one in found["series"]] == ["power_w", "intensity_g_per_kwh"]
    assert 1 <= len(found["series"][0]["mean"]) <= 2
    assert found["series"][0]["mean"][-1] > 0


async def test_metrics_hold_the_catalogue_and_nothing_else(admin: Admin) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    from serving.control_catalogue import CONTROL
    from serving.metric_catalogue import CATALOGUE

    headers = {"Authorization": f"Bearer {TOKEN}"}
    text = (await admin.client.get("/metrics", headers=headers)).text
    names = [family.name for family in text_string_to_metric_families(text)]
    assert len(names) == len(set(names))
    listed = {spec.name.removesuffix("_total") for spec in (*CONTROL, *CATALOGUE)}
    assert {name.removesuffix("_total") for name in names} <= listed
    assert {spec.name.removesuffix("_total") for spec in CONTROL} - set(names) <= {
        "gridserve_carbon_forecast_timestamp_seconds",
        "gridserve_trace_spans_exported",
        "gridserve_trace_spans_lost",
    } | {name for name in listed if name.startswith("DCGM") or name in names}
    samples = {sample.name: sample for family in text_string_to_metric_families(text) for sample in family.samples}
    of_gpus = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    first = next(sample for sample in of_gpus if "gpu" in sample.labels)
    assert first.name.startswith("DCGM_"), "aiperf takes a GPU's identity from the first series that names its number"
    energy = samples["DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION"]
    assert set(energy.labels) == {"gpu", "UUID", "modelName", "Hostname"}
    assert energy.value == pytest.approx(1000 * samples["gridserve_gpu_energy_joules_total"].value, rel=0.05)
