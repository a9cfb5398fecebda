"""An emulated admin API on loopback, and pages run in process against it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from emulated_world import World
from emulator import Emulator, serving_on
from streamlit.testing.v1 import AppTest

from dashboard import settings
from dashboard.client import AdminClient

ROOT = Path(__file__).parents[2]
APP = ROOT / "dashboard" / "app.py"
NOWHERE = "http://127.0.0.1:9"


@pytest.fixture(scope="session")
def _shared() -> Iterator[tuple[Emulator, str]]:
    emulator = Emulator(World())
    with serving_on(emulator) as url:
        yield emulator, url


@pytest.fixture
def emulator(_shared: tuple[Emulator, str]) -> Emulator:
    """The emulator with a fresh world; set `emulator.world.condition`."""
    _shared[0].world = World()
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


@pytest.fixture
def open_page(url: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., AppTest]:
    """`open_page("holds", role="viewer")`: the page after its first run. `api` replaces the emulator's address."""
    import streamlit as st

    def run(name: str, role: str = "admin", api: str | None = None, **environment: Any) -> AppTest:
        monkeypatch.setenv(settings.API, api or url)
        monkeypatch.setenv(settings.INFERENCE_API, api or url)
        for key, value in environment.items():
            monkeypatch.setenv(key, str(value))
        st.cache_resource.clear()
        st.cache_data.clear()
        page = AppTest.from_file(str(APP), default_timeout=30)
        page.session_state["api_token"] = role
        page.run()
        if name != "overview":
            page.switch_page(f"pages/{name}.py").run()
        return page

    return run
