# ruff: noqa: E402 - run as a script it must find its neighbours first
"""An admin API that needs no engine: the routes of docs/admin-api.md over an emulated world.

`python tests/dashboard/emulator.py --port 9100 --condition live` runs it alone. Tokens: viewer, operator, admin.
`POST /emulator/condition` with a condition's name switches it. The inference API's chat route is there too.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

for _folder in (Path(__file__).parents[2], Path(__file__).parent):
    sys.path.insert(0, str(_folder))

import emulated_series
import msgspec
import uvicorn
from emulated_world import CONDITIONS, World
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from serving import admin_schema as api
from serving.policy.diff import diff
from serving.policy.load import parse_policy
from serving.policy.problems import PolicyError
from serving.policy.schema import policy_schema

ROLES = ("viewer", "operator", "admin")
WORDS = [
    "The",
    "sky",
    "looks",
    "blue",
    "because",
    "air",
    "scatters",
    "short",
    "wavelengths",
    "of",
    "sunlight",
    "more",
    "than",
    "long",
    "ones",
    ".",
]


class Refused(Exception):
    def __init__(self, status: int, title: str, detail: str = "", **more: Any) -> None:
        self.problem = api.Problem(title, status, detail, **more)


def body(value: Any, status: int = 200, kind: str = "application/json") -> Response:
    return Response(msgspec.json.encode(value), status, media_type=kind)


class Emulator:
    def __init__(self, world: World) -> None:
        self.world = world
        self.calls: list[str] = []

    def app(self) -> Starlette:
        get, post = ["GET"], ["POST"]
        table: list[tuple[str, list[str], str, Callable[..., Any]]] = [
            ("whoami", get, "viewer", self.whoami), ("state", get, "viewer", lambda r: self.world.state()),
            ("series", get, "viewer", lambda r: api.SeriesList(900, 1, emulated_series.catalogue(self.world))),
            ("series/data", get, "viewer", self.series), ("requests", get, "viewer", self.requests),
            ("exports/requests", get, "operator", self.export), ("requests/{id}", get, "viewer", self.request),
            ("audit", get, "viewer", self.audit), ("audit/verify", get, "viewer", self.verify),
            ("exports/audit", get, "operator", self.export), ("policy", get, "viewer", lambda r: self.policy()),
            ("policy/schema", get, "viewer", lambda r: policy_schema()),
            ("policy/revisions", get, "viewer", self.revisions),
            ("policy/revisions/{id}", get, "viewer", lambda r: self.find(r.path_params["id"])),
            ("policy/validate", post, "viewer", self.validate), ("policy/diff", post, "viewer", self.diff),
            ("policy/activate", post, "admin", self.activate), ("policy/rollback", post, "admin", self.rollback),
            ("what-if", post, "operator", self.what_if), ("holds", get, "viewer", self.holds),
            ("holds", post, "operator", self.hold), ("holds/release", post, "operator", self.release),
            ("panic", post, "operator", self.panic), ("carbon", get, "viewer", self.carbon),
            ("feeds", get, "viewer", lambda r: self.feeds()),
            ("feeds/refresh", post, "operator", lambda r: self.feeds()),
            ("evaluator", get, "viewer", lambda r: self.world.evaluator()),
            ("budgets", get, "viewer", self.budgets), ("keys", get, "admin", lambda r: api.KeyList(self.world.keys)),
            ("keys", post, "admin", self.new_key), ("keys/{id}/revoke", post, "admin", self.revoke),
            ("jobs", get, "viewer", lambda r: self.jobs()),
        ]  # fmt: skip
        routes = [
            Route(f"/api/v1/{path}", self.guarded(role, handler), methods=way) for path, way, role, handler in table
        ]
        routes.append(Route("/v1/chat/completions", self.chat, methods=post))
        routes.append(Route("/v1/models", lambda r: body({"data": [{"id": "smollm2-135m-instruct"}]})))
        routes.append(Route("/emulator/condition", self.switch, methods=post))
        return Starlette(routes=routes)

    def guarded(self, role: str, handler: Callable[..., Any]) -> Callable[[Request], Awaitable[Response]]:
        async def run(request: Request) -> Response:
            self.calls.append(f"{request.method} {request.url.path}")
            try:
                given = request.headers.get("authorization", "").removeprefix("Bearer ")
                if given not in ROLES:
                    raise Refused(401, "No such token", "send a token of the admin API")
                if ROLES.index(given) < ROLES.index(role):
                    raise Refused(403, "Role too low", f"needs {role}, the token has {given}")
                request.state.role = given
                request.state.body = await request.body()
                made = handler(request)
                return made if isinstance(made, Response) else body(made)
            except Refused as refused:
                return body(refused.problem, refused.problem.status, "application/problem+json")

        return run

    def read(self, request: Request, kind: type[Any]) -> Any:
        try:
            return msgspec.json.decode(request.state.body, type=kind)
        except msgspec.DecodeError as error:
            raise Refused(422, "Body", str(error)) from error

    async def switch(self, request: Request) -> Response:
        self.world.condition = (await request.body()).decode()
        return PlainTextResponse(self.world.condition)

    def whoami(self, request: Request) -> Any:
        return api.WhoAmI(f"ana-{request.state.role}", request.state.role)

    def series(self, request: Request) -> Any:
        query = request.query_params
        since, until = float(query["since_unix_s"]), float(query["until_unix_s"])
        return emulated_series.answer(self.world, query.getlist("name"), since, until, int(query.get("points", 600)))

    def _ledger(self) -> None:
        if self.world.condition == "empty":
            raise Refused(503, "No ledger", "this server keeps no ledger; start it with --ledger")

    def requests(self, request: Request) -> Any:
        if self.world.condition == "empty":
            return api.RequestPage([], None)
        first = int(request.query_params.get("cursor", 0))
        limit = int(request.query_params.get("limit", 100))
        rows = [self.world.request(first + i) for i in range(min(limit, max(0, 300 - first)))]
        tenant = request.query_params.get("tenant")
        rows = [row for row in rows if not tenant or row.tenant == tenant]
        return api.RequestPage(rows, str(first + limit) if first + limit < 300 else None)

    def request(self, request: Request) -> Any:
        wanted = request.path_params["id"]
        for index in range(300):
            row = self.world.request(index)
            if row.request_id == wanted:
                return row
        raise Refused(404, "No such request", wanted)

    def export(self, request: Request) -> Response:
        rows = self.world.audit if "audit" in request.url.path else [self.world.request(i) for i in range(50)]
        if request.query_params.get("format") == "json":
            return body(rows)
        plain = [msgspec.to_builtins(row) for row in rows]
        lines = [",".join(plain[0])] + [",".join(json.dumps(v) for v in row.values()) for row in plain]
        return Response("\n".join(lines), media_type="text/csv")

    def audit(self, request: Request) -> Any:
        if self.world.condition == "empty":
            return api.AuditPage([], None)
        kind, before = request.query_params.get("kind"), request.query_params.get("before_seq")
        rows = [r for r in reversed(self.world.audit) if not kind or r.kind == kind]
        rows = [r for r in rows if before is None or r.seq < int(before)]
        limit = int(request.query_params.get("limit", 100))
        return api.AuditPage(rows[:limit], rows[limit - 1].seq if len(rows) > limit else None)

    def verify(self, request: Request) -> Any:
        self._ledger()
        last = self.world.audit[-1]
        return api.AuditVerification(True, len(self.world.audit), last.seq, last.hash, None, None)

    def policy(self) -> Any:
        if self.world.condition == "empty":
            raise Refused(404, "No policy", "started without --policy")
        world, now = self.world, self.world.revisions[0]
        effective = api.EffectiveSettings(
            "slo_slack", 600, 1980, None, None, True, "normal", "mix", 0.98, 0.02, {"directive": "clean-hours"}
        )
        return api.PolicyState(
            now.revision, "follow-the-grid", world.mode, world.mode, None, world.text, "policy.yaml", False,
            now.activated_unix_s, now.actor, [], True, None, effective, None,
        )  # fmt: skip

    def revisions(self, request: Request) -> Any:
        shown = [msgspec.structs.replace(revision, text=None) for revision in self.world.revisions]
        return api.PolicyRevisions(shown)

    def find(self, revision: str) -> api.PolicyRevision:
        for known in self.world.revisions:
            if known.revision == revision:
                return known
        raise Refused(404, "No such revision", revision)

    def check(self, text: str) -> Any:
        try:
            return parse_policy(text.encode(), "policy.yaml"), []
        except PolicyError as error:
            return None, [
                api.PolicyProblem(p.line, p.column, p.path, p.message, str(p.severity)) for p in error.problems
            ]

    def validate(self, request: Request) -> Any:
        text = self.read(request, api.PolicyText).text
        loaded, problems = self.check(text)
        revision = hashlib.sha256(text.encode()).hexdigest()[:12] if loaded else None
        return api.PolicyValidation(loaded is not None, revision, problems)

    def diff(self, request: Request) -> Any:
        asked = self.read(request, api.PolicyDiffBody)
        text = asked.text if asked.text is not None else self.find(asked.revision).text
        loaded, problems = self.check(text)
        if loaded is None:
            raise Refused(422, "The policy is refused", "see problems", problems=problems)
        current, _ = self.check(self.world.text)
        changes = [api.PolicyChange(c.path, c.old, c.new) for c in diff(current.policy, loaded.policy)]
        return api.PolicyDiff(self.world.revisions[0].revision, "new", changes)

    def activate(self, request: Request) -> Any:
        edit = self.read(request, api.PolicyEdit)
        return self._put(edit.text, edit.expected_revision, edit.reason, request.state.role)

    def rollback(self, request: Request) -> Any:
        asked = self.read(request, api.PolicyRollback)
        text = self.find(asked.revision).text or ""
        return self._put(text, asked.expected_revision, asked.reason, request.state.role)

    def _put(self, text: str, expected: str, reason: str, role: str) -> Any:
        world = self.world
        if expected != world.revisions[0].revision:
            raise Refused(
                409, "The policy changed meanwhile", "look at it again", current_revision=world.revisions[0].revision
            )
        loaded, problems = self.check(text)
        if loaded is None:
            raise Refused(422, "The policy is refused", "see problems", problems=problems)
        world.text, world.mode = text, str(loaded.policy.spec.mode)
        made = world._revision(text, world.mode, time.time(), f"ana-{role}", reason)
        world.revisions.insert(0, made)
        world.add_audit("policy", f"ana-{role}", reason)
        return self.policy()

    def what_if(self, request: Request) -> Any:
        asked = self.read(request, api.WhatIfBody)
        loaded, problems = self.check(asked.text)
        if loaded is None:
            raise Refused(422, "The policy is refused", "see problems", problems=problems)
        now = api.WhatIfOutcome(
            self.world.revisions[0].revision, 812, 3.1e6, 118.0, 861.0, 0.12, 0.31, 0.021, 0.034, 40
        )
        new = api.WhatIfOutcome("new", 812, 2.8e6, 104.0, 790.0, 0.13, 0.36, 0.023, 0.037, 44)
        return api.WhatIfAnswer("simulated", asked.window_s, now, new, ["lengths as recorded"])

    def holds(self, request: Request) -> Any:
        return api.HoldList(self.world.hold, [self.world.hold] if self.world.hold else [])

    def _place(self, mode: str, reason: str, role: str, clock: int | None, duration: float | None) -> Any:
        now = time.time()
        expires = now + duration if duration else None
        self.world.hold = api.Hold("h1", mode, clock, reason, now, f"ana-{role}", expires)
        self.world.add_audit("hold", f"ana-{role}", reason, asked=clock)
        done = [api.ActuationResult("GPU-0", "lock_clocks", "applied", "hold", clock, clock, 0.011)]
        return api.HoldAnswer(self.world.hold, done)

    def hold(self, request: Request) -> Any:
        asked = self.read(request, api.HoldBody)
        if not asked.reason.strip():
            raise Refused(422, "A reason is needed", "say why")
        if asked.mode != "defaults" and not asked.duration_s:
            raise Refused(422, "An expiry is needed", "give duration_s")
        return self._place(asked.mode, asked.reason, request.state.role, asked.clock_mhz, asked.duration_s)

    def panic(self, request: Request) -> Any:
        return self._place("defaults", self.read(request, api.Reason).reason, request.state.role, None, None)

    def release(self, request: Request) -> Any:
        self.world.hold = None
        self.world.add_audit("release", f"ana-{request.state.role}", self.read(request, api.Reason).reason)
        return api.HoldAnswer(None, [])

    def carbon(self, request: Request) -> Any:
        if self.world.condition == "empty":
            raise Refused(404, "No carbon part", "the policy names no carbon zone")
        return self.world.carbon()

    def feeds(self) -> Any:
        stale = self.world.condition == "stale_feed"
        last = time.time() - (7300 if stale else 70)
        return api.FeedList(
            "GB", [api.FeedHealthState("uk_grid", last, "HTTP 503" if stale else None, 14 if stale else 0, None)]
        )

    def jobs(self) -> Any:
        now = time.time()
        return api.JobList([api.JobState("feeds", 300, 20, now + 60, now - 240, None, 24, 1)])

    def budgets(self, request: Request) -> Any:
        self._ledger()
        return self.world.budgets()

    def new_key(self, request: Request) -> Any:
        asked = self.read(request, api.KeyBody)
        key = api.KeyInfo(
            f"k{len(self.world.keys) + 1}", asked.name, "inference", asked.scopes, time.time(), None, None
        )
        self.world.keys.append(key)
        return api.NewKey(key, "gs_secret_shown_once")

    def revoke(self, request: Request) -> Any:
        self.world.keys = [key for key in self.world.keys if key.key_id != request.path_params["id"]]
        return api.KeyList(self.world.keys)

    async def chat(self, request: Request) -> Response:
        asked = json.loads(await request.body())
        level = asked.get("directive", "auto")
        count = {"L1": 10, "L2": 5}.get(level, len(WORDS))

        async def stream() -> AsyncIterator[bytes]:
            for word in WORDS[:count]:
                yield f"data: {json.dumps({'choices': [{'delta': {'content': word + ' '}}]})}\n\n".encode()
                await asyncio.sleep(0.05)
            energy = {"energy_joules": 0.6 * count, "grams_co2e": 0.00003 * count, "method": self.world.method(),
                      "source": "nvml_energy_counter", "directive": level, "uncertainty_percent": 3.0}  # fmt: skip
            final = {"choices": [], "usage": {"prompt_tokens": 21, "completion_tokens": count}, "energy": energy}
            yield f"data: {json.dumps(final)}\n\ndata: [DONE]\n\n".encode()

        return StreamingResponse(stream(), media_type="text/event-stream")


@contextmanager
def serving_on(emulator: Emulator) -> Iterator[str]:
    """Its URL, for as long as the block runs."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(emulator.app(), log_level="error", lifespan="off", ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=9100)
    parser.add_argument("--condition", choices=CONDITIONS, default="live")
    arguments = parser.parse_args()
    emulator = Emulator(World(arguments.condition))
    uvicorn.run(emulator.app(), host="127.0.0.1", port=arguments.port, log_level="warning", ws="none")


if __name__ == "__main__":
    main()
