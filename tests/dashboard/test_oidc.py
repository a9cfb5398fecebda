"""Signing in with an OpenID provider: a real one on loopback (discovery, code flow, RS256 ID tokens, JWKS), a real
browser, and a real server that enforces the role of the user's group."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import dashboard_browser as chromium
import httpx
import pytest
from live_server import LiveServer, small
from playwright.sync_api import Browser, Page, expect

from serving.up import working_copy

pytestmark = pytest.mark.e2e
TOKEN = "a-token-of-the-sign-in-tests"
PATIENCE_MS = 60_000
PEOPLE = [
    {"sub": "ana", "email": "Ana@example.org", "email_verified": True, "realm_access": {"roles": ["grid-operators"]}},
    {"sub": "max", "email": "max@example.org", "email_verified": True, "realm_access": {"roles": ["staff"]}},
    {"sub": "eve", "email": "ana@example.org", "email_verified": False, "realm_access": {"roles": ["grid-operators"]}},
    {"sub": "out", "email": "out@example.org", "email_verified": True, "realm_access": {"roles": ["visitors"]}},
]


@pytest.fixture(scope="module")
def server(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    folder = tmp_path_factory.mktemp("server")
    policy = folder / "policy.yaml"
    policy.write_text(working_copy(), encoding="utf-8")
    options = ["--policy", str(policy), "--ledger", str(folder / "ledger"), "--api-key-file", str(folder / "keys.json")]
    started = LiveServer("serve", *small(tiny_model), *options, ready="serves tiny", token=TOKEN)
    yield started
    assert started.stop() == 0


@pytest.fixture(scope="module")
def provider() -> Iterator[str]:
    port = chromium.free_port()
    people = [word for person in PEOPLE for word in ("--user-claims", json.dumps(person))]
    command = [sys.executable, "-W", "ignore", "-m", "oidc_provider_mock", "--port", str(port), *people]
    # Tokens travel over loopback alone.
    with chromium.process(command, {"AUTHLIB_INSECURE_TRANSPORT": "1"}):
        chromium.wait_for(f"http://localhost:{port}/jwks")
        yield f"http://localhost:{port}"


@pytest.fixture(scope="module")
def keys(server: LiveServer) -> dict[str, str]:
    """Of the roles, made as an admin makes them."""
    scopes = {"viewer": "control:read", "operator": "control:write"}
    body = {"reason": "for the dashboard"}
    return {
        role: server.post("keys", name=f"{role}s", scopes=[scope], **body)["secret"] for role, scope in scopes.items()
    }


@pytest.fixture(scope="module")
def link(
    server: LiveServer, provider: str, keys: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    folder, port = tmp_path_factory.mktemp("access"), chromium.free_port()
    (folder / "users.toml").write_text(
        'groups_claim = "realm_access.roles"\n'
        f'[tokens]\nviewer = "{keys["viewer"]}"\noperator = "{keys["operator"]}"\n'
        '[groups]\ngrid-operators = "operator"\nstaff = "viewer"\n'
    )
    (folder / "secrets.toml").write_text(
        f'[auth]\nredirect_uri = "http://localhost:{port}/oauth2callback"\ncookie_secret = "{"c" * 48}"\n'
        'client_id = "gridserve"\nclient_secret = "s"\n'
        f'server_metadata_url = "{provider}/.well-known/openid-configuration"\n'
    )
    options = ["--access", "oidc", "--users", str(folder / "users.toml"), "--secrets", str(folder / "secrets.toml")]
    with chromium.dashboard(server.admin, server.url, "", *options, port=port):
        yield f"http://localhost:{port}/"


@pytest.fixture
def sign_in(browser: Browser, link: str) -> Iterator[Callable[[str], Page]]:
    """`sign_in("ana")`: the dashboard after that person signed in at the provider, in a browser of their own."""
    contexts = []

    def go(person: str) -> Page:
        context = browser.new_context(viewport={"width": 1280, "height": 1000})
        contexts.append((context, chromium.outside(context)))
        page = context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.goto(link)
        page.get_by_role("button", name="Sign in").click()
        page.get_by_role("button", name=person, exact=True).click()
        page.wait_for_url(re.compile(re.escape(link)))
        return page

    yield go
    for context, left in contexts:
        context.close()
        # The provider's own page asks for a style sheet; the dashboard's asks for nothing.
        assert [url for url in left if "picocss" not in url] == []


def test_a_group_gives_a_role_and_the_audit_names_the_person(
    server: LiveServer, sign_in: Callable[[str], Page]
) -> None:
    page = sign_in("ana")
    expect(page.get_by_text("operators (Ana@example.org) · role operator")).to_be_visible(timeout=PATIENCE_MS)
    expect(page.get_by_text("Energy per token")).to_be_visible(timeout=PATIENCE_MS)
    page.get_by_role("button", name="Panic: driver defaults").click()
    page.get_by_label("Reason", exact=True).fill("smoke in the hall")
    page.get_by_label("Reason", exact=True).press("Enter")
    page.get_by_role("button", name="Restore driver defaults now").click()
    expect(page.get_by_text("Hold: Driver defaults on all devices")).to_be_visible(timeout=PATIENCE_MS)
    (row,) = [row for row in server.audit("hold") if row["reason"] == "smoke in the hall"]
    assert row["actor"] == "operators (Ana@example.org)"
    server.post("holds/release", reason="end of the test")
    page.get_by_role("link", name="Policies").click()
    expect(page.get_by_label("Reason for the change")).to_be_disabled(timeout=PATIENCE_MS)


def test_the_admin_api_holds_each_token_to_its_role(server: LiveServer, keys: dict[str, str]) -> None:
    def panic(role: str) -> int:
        headers = {"Authorization": f"Bearer {keys[role]}", "X-Gridserve-User": "boss@example.org"}
        body = {"reason": "not allowed"}
        return httpx.post(f"{server.admin}/api/v1/panic", json=body, headers=headers, timeout=30).status_code

    assert panic("viewer") == 403
    headers = {"Authorization": f"Bearer {keys['operator']}"}
    body = {"text": server.get("policy")["text"], "expected_revision": server.get("policy")["revision"], "reason": "no"}
    answer = httpx.post(f"{server.admin}/api/v1/policy/activate", json=body, headers=headers, timeout=30)
    assert answer.status_code == 403


def test_another_group_sees_and_cannot_act_and_signing_out_ends_it(sign_in: Callable[[str], Page], link: str) -> None:
    page = sign_in("max")
    expect(page.get_by_text("viewers (max@example.org) · role viewer")).to_be_visible(timeout=PATIENCE_MS)
    expect(page.get_by_role("button", name="Panic: driver defaults")).to_be_disabled()
    page.get_by_role("button", name="Sign out").click()
    page.get_by_role("button", name="End session").click()
    expect(page.get_by_role("button", name="Sign in")).to_be_visible(timeout=PATIENCE_MS)
    page.goto(f"{link}audit")
    expect(page.get_by_role("button", name="Sign in")).to_be_visible(timeout=PATIENCE_MS)
    expect(page.get_by_text("Decisions, actuations")).to_have_count(0)


@pytest.mark.parametrize(
    ("person", "words"), [("eve", "gave no verified e-mail address"), ("out", "nobody gave you a role here")]
)
def test_an_unverified_address_or_a_group_without_a_role_gets_nothing(
    sign_in: Callable[[str], Page], person: str, words: str
) -> None:
    page = sign_in(person)
    expect(page.get_by_text(words)).to_be_visible(timeout=PATIENCE_MS)
    expect(page.get_by_role("button", name="Panic: driver defaults")).to_have_count(0)
    expect(page.get_by_role("button", name="Sign out")).to_be_visible()
