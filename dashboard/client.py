"""A typed client of the admin API: one method for each route the dashboard uses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import quote

import httpx
import msgspec

from dashboard.errors import ApiContractError, ApiRefusedError, ApiUnreachableError
from dashboard.schema_access import BudgetList, KeyList, NewKey, WhoAmI
from dashboard.schema_carbon import CarbonState, EvaluatorState
from dashboard.schema_policy import (
    HoldAnswer,
    HoldList,
    PolicyDiff,
    PolicyProblem,
    PolicyRevision,
    PolicyRevisions,
    PolicyState,
    PolicyValidation,
    WhatIfAnswer,
)
from dashboard.schema_records import AuditPage, AuditVerification, RequestPage, RequestRecord
from dashboard.schema_state import FeedList, JobList, SeriesAnswer, SeriesList, State

Answer = TypeVar("Answer")
Query = Mapping[str, str | float | int | None]

CONNECT_TIMEOUT_S = 2.0
READ_TIMEOUT_S = 10.0
WHAT_IF_TIMEOUT_S = 120.0
USER_HEADER = "X-Gridserve-User"


class _Problem(msgspec.Struct, frozen=True):
    title: str
    status: int
    detail: str = ""
    problems: list[PolicyProblem] | None = None
    current_revision: str | None = None


class AdminClient:
    """Every method raises `ApiUnreachableError`, `ApiRefusedError` or `ApiContractError`. Safe to share by threads."""

    def __init__(
        self, base_url: str, token: str | None, user: str | None = None, transport: httpx.BaseTransport | None = None
    ) -> None:
        """`user`: who acts with a token that several people share; the audit trail names them beside it."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        if user:
            headers[USER_HEADER] = quote(user, safe="@.+-_")
        timeout = httpx.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
        self.base_url = base_url.rstrip("/")
        self._http = httpx.Client(
            base_url=self.base_url, headers=headers, timeout=timeout, transport=transport, trust_env=False
        )

    def close(self) -> None:
        self._http.close()

    def whoami(self) -> WhoAmI:
        return self._get("/api/v1/whoami", WhoAmI)

    def state(self) -> State:
        return self._get("/api/v1/state", State)

    def series_list(self) -> SeriesList:
        return self._get("/api/v1/series", SeriesList)

    def series(self, names: Sequence[str], since_unix_s: float, until_unix_s: float, points: int) -> SeriesAnswer:
        parameters: list[tuple[str, str]] = [("name", name) for name in names]
        parameters += [
            ("since_unix_s", str(since_unix_s)),
            ("until_unix_s", str(until_unix_s)),
            ("points", str(points)),
        ]
        return self._decode(self._send("GET", "/api/v1/series/data", params=parameters), SeriesAnswer)

    def requests(
        self,
        limit: int = 100,
        cursor: str | None = None,
        tenant: str | None = None,
        since_unix_s: float | None = None,
        until_unix_s: float | None = None,
    ) -> RequestPage:
        query: Query = {
            "limit": limit,
            "cursor": cursor,
            "tenant": tenant,
            "since_unix_s": since_unix_s,
            "until_unix_s": until_unix_s,
        }
        return self._get("/api/v1/requests", RequestPage, query)

    def request(self, request_id: str) -> RequestRecord:
        return self._get(f"/api/v1/requests/{_segment(request_id)}", RequestRecord)

    def export(self, what: str, file_format: str, since_unix_s: float | None, until_unix_s: float | None) -> bytes:
        """`what`: requests or audit; `file_format`: csv or json."""
        query: Query = {"format": file_format, "since_unix_s": since_unix_s, "until_unix_s": until_unix_s}
        return self._send("GET", f"/api/v1/exports/{what}", params=_present(query)).content

    def audit(self, limit: int = 100, before_seq: int | None = None, kind: str | None = None) -> AuditPage:
        return self._get("/api/v1/audit", AuditPage, {"limit": limit, "before_seq": before_seq, "kind": kind})

    def verify_audit(self) -> AuditVerification:
        return self._get("/api/v1/audit/verify", AuditVerification)

    def policy(self) -> PolicyState:
        return self._get("/api/v1/policy", PolicyState)

    def policy_schema(self) -> dict[str, Any]:
        return self._get("/api/v1/policy/schema", dict[str, Any])

    def revisions(self, limit: int = 100) -> PolicyRevisions:
        return self._get("/api/v1/policy/revisions", PolicyRevisions, {"limit": limit})

    def revision(self, revision: str) -> PolicyRevision:
        return self._get(f"/api/v1/policy/revisions/{_segment(revision)}", PolicyRevision)

    def validate(self, text: str) -> PolicyValidation:
        return self._post("/api/v1/policy/validate", {"text": text}, PolicyValidation)

    def diff(self, text: str | None = None, revision: str | None = None) -> PolicyDiff:
        return self._post(
            "/api/v1/policy/diff", {"text": text} if text is not None else {"revision": revision}, PolicyDiff
        )

    def activate(self, text: str, expected_revision: str, reason: str) -> PolicyState:
        body = {"text": text, "expected_revision": expected_revision, "reason": reason}
        return self._post("/api/v1/policy/activate", body, PolicyState)

    def rollback(self, revision: str, expected_revision: str, reason: str) -> PolicyState:
        body = {"revision": revision, "expected_revision": expected_revision, "reason": reason}
        return self._post("/api/v1/policy/rollback", body, PolicyState)

    def what_if(self, text: str, window_s: float) -> WhatIfAnswer:
        body = {"text": text, "window_s": window_s}
        return self._decode(self._send("POST", "/api/v1/what-if", body, timeout_s=WHAT_IF_TIMEOUT_S), WhatIfAnswer)

    def holds(self) -> HoldList:
        return self._get("/api/v1/holds", HoldList)

    def hold(self, mode: str, reason: str, duration_s: float | None, clock_mhz: int | None) -> HoldAnswer:
        body = {"mode": mode, "reason": reason, "duration_s": duration_s, "clock_mhz": clock_mhz}
        return self._post("/api/v1/holds", body, HoldAnswer)

    def release(self, reason: str) -> HoldAnswer:
        return self._post("/api/v1/holds/release", {"reason": reason}, HoldAnswer)

    def panic(self, reason: str) -> HoldAnswer:
        return self._post("/api/v1/panic", {"reason": reason}, HoldAnswer)

    def carbon(self) -> CarbonState:
        return self._get("/api/v1/carbon", CarbonState)

    def evaluator(self) -> EvaluatorState:
        return self._get("/api/v1/evaluator", EvaluatorState)

    def feeds(self) -> FeedList:
        return self._get("/api/v1/feeds", FeedList)

    def refresh_feeds(self) -> FeedList:
        return self._post("/api/v1/feeds/refresh", None, FeedList)

    def budgets(self) -> BudgetList:
        return self._get("/api/v1/budgets", BudgetList)

    def jobs(self) -> JobList:
        return self._get("/api/v1/jobs", JobList)

    def keys(self) -> KeyList:
        return self._get("/api/v1/keys", KeyList)

    def create_key(self, name: str, scopes: Sequence[str], expires_in_s: float | None, reason: str) -> NewKey:
        body = {"name": name, "scopes": list(scopes), "expires_in_s": expires_in_s, "reason": reason}
        return self._post("/api/v1/keys", body, NewKey)

    def rotate_key(self, key_id: str, reason: str) -> NewKey:
        return self._post(f"/api/v1/keys/{_segment(key_id)}/rotate", {"reason": reason}, NewKey)

    def revoke_key(self, key_id: str, reason: str) -> KeyList:
        return self._post(f"/api/v1/keys/{_segment(key_id)}/revoke", {"reason": reason}, KeyList)

    def _get(self, path: str, answer: type[Answer], query: Query | None = None) -> Answer:
        return self._decode(self._send("GET", path, params=_present(query or {})), answer)

    def _post(self, path: str, body: Mapping[str, Any] | None, answer: type[Answer]) -> Answer:
        return self._decode(self._send("POST", path, body), answer)

    def _send(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        params: Mapping[str, str] | list[tuple[str, str]] | None = None,
        timeout_s: float | None = None,
    ) -> httpx.Response:
        query = httpx.QueryParams(params) if params else None  # type: ignore[arg-type]
        request = self._http.build_request(method, path, json=body, params=query)
        if timeout_s is not None:
            request.extensions["timeout"]["read"] = timeout_s
        try:
            response = self._http.send(request)
        except httpx.TransportError as error:
            raise ApiUnreachableError(
                f"The admin API at {self.base_url} does not answer ({type(error).__name__}). "
                "Check that the server runs and that --api names its admin listener."
            ) from error
        if response.is_error:
            raise _refusal(response)
        return response

    def _decode(self, response: httpx.Response, answer: type[Answer]) -> Answer:
        try:
            return msgspec.json.decode(response.content, type=answer)
        except msgspec.DecodeError as error:
            raise ApiContractError(
                f"The answer of {response.request.url.path} is not as expected: {error}. "
                "Dashboard and server are of different versions; update the older one."
            ) from error


def _present(query: Query) -> dict[str, str]:
    return {name: str(value) for name, value in query.items() if value is not None and value != ""}


def _segment(text: str) -> str:
    """One path segment, quoted: an identifier an operator typed must not leave it."""
    return quote(text, safe="")


def _refusal(response: httpx.Response) -> ApiRefusedError:
    try:
        problem = msgspec.json.decode(response.content, type=_Problem)
    except msgspec.DecodeError:
        return ApiRefusedError(response.status_code, f"HTTP {response.status_code}", response.reason_phrase)
    return ApiRefusedError(
        response.status_code, problem.title, problem.detail, problem.problems or (), problem.current_revision
    )
