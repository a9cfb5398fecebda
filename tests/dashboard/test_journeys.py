"""An operator's ways through the dashboard in Chromium, against a server as users run it: every act must change the
running system and leave its audit row."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import dashboard_browser as chromium
import pytest
from live_server import LiveServer, small, until
from playwright.sync_api import Browser, Locator, Page, expect

from dashboard.client import AdminClient
from dashboard.views import experiments
from serving.up import working_copy

pytestmark = pytest.mark.e2e
TOKEN = "a-token-of-the-journeys"
PATIENCE_MS = 60_000
PAGES = {
    "overview": "Energy per token",
    "gpus": "Where the",
    "serving": "KV cache",
    "carbon": "Directives by class",
    "requests": "Finished requests",
    "policies": "In force",
    "holds": "Place a hold",
    "budgets": "of the UTC day",
    "audit": "Decisions, actuations",
    "experiments": "Results that",
    "reports": "Recorded requests",
    "chat": "Answers stream",
    "feeds": "Feeds of zone",
    "alerts": "What is wrong now",
    "access": "You are",
}

LINKS = {"gpus": "GPUs and power", "budgets": "Tenants and budgets", "feeds": "Feeds and health"}


class Server(LiveServer):
    """One `gridserve serve` with policy, ledger and admin API, on a simulated device and a bundled intensity."""

    def __init__(self, model: Path, folder: Path) -> None:
        self.policy = folder / "policy.yaml"
        self.policy.write_text(working_copy(), encoding="utf-8")
        options = ["--policy", str(self.policy), "--ledger", str(folder / "ledger")]
        super().__init__("serve", *small(model), *options, ready="serves tiny", token=TOKEN)

    def reasons(self, kind: str) -> list[str]:
        return [row["reason"] for row in self.audit(kind)]


@pytest.fixture(scope="module")
def server(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    started = Server(tiny_model, tmp_path_factory.mktemp("server"))
    yield started
    if started.process.poll() is None:
        assert started.stop() == 0


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the results of the quick experiment, as the command writes them."""
    folder = tmp_path_factory.mktemp("results")
    command = [sys.executable, "-m", "serving.cli", "experiment", "quick.yaml", "--out", str(folder / "quick")]
    subprocess.run([*command, "--seeds", "1", "2", "--jobs", "1"], check=True, capture_output=True, timeout=240)
    return folder


@pytest.fixture(scope="module")
def link(server: Server, results: Path) -> Iterator[str]:
    with chromium.dashboard(server.admin, server.url, TOKEN, "--experiments", str(results)) as opened:
        yield opened


@pytest.fixture
def visit(browser: Browser, link: str) -> Iterator[Callable[[str], Page]]:
    """`visit("holds")`: that page, opened with the printed link. No request leaves this machine, no script fails."""
    context = browser.new_context(viewport={"width": 1280, "height": 1000}, accept_downloads=True)
    left = chromium.outside(context)
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    failed: list[str] = []
    page.on("pageerror", lambda error: failed.append(str(error)))

    def go(name: str) -> Page:
        chromium.open_page(page, link, name, PAGES[name])
        return page

    yield go
    context.close()
    assert left == []
    assert failed == []


def seen(where: Page | Locator, text: str | re.Pattern[str]) -> None:
    expect(where.get_by_text(text).first).to_be_visible(timeout=PATIENCE_MS)


def gone(where: Page | Locator, text: str) -> None:
    expect(where.get_by_text(text)).to_have_count(0, timeout=PATIENCE_MS)


def test_every_route_the_dashboard_calls_is_served(server: Server) -> None:
    server.ask()
    client = AdminClient(server.admin, TOKEN)
    until(lambda: client.requests().requests, "a recorded request")
    until(lambda: client.series_list().series, "the first sample")
    now = client.state().now_unix_s
    names = [info.name for info in client.series_list().series][:16]
    assert client.series(names, now - 60, now, 60).series
    assert client.request(client.requests().requests[0].request_id).energy_method == "simulated"
    assert b"energy_j" in client.export("requests", "csv", None, None).splitlines()[0]
    assert json.loads(client.export("audit", "json", now - 3600, None))
    assert client.verify_audit().ok
    text = client.policy().text
    assert client.validate(text).ok
    assert client.diff(text=text).changes == []
    assert client.revisions().revisions
    assert client.revision(client.policy().revision).text == text
    assert client.policy_schema()["properties"]
    assert client.holds().active is None
    assert client.carbon().intensity.kind == "replayed"
    assert client.refresh_feeds().feeds
    assert client.feeds().feeds
    assert client.evaluator().reason
    assert client.budgets().tenants
    assert client.jobs().jobs
    assert client.whoami().role == "admin"
    client.close()


def test_overview_ticks_with_the_server(server: Server, visit: Callable[[str], Page]) -> None:
    page = visit("overview")
    server.ask()
    seen(page, re.compile(r"\d+ requests? · now"))
    first = server.get("state")["latency"]["requests"]
    for _ in range(2):
        server.ask()
    until(lambda: page.get_by_text(re.compile(rf"{first + 2} requests · now")).count(), "the tile counts on")
    seen(page, "simulated")
    seen(page, "follow-the-grid")
    seen(page, "Attribution gap")
    chart = page.get_by_role("img", name=re.compile("Power and cap"))
    expect(chart.first).to_be_visible()


def test_hold_takes_the_clocks_and_release_gives_them_back(server: Server, visit: Callable[[str], Page]) -> None:
    page = visit("holds")
    page.get_by_text("Pin one clock").click()
    page.get_by_label("Clock (MHz)").fill("1200")
    page.get_by_label("Clock (MHz)").press("Enter")
    page.get_by_label("Reason", exact=True).fill("the row is serviced")
    page.get_by_label("Reason", exact=True).press("Enter")
    page.get_by_role("button", name="Place the hold").click()
    seen(page, re.compile("Hold: Clocks are pinned to 1200 MHz until"))
    held = server.get("state")
    assert held["hold"]["clock_mhz"] == 1200
    until(lambda: server.get("state")["power"]["devices"][0]["asked_clock_mhz"] == 1200, "the device is asked for it")
    assert "the row is serviced" in server.reasons("hold")
    page.get_by_role("link", name="Overview").click()
    seen(page, PAGES["overview"])
    seen(page, "Placed by local: the row is serviced")
    page.get_by_role("link", name="Holds").click()
    page.get_by_role("button", name="Release").click()
    seen(page, "Released: the policy has the clocks again.")
    gone(page, "Hold: Clocks are pinned")
    assert server.get("state")["hold"] is None
    assert "no longer needed" in server.reasons("release")


def write(page: Page, text: str) -> None:
    box = page.get_by_role("textbox", name="Policy (YAML)")
    box.fill(text)
    box.press("Control+Enter")


def activate(page: Page, reason: str, mode: str) -> None:
    page.get_by_role("button", name=f"Set {mode}").click()
    expect(page.get_by_role("button", name=f"Activate ({mode})")).to_be_visible(timeout=PATIENCE_MS)
    page.get_by_label("Reason for the change").fill(reason)
    page.get_by_label("Reason for the change").press("Enter")
    page.get_by_role("button", name=f"Activate ({mode})").click()
    seen(page, re.compile(f"Activated: follow-the-grid is in force, revision .*, mode {mode}"))


def test_policy_goes_from_an_error_over_shadow_to_enforce(server: Server, visit: Callable[[str], Page]) -> None:
    page = visit("policies")
    good = server.get("policy")["text"]
    line = next(n for n, text in enumerate(good.splitlines(), 1) if "governor: slo_slack" in text)
    write(page, good.replace("governor: slo_slack", "governor: slo_slakc"))
    page.get_by_role("button", name="Validate").click()
    seen(page, "1 error. The policy in force stays.")
    seen(page, re.compile(rf"line {line}, column \d+: spec\.power\.governor"))
    assert server.get("policy")["text"] == good
    write(page, good.replace("tpot_p99_ms: 50", "tpot_p99_ms: 60"))
    page.get_by_role("button", name="Show differences").click()
    expect(page.get_by_text("spec.slo.tpot_p99_ms").first).to_be_attached(timeout=PATIENCE_MS)
    activate(page, "try it first", "shadow")
    assert server.get("state")["policy"]["mode"] == "shadow"
    activate(page, "it did well", "enforce")
    assert server.get("state")["policy"]["mode"] == "enforce"
    assert "tpot_p99_ms: 60" in server.policy.read_text()
    revisions = {row["reason"]: row["revision"] for row in server.get("policy/revisions")["revisions"]}
    rows = {row["reason"]: row for row in server.audit("policy")}
    for reason, mode in (("try it first", "shadow"), ("it did well", "enforce")):
        row = rows[reason]
        assert (row["actor"], row["asked"]["mode"]) == ("local", mode)
        assert row["asked"]["revision"] == revisions[reason]


def test_policy_is_rolled_back_with_a_reason_that_stands_in_the_audit(
    server: Server, visit: Callable[[str], Page]
) -> None:
    good = server.get("policy")
    before = re.findall(r"tpot_p99_ms: \d+", good["text"])[0]
    changed = good["text"].replace(before, "tpot_p99_ms: 75")
    server.post("policy/activate", text=changed, expected_revision=good["revision"], reason="looser for a day")
    page = visit("policies")
    page.get_by_role("tab", name="Revisions").click()
    # The newest of the earlier ones is offered first, with what would change.
    offered = page.get_by_role("combobox", name="Earlier revision")
    expect(offered).to_have_value(good["revision"][:12], timeout=PATIENCE_MS)
    page.get_by_label("Reason for the rollback").fill("too slow for the chat tenants")
    page.get_by_label("Reason for the rollback").press("Enter")
    page.get_by_role("button", name="Roll back to it").click()
    seen(page, f"Rolled back: revision {good['revision'][:12]} is in force.")
    assert server.get("policy")["text"] == good["text"]
    assert server.policy.read_text() == good["text"]
    assert server.get("state")["policy"]["revision"] == good["revision"]
    (row,) = [row for row in server.audit("policy") if "too slow for the chat tenants" in row["reason"]]
    assert (row["actor"], row["asked"]["revision"]) == ("local", good["revision"])
    page.get_by_role("tab", name="Edit").click()
    expect(page.get_by_role("textbox", name="Policy (YAML)")).to_have_value(re.compile(before))
    page.get_by_role("link", name="Audit").click()
    page.get_by_label("Words in actor, reason").fill("chat tenants")
    page.get_by_label("Words in actor, reason").press("Enter")
    seen(page, re.compile("1 of \\d+ rows on this page"))


def test_audit_is_filtered_exported_and_checked(server: Server, visit: Callable[[str], Page], tmp_path: Path) -> None:
    page = visit("audit")
    page.get_by_label("Words in actor, reason").fill("no such words anywhere")
    page.get_by_label("Words in actor, reason").press("Enter")
    seen(page, "No such row.")
    page.get_by_label("Words in actor, reason").fill("governor")
    page.get_by_label("Words in actor, reason").press("Enter")
    gone(page, "No such row.")
    with page.expect_download() as coming:
        page.get_by_role("button", name="Export CSV").click()
    coming.value.save_as(tmp_path / "audit.csv")
    with (tmp_path / "audit.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["kind"] for row in rows} >= {"policy", "actuation"}
    page.get_by_role("button", name="Check the hash chain").click()
    seen(page, re.compile(r"The chain holds: \d+ rows"))


def test_chat_streams_three_levels_side_by_side_with_joules(visit: Callable[[str], Page]) -> None:
    page = visit("chat")
    page.get_by_text("side by side").click()
    page.get_by_label("Most tokens").fill("16")
    page.get_by_label("Most tokens").press("Enter")
    page.get_by_label("Prompt").fill("Why is the sky blue?")
    page.get_by_role("button", name="Send").click()
    for level in ("L0", "L1", "L2"):
        seen(page, re.compile(f"directive given {level}"))
    figures = page.get_by_text(re.compile(r"[\d.,]+ J · [\d.,]+ m?g CO2e · \d+ tokens"))
    expect(figures).to_have_count(3, timeout=PATIENCE_MS)
    expect(page.get_by_text(re.compile("joules against the L0 answer to the same prompt"))).to_have_count(2)
    seen(page, "simulated, twin")


def test_experiments_are_averaged_weighed_and_compared(
    visit: Callable[[str], Page], results: Path, tmp_path: Path
) -> None:
    page = visit("experiments")
    seen(page, "8 runs on disk; joules: simulated")
    front = page.get_by_text(re.compile("Not beaten by any other run: .*"))
    expect(front).to_have_text(re.compile("static 1005"), timeout=PATIENCE_MS)
    # Its alt text names the front too; the chart's own buttons carry it.
    drawn = page.get_by_role("button", name=re.compile(r"Show data: TPOT p99 \(ms\) against Energy per output token"))
    expect(drawn).to_be_attached(timeout=PATIENCE_MS)
    expect(page.get_by_role("button", name="Fullscreen: Figures of two runs.")).to_be_attached(timeout=PATIENCE_MS)
    # What that table holds, out of the files themselves: the second policy against the first.
    cells = [json.loads(path.read_text()) for path in results.glob("quick/runs/*/cell.json")]

    def mean(policy: str) -> float:
        values = [cell["energy_j_per_output_token"] for cell in cells if cell["policy"] == policy]
        assert len(values) == 2
        return sum(values) / 2

    first, second = experiments.over_seeds(experiments.find(results))[:2]
    assert (first.name, second.name) == ("default", "slo_slack")
    compared = {row["Figure"]: row for row in experiments.compare(first, second)}
    change = 100 * (mean("slo_slack") / mean("default") - 1)
    assert compared["energy_j_per_output_token"]["Change"] == f"{change:+.1f} %"
    with page.expect_download() as coming:
        page.get_by_role("button", name="Its report (HTML)").click()
    coming.value.save_as(tmp_path / "report.html")
    assert (tmp_path / "report.html").read_bytes() == (results / "quick" / "report.html").read_bytes()
    page.get_by_text("Means over seeds").click()
    seen(page, re.compile("quick/runs/"))


def test_panic_by_keyboard_restores_driver_defaults(server: Server, visit: Callable[[str], Page]) -> None:
    page = visit("serving")
    page.get_by_role("button", name="Panic: driver defaults").focus()
    page.keyboard.press("Enter")
    confirm = page.get_by_role("button", name="Restore driver defaults now")
    confirm.focus()
    page.keyboard.press("Enter")
    seen(page, "Hold: Driver defaults on all devices until released.")
    assert server.get("state")["hold"]["mode"] == "defaults"
    until(lambda: server.get("state")["power"]["devices"][0]["asked_clock_mhz"] is None, "the clocks are the driver's")
    assert "panic from the dashboard" in server.reasons("hold")
    client = AdminClient(server.admin, TOKEN)
    client.release("end of the test")
    client.close()


def test_every_page_opens_and_its_pictures_have_words(visit: Callable[[str], Page]) -> None:
    page = visit("overview")
    for name, words in PAGES.items():
        page.get_by_role("link", name=LINKS.get(name, name.capitalize()), exact=True).click()
        seen(page, words)
        for chart in page.get_by_test_id("stEChartsChart").all():
            assert chart.get_by_role("img").count() or chart.get_attribute("aria-label"), name


def test_silent_api_turns_everything_stale(server: Server, visit: Callable[[str], Page]) -> None:
    page = visit("overview")
    seen(page, re.compile("engine · now"))
    assert server.stop() == 0
    seen(page, "No contact with the admin API.")
    seen(page, re.compile("the admin API does not answer"))
    expect(page.get_by_text(re.compile("^live$"))).to_have_count(0, timeout=PATIENCE_MS)
