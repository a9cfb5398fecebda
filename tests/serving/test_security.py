"""What peers were hit by, row for row: the advisory, and what must hold here instead.

Rows that have a home elsewhere: huge `n`, malformed schemas and grammars, chat templates, image URLs, prompt embeddings
(`test_bad_input.py`); heads and bodies without end (`test_sockets.py`, `test_bad_input.py`); crafted Host headers and
prefix caches by tenant (`test_auth.py`); directives and request text (`test_steering.py`); every route and every role
(`test_admin_api.py`); faults of one request (`test_faults.py`).
"""

from __future__ import annotations

import ast
import logging
import time
import tomllib
from pathlib import Path
from typing import Any

import httpx
import pytest
from packaging.version import Version

from serving.admin_auth import AdminAccess
from serving.auth import ApiKeys, hash_key, write_keys
from serving.inference_api import create_app
from serving.policy.load import parse_policy
from serving.policy.problems import PolicyError
from serving.service import _cache_salt
from serving.tenants_keys import KeyRing
from tests.serving.test_admin_api import POLICY, TOKEN, Admin, admin

__all__ = ["admin"]
ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("kernels", "engine", "power", "carbon", "traces", "serving", "dashboard", "bench")
SOURCES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
SQL = [
    "' OR '1'='1",
    "'; DROP TABLE requests; --",
    '" OR 1=1 --',
    "gs_' UNION SELECT hash--_x",
    "%27%20OR%201=1",
    "\\x00",
]


def calls(path: Path) -> list[str]:
    """Dotted names of everything a module calls or imports."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            found.append(ast.unparse(node.func))
        elif isinstance(node, ast.Import):
            found += [f"import {alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append(f"import {node.module}")
    return found


def test_nothing_is_unpickled_evaluated_or_loaded_as_code() -> None:
    """CVE-2025-32444, -47277, -62164, -66448, CVE-2026-7301: pickle on sockets, torch.load, remote model code."""
    banned = {"eval", "exec", "torch.load", "os.system", "marshal.loads", "pickle.loads", "pickle.load"}
    modules = {f"import {name}" for name in ("pickle", "dill", "cloudpickle", "shelve", "marshal", "yaml")}
    for path in SOURCES:
        used = set(calls(path))
        assert not used & (banned | modules), (path, used & (banned | modules))
        text = path.read_text()
        assert "trust_remote_code=True" not in text, path
        assert "shell=True" not in text, path


def test_access_is_never_decided_on_what_a_client_writes_into_host_or_path() -> None:
    """CVE-2026-48746, CVE-2026-48710: `request.url` is rebuilt from the Host header."""
    for path in SOURCES:
        if path.parts[-2] != "serving" and "serving" not in path.parts:
            continue
        text = path.read_text()
        assert "request.url" not in text, path
        assert 'scope["path"]' not in text or "auth" not in path.name, path
    locked = dict(line.split(" ")[0].split("==") for line in (ROOT / "requirements.lock").read_text().splitlines()
                  if "==" in line and not line.startswith(" "))  # fmt: skip
    assert Version(locked["starlette"]) >= Version("1.3")
    assert Version(locked["torch"]) >= Version("2.10")


def test_secrets_are_compared_in_constant_time() -> None:
    """CVE-2025-59425: a key compared with `==`."""
    for name in ("auth.py", "admin_auth.py", "tenants_keys.py"):
        tree = ast.parse((ROOT / "serving" / name).read_text())
        assert "hmac.compare_digest" in calls(ROOT / "serving" / name)
        for node in ast.walk(tree):
            if isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.Eq | ast.NotEq):
                words = ast.unparse(node)
                assert not any(secret in words for secret in ("hash", "token", "secret", "given")), (name, words)


def test_every_key_costs_the_same_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many keys there are and whichever matches, all of them are compared."""
    compared: list[str] = []
    real = __import__("hmac").compare_digest
    monkeypatch.setattr("serving.auth.hmac.compare_digest", lambda a, b: compared.append(b) or real(a, b))
    path = tmp_path / "keys.txt"
    write_keys(path, {f"t{n}": hash_key(f"key-{n}") for n in range(5)})
    keys = ApiKeys(path)
    for key in ("key-0", "key-4", "wrong"):
        compared.clear()
        keys.owner(key)
        assert len(compared) == 5


@pytest.mark.parametrize("text", SQL)
async def test_quotes_in_keys_ids_and_filters_are_just_text(admin: Admin, text: str) -> None:
    """CVE-2026-42208: SQL through a key on an error path."""
    header = {"Authorization": f"Bearer {text}".encode()}
    assert (await admin.client.get("/api/v1/state", headers=header)).status_code == 401
    app = create_app(admin.service, admin.parts.options.api)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        body = {"model": "fake/model", "messages": [{"role": "user", "content": "x"}]}
        assert (await client.post("/v1/chat/completions", json=body, headers=header)).status_code == 401
    assert (await admin.get("/api/v1/requests", tenant=text))["requests"] == []
    good = {"Authorization": f"Bearer {TOKEN}"}
    for path in ("/api/v1/requests/", "/api/v1/policy/revisions/"):
        answer = await admin.client.get(path + httpx.QueryParams({"x": text})["x"].replace("/", "_"), headers=good)
        assert answer.status_code in (404, 422), answer.text
        assert "sql" not in answer.text.lower()
    assert (await admin.client.get("/api/v1/audit", params={"kind": text}, headers=good)).status_code == 422
    assert (await admin.get("/api/v1/audit/verify"))["ok"] is True


async def test_large_bodies_and_heads_do_not_reach_the_admin_api(admin: Admin) -> None:
    """CVE-2025-48956 and unbounded consumption; the listener is the bounded one of `test_sockets.py`."""
    header = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    answer = await admin.client.post("/api/v1/policy/validate", content=b"x" * (2 * 1024 * 1024), headers=header)
    assert answer.status_code == 413
    deep = b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    assert (await admin.client.post("/api/v1/policy/validate", content=deep, headers=header)).status_code == 422


@pytest.mark.parametrize(
    "feed",
    [
        "{type: carbon_aware_sdk, url: 'http://169.254.169.254/latest/meta-data'}",
        "{type: carbon_aware_sdk, url: 'file:///etc/passwd'}",
        "{type: csv, path: 'https://example.org/x.csv'}",
        "{type: uk_grid, url: 'https://example.org'}",
    ],
)
async def test_feeds_go_where_operators_and_code_say_and_nowhere_else(admin: Admin, feed: str) -> None:
    """CVE-2025-6242, CVE-2024-6587: requests made on a client's behalf."""
    text = POLICY.replace("{type: constant, g_per_kwh: 300, source: a test}", feed)
    answer = await admin.post("/api/v1/policy/validate", {"text": text})
    refused = not answer.json()["ok"]
    before = (await admin.get("/api/v1/policy"))["revision"]
    edit = {"text": text, "expected_revision": before, "reason": "a test"}
    assert refused or (await admin.post("/api/v1/policy/activate", edit)).status_code == 422
    assert (await admin.get("/api/v1/policy"))["revision"] == before


def test_anchors_and_sizes_of_policies_are_bounded() -> None:
    """A billion laughs, and a file too large to be a policy."""
    lines = [f"{chr(98 + n)}: &{chr(98 + n)} [*{chr(97 + n)},*{chr(97 + n)}]" for n in range(20)]
    bomb = "\n".join(["a: &a [x,x]", *lines])
    started_s = time.monotonic()
    for text in (bomb, POLICY + "#" * 10_000_000):
        with pytest.raises(PolicyError):
            parse_policy(text.encode(), "policy", None)
    assert time.monotonic() - started_s < 60


def test_tenants_never_share_a_prefix_cache() -> None:
    """Prefix-cache timing, and joules that tell of a neighbour's prompt: each tenant has a salt of its own."""
    salts = {_cache_salt(name, asked) for name in ("a", "b", None) for asked in ("", "x", "a", "b", None)}
    assert len(salts) >= 9
    for asked in (None, "x"):
        assert _cache_salt("a", asked) != _cache_salt("b", asked)


async def test_tenants_see_neither_prompts_nor_joules_of_others(admin: Admin, tmp_path: Path) -> None:
    """A tenant's key opens no series that is labelled by tenant, and no record."""
    ring = admin.parts.options.keys
    assert ring is not None
    tenant = {"Authorization": f"Bearer {ring.create('tenant', ('inference',))[1]}"}
    for path in ("/metrics", "/api/v1/requests", "/api/v1/budgets", "/api/v1/series", "/api/v1/state"):
        assert (await admin.client.get(path, headers=tenant)).status_code == 401, path


async def test_neither_prompts_nor_keys_reach_the_log(admin: Admin, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    ring = admin.parts.options.keys
    assert ring is not None
    secret = ring.create("tenant", ("inference",))[1]
    app = create_app(admin.service, admin.parts.options.api)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        for body in (
            {"model": "fake/model", "messages": [{"role": "user", "content": "the-secret-prompt"}], "unheard_of": 1},
            {"model": "fake/model", "messages": "the-secret-prompt"},
            {"model": "the-secret-prompt", "messages": []},
        ):
            await client.post("/v1/chat/completions", json=body, headers={"Authorization": f"Bearer {secret}"})
        await client.post("/v1/chat/completions", json={}, headers={"Authorization": f"Bearer {secret}x"})
    assert secret not in caplog.text
    assert "the-secret-prompt" not in caplog.text
    assert TOKEN not in caplog.text
    assert secret not in repr(admin.parts.options)
    assert TOKEN not in repr(admin.parts.options)


def test_a_guessable_token_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="16 characters"):
        AdminAccess("short")
    assert AdminAccess.closed().principal("Bearer ") is None
    ring = KeyRing(tmp_path / "keys.json")
    _, secret = ring.create("t", ("inference",))
    assert secret.split("_")[2] not in (tmp_path / "keys.json").read_text()
    assert (tmp_path / "keys.json").stat().st_mode & 0o077 == 0


def test_workflows_and_locks_are_pinned() -> None:
    """LiteLLM 1.82.7: what is installed has the hash it had when it was locked, and every direct pin is exact."""
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for dependency in project["dependencies"]:
        assert "==" in dependency, dependency
