"""API keys: the file, the commands, and every route's answer to a caller without one."""

from __future__ import annotations

import os

import httpx
import pytest

from serving import cli
from serving.auth import ApiKeys, generate_key, hash_key, parse_keys, read_keys, write_keys
from serving.settings import ApiSettings

OPEN = {"/", "/health", "/version"}


@pytest.fixture
def key_file(tmp_path):
    key = generate_key()
    path = tmp_path / "keys"
    write_keys(path, {"research": hash_key(key)})
    return path, key


def routes_of(app):
    """Every route, those of included routers too."""
    found = []

    def walk(routes):
        for route in routes:
            inner = getattr(getattr(route, "original_router", None), "routes", None)
            if inner is not None:
                walk(inner)
            else:
                found.append(route)

    walk(app.routes)
    return found


async def test_every_route_asks_for_a_key_unless_listed(make_app, engine, key_file):
    path, key = key_file
    app = make_app(engine, host="0.0.0.0", api_keys=ApiKeys(path))
    routes = routes_of(app)
    assert {route.path for route in routes} >= OPEN | {"/metrics", "/v1/completions", "/openapi.json", "/tokenize"}
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        for route in routes:
            for method in route.methods:
                url = route.path.replace("{model_id:path}", "fake/model")
                answer = await client.request(method, url)
                if route.path in OPEN:
                    assert answer.status_code == 200, url
                else:
                    assert answer.status_code == 401, url
                    assert answer.json()["error"]["code"] == "invalid_api_key"
                    assert answer.headers["www-authenticate"] == "Bearer"
                    good = await client.request(method, url, headers={"authorization": f"Bearer {key}"})
                    assert good.status_code in (200, 415), url


async def test_metrics_are_open_on_loopback_only(make_app, engine, key_file):
    path, _ = key_file
    for host, status in (("127.0.0.1", 200), ("::1", 200), ("0.0.0.0", 401), ("192.0.2.1", 401)):
        transport = httpx.ASGITransport(make_app(engine, host=host, api_keys=ApiKeys(path)))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            assert (await client.get("/metrics")).status_code == status, host


@pytest.mark.parametrize(
    "header", ["", "Bearer", "Bearer ", "Basic {key}", "{key}", "Bearer {key}x", "Bearer x{key}", "Bearer ' OR 1=1 --"]
)
async def test_wrong_keys(connect, engine, key_file, header):
    path, key = key_file
    async with connect(engine, api_keys=ApiKeys(path)) as client:
        answer = await client.get("/v1/models", headers={"authorization": header.format(key=key)})
        assert answer.status_code == 401
        assert key not in answer.text


@pytest.mark.parametrize("host", ["a/x?", "test/health", "test#", "user@test", "/health"])
async def test_the_host_header_opens_no_door(connect, engine, key_file, host):
    path, _ = key_file
    async with connect(engine, api_keys=ApiKeys(path)) as client:
        assert (await client.get("/v1/models", headers={"host": host})).status_code == 401
        assert (await client.get("/health/../v1/models", headers={"host": host})).status_code in (401, 404)


async def test_a_large_body_is_not_read_without_a_key(connect, engine, key_file):
    path, _ = key_file
    read = 0

    async def body():
        nonlocal read
        for _ in range(100):
            read += 1
            yield b"x" * 100

    async with connect(engine, api_keys=ApiKeys(path)) as client:
        answer = await client.post("/v1/completions", content=body(), headers={"content-type": "application/json"})
        assert answer.status_code == 401
        assert read == 0


async def test_keys_separate_prefix_caches(connect, engine, tmp_path):
    keys = {name: generate_key() for name in ("a", "b")}
    write_keys(tmp_path / "keys", {name: hash_key(key) for name, key in keys.items()})
    async with connect(engine, api_keys=ApiKeys(tmp_path / "keys")) as client:
        for key in keys.values():
            headers = {"authorization": f"Bearer {key}"}
            body = {"prompt": "x", "max_tokens": 1, "cache_salt": "same"}
            assert (await client.post("/v1/completions", json=body, headers=headers)).status_code == 200
    assert len({generation.cache_salt for generation in engine.generations}) == 2


def test_a_host_others_can_reach_needs_keys(key_file):
    path, _ = key_file
    for host in ("0.0.0.0", "::", "192.0.2.1", "example.org"):
        with pytest.raises(ValueError, match="keys create"):
            ApiSettings(host=host)
        ApiSettings(host=host, api_keys=ApiKeys(path))
        ApiSettings(host=host, allow_unauthenticated=True)
    for host in ("127.0.0.1", "127.8.8.8", "::1", "localhost"):
        ApiSettings(host=host)


def test_revoking_takes_effect_at_once_and_a_broken_file_keeps_the_last_keys(key_file, caplog):
    path, key = key_file
    keys = ApiKeys(path)
    assert keys.owner(key) == "research"
    path.write_text("garbage\n")
    assert keys.owner(key) == "research"
    assert "last good keys" in caplog.text
    write_keys(path, {})
    assert keys.owner(key) is None


def test_key_file_format():
    text = f"# keys\n\n{'a' * 64}  one\n{'b' * 64} two\n"
    assert parse_keys(text) == {"one": "a" * 64, "two": "b" * 64}
    for bad in ("short name", f"{'a' * 64}", f"{'a' * 64} bad name", f"{'A' * 64} x", f"{'a' * 64} x\n{'b' * 64} x"):
        with pytest.raises(ValueError, match="line"):
            parse_keys(bad)


def test_commands(tmp_path, capsys):
    path = tmp_path / "keys"
    assert cli.main(["keys", "create", "research", "--file", str(path)]) == 0
    key = capsys.readouterr().out.strip()
    assert key.startswith("gs-")
    assert key not in path.read_text()
    assert os.stat(path).st_mode & 0o777 == 0o600
    assert ApiKeys(path).owner(key) == "research"
    assert cli.main(["keys", "create", "research", "--file", str(path)]) == 1
    assert "already" in capsys.readouterr().err
    assert cli.main(["keys", "create", "bad name", "--file", str(path)]) == 1
    assert cli.main(["keys", "create", "other", "--file", str(path)]) == 0
    capsys.readouterr()
    assert cli.main(["keys", "list", "--file", str(path)]) == 0
    assert capsys.readouterr().out.split() == ["research", "other"]
    assert cli.main(["keys", "revoke", "research", "--file", str(path)]) == 0
    assert list(read_keys(path)) == ["other"]
    assert cli.main(["keys", "revoke", "research", "--file", str(path)]) == 1
    assert cli.main(["keys", "list", "--file", str(tmp_path / "none")]) == 1
    assert cli.main(["keys", "create", "x", "--file", str(tmp_path / "none" / "keys")]) == 1
