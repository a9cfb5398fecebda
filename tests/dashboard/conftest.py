"""An emulated admin API on loopback, and pages run in process against it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import streamlit as st

# The emulator stands here, the browser's and the server's helpers beside the scripts.
sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
sys.path.insert(0, str(Path(__file__).parent))

import dashboard_browser as chromium
from emulated_world import World
from emulator import Emulator, serving_on
from playwright.sync_api import Browser
from streamlit.components.v2 import manifest_scanner
from streamlit.testing.v1 import AppTest

from dashboard import settings
from dashboard.client import AdminClient

ROOT = Path(__file__).parents[2]
APP = ROOT / "dashboard" / "app.py"
NOWHERE = "http://127.0.0.1:9"


@pytest.fixture(scope="session")
def _shared() -> Iterator[tuple[Emulator, str]]:
    emulator = Emulator(World(step_s=20.0))
    with serving_on(emulator) as url:
        yield emulator, url


@pytest.fixture
def emulator(_shared: tuple[Emulator, str]) -> Emulator:
    """The emulator with a fresh world; set `emulator.world.condition`."""
    _shared[0].world = World(step_s=20.0)
    _shared[0].calls.clear()
    return _shared[0]


@pytest.fixture
def url(emulator: Emulator, _shared: tuple[Emulator, str]) -> str:
    return _shared[1]


@pytest.fixture
def client(url: str) -> Iterator[AdminClient]:
    made = AdminClient(url, "admin")
    yield made
    made.close()


@pytest.fixture(scope="session", autouse=True)
def _no_components() -> Iterator[None]:
    """Each `AppTest` would read the metadata of every installed package to look for components; there are none."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manifest_scanner, "scan_component_manifests", list)
        yield


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if chromium.chromium_path() is None:
        pytest.skip("no Chromium here; apt-get install chromium")
    with chromium.browser() as started:
        yield started


@pytest.fixture
def open_page(url: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., AppTest]:
    """`open_page("holds", role="viewer")`: the page after its first run. `api` replaces the emulator's address."""

    def run(name: str, role: str | None = "admin", api: str | None = None, **environment: Any) -> AppTest:
        monkeypatch.setenv(settings.API, api or url)
        monkeypatch.setenv(settings.INFERENCE_API, api or url)
        for key, value in environment.items():
            monkeypatch.setenv(key, str(value))
        clear_caches()
        page = AppTest.from_file(str(APP), default_timeout=60)
        if role is not None:
            page.session_state["api_token"] = role
        page.run()
        return page if name == "overview" else page.switch_page(f"screens/{name}.py").run()

    return run


@pytest.fixture
def forget() -> Callable[[], None]:
    """Empties what the process remembers between sessions."""
    return clear_caches


def clear_caches() -> None:
    st.cache_resource.clear()
    st.cache_data.clear()
