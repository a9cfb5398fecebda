"""Every page, for every role, in every state of the data."""

from __future__ import annotations

from pathlib import Path

import pytest
from emulated_world import CONDITIONS, TENANTS

APP = Path(__file__).parents[2] / "dashboard" / "app.py"
PAGES = (
    "overview", "gpus", "serving", "carbon", "requests", "policies", "holds", "budgets", "audit", "experiments",
    "reports", "chat", "feeds", "alerts", "access",
)  # fmt: skip
NOWHERE = "http://127.0.0.1:9"


def texts(page):
    kinds = ("title", "caption", "markdown", "error", "warning", "info", "success", "text", "code", "subheader")
    return "\n".join(str(element.value) for kind in kinds for element in getattr(page, kind))


@pytest.mark.parametrize("role", ["viewer", "operator", "admin"])
@pytest.mark.parametrize("name", PAGES)
def test_page_renders_for_each_role_in_each_state(open_page, emulator, forget, name, role):
    page = open_page(name, role=role)
    for condition in CONDITIONS:
        emulator.world.condition = condition
        forget()
        page.run()
        assert not page.exception, (condition, page.exception)
        assert page.title
        assert f"role {role}" in texts(page)
        assert not page.error, (condition, [each.value for each in page.error])


@pytest.mark.parametrize("name", PAGES)
def test_page_says_so_when_the_api_is_down(open_page, name):
    page = open_page(name, api=NOWHERE)
    assert not page.exception, page.exception
    assert any("No contact with the admin API" in error.value for error in page.error)


def test_api_refuses_a_wrong_token_and_the_page_says_so(open_page):
    page = open_page("overview", role="nobody")
    assert not page.exception
    assert any("refuses this token" in error.value for error in page.error)


def test_overview_has_six_tiles_with_their_states(open_page):
    page = open_page("overview")
    labels = [metric.label for metric in page.metric]
    assert labels == ["Energy per token", "Power", "CO2e per 1k tok", "TTFT p95", "Waiting", "Policy"]
    found = texts(page)
    assert found.count("live]") >= 4
    assert found.count("-badge[") >= 7
    assert "Attribution gap" in texts(page)
    assert "against every answer at L0" in texts(page).replace("\\", "")


def test_overview_draws_its_charts_a_tick_after_the_tiles(open_page):
    page = open_page("overview")
    assert len(page.metric) == 6
    assert "Charts follow in a moment." in texts(page)
    assert "Times are UTC" not in texts(page)
    page.run()
    assert "Charts follow" not in texts(page)
    assert "Range: 15 min. Times are UTC." in texts(page)


def test_overview_shows_a_dash_and_a_reason_for_what_is_unknown(open_page, emulator):
    emulator.world.condition = "empty"
    page = open_page("overview")
    values = {metric.label: metric.value for metric in page.metric}
    assert values["Power"] == values["Energy per token"] == values["CO2e per 1k tok"] == "–"
    assert "the server measures no power" in texts(page).replace("\\", "")


def test_simulated_power_is_named_on_every_tile_that_uses_it(open_page, emulator):
    emulator.world.condition = "simulated"
    page = open_page("overview")
    assert texts(page).count("simulated]") >= 4


def test_stale_feed_shows_on_the_carbon_tile(open_page, emulator):
    emulator.world.condition = "stale_feed"
    page = open_page("overview")
    assert any("stale]" in each.value and "uk" in each.value for each in page.markdown)
    assert "Serving, with warnings" in texts(page)


def test_no_permission_reads_observe_only(open_page, emulator):
    emulator.world.condition = "no_permission"
    page = open_page("gpus")
    assert any("observe\\-only" in warning.value for warning in page.warning)


@pytest.mark.parametrize("name", ["requests", "budgets", "reports"])
def test_hostile_tenant_name_is_never_markdown(open_page, name):
    page = open_page(name)
    for kind in ("markdown", "caption", "info", "warning", "error"):
        assert all(TENANTS[2] not in element.value for element in getattr(page, kind))


def test_viewer_is_offered_no_act(open_page):
    page = open_page("holds", role="viewer")
    assert page.button(key="panic").disabled
    assert page.button(key="hold-place").disabled


def test_hold_is_placed_bannered_and_released(open_page, emulator):
    page = open_page("holds", role="operator")
    page.radio(key="hold-mode").set_value("pin").run()
    page.number_input(key="hold-clock").set_value(1200)
    page.text_input(key="hold-reason").set_value("maintenance of the row").run()
    page.button(key="hold-place").click().run()
    assert not page.exception
    assert emulator.world.hold.clock_mhz == 1200
    assert emulator.world.hold.expires_unix_s is not None
    assert any("pinned to 1200 MHz" in warning.value for warning in page.warning) or page.run()
    release = next(button for button in page.button if button.label == "Release")
    release.click().run()
    assert emulator.world.hold is None


def test_policy_error_names_its_line_then_the_mended_text_is_activated(open_page, emulator):
    page = open_page("policies")
    good = page.text_area(key="policy-text").value
    page.text_area(key="policy-text").set_value(good.replace("governor: slo_slack", "governor: slo_slakc")).run()
    page.button(key="policy-validate").click().run()
    line = next(n for n, text in enumerate(good.splitlines(), 1) if "governor: slo_slack" in text)
    assert any(f"line {line}, column" in code.value for code in page.code)
    page.text_area(key="policy-text").set_value(good).run()
    page.button(key="policy-set-shadow").click().run()
    page.text_input(key="policy-reason").set_value("try it first").run()
    page.button(key="policy-activate").click().run()
    assert not page.exception
    assert emulator.world.mode == "shadow"
    assert any("mode shadow" in success.value for success in page.success)


def test_lost_race_is_refused_and_said(open_page, emulator):
    page = open_page("policies")
    emulator._put(emulator.world.text, emulator.world.revisions[0].revision, "someone else", "admin")
    emulator.world.revisions[0].revision = "other"
    page.text_input(key="policy-reason").set_value("mine").run()
    page.button(key="policy-activate").click().run()
    assert any("changed meanwhile" in error.value for error in page.error)


def test_audit_filters_and_checks_the_chain(open_page):
    page = open_page("audit")
    page.selectbox(key="audit-kind").set_value("actuation").run()
    page.text_input(key="audit-words").set_value("no such words").run()
    assert any("No such row" in info.value for info in page.info)
    page.button(key="audit-verify").click().run()
    assert any("The chain holds" in success.value for success in page.success)


def test_session_without_token_is_asked_for_one(url, monkeypatch):
    import streamlit as st
    from streamlit.testing.v1 import AppTest

    from dashboard import settings

    monkeypatch.setenv(settings.API, url)
    monkeypatch.setenv(settings.ADMIN_TOKEN, "admin")
    monkeypatch.setenv(settings.LINK_TOKEN, "printed")
    st.cache_resource.clear()
    page = AppTest.from_file(str(APP), default_timeout=60)
    page.query_params["token"] = "guessed"
    page.run()
    assert not page.metric
    assert page.text_input[0].label == "Token"
    page.query_params["token"] = "printed"
    page.run()
    assert len(page.metric) == 6


def test_experiments_page_without_results_says_how_to_make_some(open_page, tmp_path):
    page = open_page("experiments", GRIDSERVE_DASHBOARD_EXPERIMENTS=tmp_path)
    assert not page.exception
    assert any("gridserve experiment quick.yaml" in info.value for info in page.info)
    page = open_page("experiments", GRIDSERVE_DASHBOARD_EXPERIMENTS=tmp_path / "gone")
    assert any("is no folder" in error.value for error in page.error)
