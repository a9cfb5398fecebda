"""The dashboard's own parts beneath the pages: client, snapshot, access, start-up, the chat's stream."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from dashboard import access, settings
from dashboard.__main__ import check, main, options, parser
from dashboard.chat_stream import Answer, parse, run
from dashboard.client import AdminClient
from dashboard.errors import ApiContractError, ApiRefusedError, ApiUnreachableError
from dashboard.snapshot import SnapshotSource
from dashboard.views.chat import Rates, against_first, cost
from dashboard.views.origin import DataState

SOURCE = Path(__file__).parents[2] / "dashboard"


def answering(handler):
    return AdminClient("http://127.0.0.1:9", "t", transport=httpx.MockTransport(handler))


def test_client_tells_refused_unreadable_and_unreachable_apart():
    problem = {"title": "Conflict", "status": 409, "detail": "changed meanwhile", "current_revision": "abc"}
    with pytest.raises(ApiRefusedError, match="changed meanwhile") as refused:
        answering(lambda request: httpx.Response(409, json=problem)).policy()
    assert (refused.value.status, refused.value.current_revision) == (409, "abc")
    with pytest.raises(ApiContractError, match="different versions"):
        answering(lambda request: httpx.Response(200, json={"name": 3})).whoami()
    with pytest.raises(ApiUnreachableError, match="does not answer"):
        AdminClient("http://127.0.0.1:9", None).whoami()


def test_an_identifier_never_leaves_its_path_segment():
    asked = []

    def handler(request):
        asked.append(request.url.raw_path.decode())
        return httpx.Response(404, json={"title": "Not Found", "status": 404})

    with pytest.raises(ApiRefusedError):
        answering(handler).request("../keys?x=1")
    assert asked == ["/api/v1/requests/..%2Fkeys%3Fx%3D1"]


def test_snapshot_is_asked_for_once_a_second_however_many_look(url, emulator):
    now = [100.0]
    source = SnapshotSource(AdminClient(url, "viewer"), clock=lambda: now[0])
    first = source.get()
    for _ in range(20):
        assert source.get().state is first.state
    assert emulator.calls.count("GET /api/v1/state") == 1
    now[0] += 1.0
    assert source.get().state is not first.state
    assert emulator.calls.count("GET /api/v1/state") == 2


def test_snapshot_keeps_the_last_state_when_the_api_falls_silent():
    replies = [httpx.Response(500, json={"title": "broken", "status": 500})]
    source = SnapshotSource(answering(lambda request: replies[0]))
    found = source.get()
    assert found.state is None
    assert found.error == "broken"
    assert not found.unreachable


def test_local_access_stays_on_loopback(capsys):
    assert main(["--host", "0.0.0.0"]) == 2
    assert "loopback only" in capsys.readouterr().err
    with pytest.raises(ValueError, match="needs --users"):
        check(parser().parse_args(["--access", "proxy"]))


def test_streamlit_is_told_to_keep_to_itself():
    told = options("127.0.0.1", 8501, [])
    assert ("browser.gatherUsageStats", "false") in told
    assert ("client.showErrorDetails", "none") in told
    assert [value for name, value in told if name == "server.allowedHosts"] == ["127.0.0.1", "::1", "localhost"] or {
        value for name, value in told if name == "server.allowedHosts"
    } == access.LOOPBACK


def test_what_every_session_needs_is_there_before_the_first_one():
    code = "import sys; from dashboard.serve import warm; warm(); print(*(m in sys.modules for m in sys.argv[1:]))"
    names = ("pandas", "dashboard.session")
    done = subprocess.run(
        [sys.executable, "-c", code, *names], capture_output=True, text=True, check=True, cwd=SOURCE.parent
    )
    # Nothing of a session, whose caches want a running server.
    assert (done.stdout.split(), done.stderr) == (["True", "False"], "")


def test_users_get_the_token_of_their_role(tmp_path):
    file = tmp_path / "users.toml"
    file.write_text('[tokens]\nviewer = "v"\noperator = "o"\n[users]\n"Ana@example.org" = "operator"\n"*" = "viewer"\n')
    users = access.read_users(file)
    assert users.token_of(" ana@EXAMPLE.org") == "o"
    assert users.token_of("someone@example.org") == "v"
    file.write_text('[tokens]\nviewer = "v"\n[users]\n"a" = "admin"\n')
    with pytest.raises(ValueError, match="has none for admin"):
        access.read_users(file)


USERS = """
groups_claim = "realm_access.roles"
[tokens]
viewer = "v"
operator = "o"
admin = "a"
[users]
"ana@example.org" = "viewer"
[groups]
ops = "operator"
all = "viewer"
boss = "admin"
"""


def test_the_strongest_group_gives_the_role_unless_the_user_has_one_of_their_own(tmp_path):
    (tmp_path / "users.toml").write_text(USERS)
    users = access.read_users(tmp_path / "users.toml")
    assert users.token_of("max@example.org", ["all", "ops", "unheard of"]) == "o"
    assert users.token_of("max@example.org", ["boss", "all"]) == "a"
    assert users.token_of("ana@example.org", ["boss"]) == "v"
    assert users.token_of("max@example.org", ["unheard of"]) is None
    assert users.groups_claim == "realm_access.roles"


@pytest.mark.parametrize(
    ("claims", "claim", "groups"),
    [
        ({"groups": ["a", "b"]}, "groups", ["a", "b"]),
        ({"groups": "a"}, "groups", ["a"]),
        ({"realm_access": {"roles": ["a"]}}, "realm_access.roles", ["a"]),
        ({"https://example.org/roles": ["a"]}, "https://example.org/roles", ["a"]),
        ({"groups": [1, None, "a"]}, "groups", ["a"]),
        ({"groups": {"a": 1}}, "groups", []),
        ({"realm_access": "x"}, "realm_access.roles", []),
        ({}, "groups", []),
    ],
)
def test_groups_are_read_from_the_claim_that_the_provider_uses(claims, claim, groups):
    assert access.groups_of(claims, claim) == groups


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('ops = "operator"', 'ops = "root"', "no such role: root"),
        ('operator = "o"', "", "has none for operator"),
        ('groups_claim = "realm_access.roles"', "groups_claim = 3", "must name a claim"),
        ('viewer = "v"', "viewer = 1", "table of texts"),
    ],
)
def test_a_faulty_file_of_users_says_what_to_mend(tmp_path, old, new, words):
    (tmp_path / "users.toml").write_text(USERS.replace(old, new))
    with pytest.raises(ValueError, match=words):
        access.read_users(tmp_path / "users.toml")


AUTH = """
[auth]
redirect_uri = "https://ops.example.org/oauth2callback"
cookie_secret = "0123456789abcdef0123456789abcdef"
client_id = "gridserve"
client_secret = "s"
server_metadata_url = "https://id.example.org/.well-known/openid-configuration"
"""


def test_sign_in_needs_secrets_that_streamlit_can_use(tmp_path, capsys):
    users, secrets = tmp_path / "users.toml", tmp_path / "secrets.toml"
    users.write_text(USERS)
    secrets.write_text(AUTH)
    arguments = parser().parse_args(
        ["--access", "oidc", "--users", str(users), "--secrets", str(secrets), "--host", "0.0.0.0"]
    )
    check(arguments)
    told = options(arguments.host, 8501, arguments.allowed_host, arguments.secrets)
    assert ("server.allowedHosts", "ops.example.org") in told
    assert ("secrets.files", str(secrets)) in told
    assert main(["--access", "oidc", "--users", str(users)]) == 2
    assert "needs --secrets" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("[auth]", "[other]", r"needs an \[auth\] table"),
        ('client_id = "gridserve"', "", "lacks client_id"),
        ("0123456789abcdef0123456789abcdef", "short", "32 random characters"),
        ("/oauth2callback", "/", "with /oauth2callback behind it"),
        ("https://ops", "http://ops", "must be https"),
    ],
)
def test_faulty_secrets_are_refused_at_the_start(tmp_path, old, new, words):
    (tmp_path / "secrets.toml").write_text(AUTH.replace(old, new))
    with pytest.raises(ValueError, match=words):
        access.read_auth(tmp_path / "secrets.toml")


def test_the_admin_api_is_told_who_acts_with_a_shared_token():
    asked = []

    def handler(request):
        asked.append(request.headers.get("x-gridserve-user"))
        return httpx.Response(200, json={"name": "ops", "role": "operator"})

    for user in ("josé@example.org", None):
        AdminClient("http://127.0.0.1:9", "t", user, httpx.MockTransport(handler)).whoami()
    assert asked == ["jos%C3%A9@example.org", None]


def test_no_link_token_opens_nothing():
    assert not access.link_opens("", None)
    assert not access.link_opens("x", None)
    assert not access.link_opens(None, "x")
    assert access.link_opens("x", "x")


def test_settings_refuse_an_access_mode_that_does_not_exist():
    with pytest.raises(ValueError, match="local, proxy or oidc"):
        settings.from_environment({settings.ACCESS: "open"})


def test_proxy_session_gets_its_users_role_and_strangers_nothing(open_page, tmp_path, monkeypatch):
    from dashboard import session

    file = tmp_path / "users.toml"
    file.write_text('[tokens]\nviewer = "viewer"\n[users]\n"ana@example.org" = "viewer"\n')
    monkeypatch.setattr(session, "_proxy_user", lambda mode: "stranger@example.org")
    environment = {settings.ACCESS: "proxy", settings.USERS: file}
    page = open_page("overview", role=None, **environment)
    assert any("nobody gave you a role" in error.value for error in page.error)
    monkeypatch.setattr(session, "_proxy_user", lambda mode: "ana@example.org")
    page = open_page("overview", role=None, **environment)
    assert any("role viewer" in caption.value for caption in page.caption)
    assert page.button(key="panic").disabled


def test_stream_gives_words_then_counts_and_energy():
    assert parse('{"choices":[{"delta":{"content":"Hi"}}]}').text == "Hi"
    last = parse('{"choices":[],"usage":{"completion_tokens":3},"energy":{"energy_joules":2.5,"method":"measured"}}')
    assert (last.completion_tokens, last.energy.energy_joules) == (3, 2.5)
    assert parse('{"choices":[{"delta":{}}]}') is None
    with pytest.raises(ValueError, match="out of memory"):
        parse('{"error":{"message":"out of memory"}}')


def test_a_growing_answer_is_estimated_and_a_finished_one_is_the_servers():
    answer = Answer("L1")
    for word in ("The ", "sky"):
        answer.add(parse(f'{{"choices":[{{"delta":{{"content":"{word}"}}}}]}}'))
    growing = cost(answer, Rates(0.5, 1e-4))
    assert (growing.energy_j, growing.co2e_g, growing.origin.state) == (1.0, 1e-4, DataState.ESTIMATED)
    assert cost(answer, Rates(None, None)).energy_j is None
    answer.add(
        parse('{"choices":[],"usage":{"completion_tokens":2},"energy":{"energy_joules":3.0,"method":"simulated"}}')
    )
    done = cost(answer, Rates(0.5, 1e-4))
    assert (done.energy_j, done.origin.state) == (3.0, DataState.SIMULATED)
    assert against_first([done, growing]) == ["-67% joules against the L0 answer to the same prompt"]


def test_a_dead_inference_api_ends_the_answer_with_a_reason():
    answer = Answer("L0")
    run(answer, "http://127.0.0.1:9", None, {}).join(30)
    assert answer.done
    assert answer.error


def test_no_page_interprets_html_and_no_live_fragment_holds_a_widget():
    widgets = {
        "button", "text_input", "text_area", "selectbox", "radio", "number_input", "segmented_control", "form",
        "download_button", "multiselect", "checkbox", "slider", "toggle",
    }  # fmt: skip
    fragments = 0
    for path in SOURCE.rglob("*.py"):
        text = path.read_text()
        assert "unsafe_allow_html" not in text, path
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, ast.FunctionDef):
                continue
            if not any("fragment" in ast.dump(decorator) for decorator in node.decorator_list):
                continue
            fragments += 1
            called = {each.attr for each in ast.walk(node) if isinstance(each, ast.Attribute)}
            assert not called & widgets, (path, node.name)
    assert fragments >= 8
