"""View-models: what a tile, a chart or a table shows, as functions of what the API said."""

from __future__ import annotations

import json

import msgspec
import pandas as pd
import pytest
from emulated_world import World
from hypothesis import given
from hypothesis import strategies as some

from dashboard.live_series import WINDOW_S, bridged, merge
from dashboard.schema_access import BudgetList
from dashboard.schema_carbon import CarbonState, EvaluatorState
from dashboard.schema_records import RequestRecord
from dashboard.schema_state import State
from dashboard.snapshot import Snapshot
from dashboard.views import budgets, carbon, devices, experiments, overview, policies, reports, requests, serving
from dashboard.views.charts import MAX_POINTS, Line, Panel, down_sample, stack
from dashboard.views.formats import UNKNOWN, duration, grams, joules, number, plain, seconds, share
from dashboard.views.health import Level, banners, verdict
from dashboard.views.origin import DataState, Origin, aged, of_intensity, source_name, weakest
from dashboard.views.palette import DARK, LIGHT


def read(value, kind):
    """As the dashboard's client reads the server's body."""
    return msgspec.json.decode(msgspec.json.encode(value), type=kind)


def state(condition="live", **world):
    return read(World(condition=condition, **world).state(), State)


def fresh(of):
    return Snapshot(of, None, False, False, 0.2)


def silent(of, age_s=30.0):
    return Snapshot(of, "nothing answers", True, False, age_s)


@pytest.mark.parametrize(
    ("made", "shown"),
    [
        (number(1234.4, "W"), "1,234 W"), (number(0.034567, "g"), "0.0346 g"), (number(9.996), "10.0"),
        (number(0.0, "J"), "0 J"), (number(None, "J"), UNKNOWN), (number(float("nan"), "J"), UNKNOWN),
        (seconds(0.0312), "31.2 ms"), (seconds(1.5), "1.50 s"), (seconds(None), UNKNOWN), (share(None), UNKNOWN),
        (duration(40), "40 s"), (duration(7500), "2 h 5 min"), (duration(200000), "2 d 7 h"), (duration(None), UNKNOWN),
        (joules(7.2e6), "2.00 kWh"), (joules(None), UNKNOWN), (grams(0.0042), "4.20 mg"), (grams(2500), "2.50 kg"),
        (grams(None), UNKNOWN),
    ],
)  # fmt: skip
def test_figures_read_with_units_and_unknown_is_a_dash(made, shown):
    assert made == shown


@given(some.floats(min_value=1e-6, max_value=1e9))
def test_three_digits_are_right_to_half_a_percent(value):
    assert abs(float(number(value).replace(",", "")) - value) <= 0.0051 * value


@given(some.text(max_size=60))
def test_text_of_others_keeps_no_mark_of_markdown(text):
    bare = plain(text)
    assert "\n" not in bare
    for at, sign in enumerate(bare):
        if sign in "[]()<>!*_`#|$:":
            assert bare[at - 1] == "\\"


def test_all_tiles_stand_before_the_first_answer_and_none_shows_a_zero():
    made = overview.tiles(Snapshot(None, "nothing answers", True, False, None))
    assert len(made) == 6
    assert {tile.value for tile in made} == {UNKNOWN}
    assert {tile.origin.state for tile in made} == {DataState.MISSING}


def test_a_silent_api_makes_every_figure_stale_and_its_age_grows():
    old = aged(Origin(DataState.SIMULATED, "twin", 2.0), silent(state()))
    assert old.state is DataState.STALE
    assert old.age_s == 32.0
    assert "does not answer" in old.text
    assert aged(Origin(DataState.LIVE, "twin", 0.0), fresh(state())).state is DataState.LIVE


def test_power_is_unknown_as_soon_as_one_device_is_silent():
    of = state()
    assert overview.total_power_w(of) == pytest.approx(sum(device.power_w for device in of.power.devices))
    first = msgspec.structs.replace(of.power.devices[0], power_w=None)
    power = msgspec.structs.replace(of.power, devices=[first, *of.power.devices[1:]])
    assert overview.total_power_w(msgspec.structs.replace(of, power=power)) is None


def test_carbon_is_no_better_than_the_weaker_of_power_and_grid():
    tiles = {tile.label: tile for tile in overview.tiles(fresh(state("simulated")))}
    assert tiles["CO2e per 1k tok"].origin.state is DataState.SIMULATED
    assert "×" in tiles["CO2e per 1k tok"].origin.source
    assert weakest(Origin(DataState.LIVE, "a"), Origin(DataState.MISSING, "b")).source == "b"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"kind": "measured"}, DataState.LIVE), ({"kind": "estimated"}, DataState.ESTIMATED),
        ({"kind": "replayed"}, DataState.SIMULATED), ({"tier": "stale"}, DataState.STALE),
        ({"tier": "zone_mean"}, DataState.ESTIMATED), ({"g_per_kwh": None}, DataState.MISSING),
    ],
)  # fmt: skip
def test_intensity_says_how_it_is_known(changes, expected):
    intensity = msgspec.structs.replace(state().intensity, **changes)
    assert of_intensity(intensity).state is expected


def test_names_of_files_are_short():
    assert source_name("file:traces/data/intensity_synthetic_wind.csv") == "synthetic wind"
    assert source_name("uk_grid") == "uk_grid"
    assert source_name(None) == "no source"


def test_attribution_gap_is_of_the_counter_and_unknown_before_it_moves():
    of = state()
    gap = overview.attribution_gap(of)
    assert gap.share == pytest.approx(of.power.totals.unattributed_j / of.power.totals.counter_j)
    still = msgspec.structs.replace(of.power.totals, counter_j=0.0)
    unknown = overview.attribution_gap(
        msgspec.structs.replace(of, power=msgspec.structs.replace(of.power, totals=still))
    )
    assert unknown.share is None
    assert unknown.origin.state is DataState.MISSING


def test_savings_name_their_counterfactual():
    world = read(World().carbon(), CarbonState)
    assert "against every answer at L0" in overview.why(state(), world)
    saved = next(tile for tile in carbon.tiles(world, state().now_unix_s) if tile.label == "Grams saved")
    assert carbon.COUNTERFACTUAL in saved.against
    none = msgspec.structs.replace(world, plan=msgspec.structs.replace(world.plan, saving=None, static_saving=None))
    for tile in carbon.tiles(none, state().now_unix_s)[2:]:
        assert (tile.value, tile.origin.state) == (UNKNOWN, DataState.MISSING)


def test_the_plan_is_drawn_below_the_forecast_by_what_it_saves():
    world = read(World().carbon(), CarbonState)
    (line,) = overview.plan_line(world, LIGHT)
    first = world.plan.ahead[0]
    assert line.points[0] == (first.start_unix_s * 1000, pytest.approx(first.g_per_kwh * (1 - first.saving)))
    # The last hour is drawn to its end.
    assert line.points[-1][0] - line.points[-2][0] == 3_600_000
    drawn = overview.panels(pd.DataFrame(), state(), world, [], LIGHT)[2]
    assert [each.label for each in drawn.lines] == ["intensity", "forecast", "plan"]
    nothing = msgspec.structs.replace(world, plan=msgspec.structs.replace(world.plan, ahead=[]))
    assert overview.plan_line(nothing, LIGHT) == []
    assert overview.plan_line(None, LIGHT) == []


def test_ttft_is_shown_at_p95_and_judged_at_the_percentile_of_the_slo():
    def tile(p95, p99):
        latency = msgspec.structs.replace(state().latency, ttft_p95_s=p95, ttft_p99_s=p99, slo_ttft_s=1.0)
        return overview.tiles(fresh(msgspec.structs.replace(state(), latency=latency)))[3]

    held = tile(0.4, 0.9)
    assert (held.label, held.value, held.against, held.bad) == ("TTFT p95", "400 ms", "p99 900 ms, SLO 1 s", False)
    assert tile(0.9, 1.1).bad
    assert tile(None, None).value == UNKNOWN


def test_verdict_is_the_worst_news_first():
    assert verdict(fresh(state())).level is Level.GOOD
    assert verdict(fresh(state("stale_feed"))).level is Level.WARNING
    assert verdict(silent(state())).word == "No contact"
    engine = msgspec.structs.replace(state().engine, ready=False, reason="loading weights")
    down = verdict(fresh(msgspec.structs.replace(state(), engine=engine)))
    assert (down.word, down.reasons) == ("Not serving", ("loading weights",))
    latency = msgspec.structs.replace(state().latency, ttft_p99_s=2.0)
    slow = verdict(fresh(msgspec.structs.replace(state(), latency=latency)))
    assert "above its SLO of 1.00 s" in slow.reasons[0]


def test_banners_carry_hold_and_lost_contact_together():
    made = banners(silent(state(), age_s=90.0))
    assert [banner.level for banner in made] == [Level.BAD]
    assert "90 s old" in made[0].text


def test_charts_name_state_source_and_age_and_carry_at_most_2000_points():
    of = state()
    index = pd.Index([of.now_unix_s * 1000 - 1000 * row for row in range(5000)][::-1], name="t")
    frame = pd.DataFrame({"power_w": range(5000), "intensity_g_per_kwh": 171.0}, index=index, dtype=float)
    made = overview.panels(frame, of, read(World().carbon(), CarbonState), [], LIGHT)
    option = stack(frame, made, (0, 1), DARK, now_ms=of.now_unix_s * 1000)
    titles = [title["text"] for title in option["title"]]
    assert any("Power (W)" in text and "live · nvml_energy_counter · now" in text for text in titles)
    assert all("{o|" in text for text in titles if "{t|" in text)
    assert len(option["dataset"]["source"]) <= MAX_POINTS
    assert option["dataset"]["source"]["power_w"].mean() == pytest.approx(2499.5, abs=2)


@given(some.integers(1, 9000), some.integers(1, 2000))
def test_down_sampling_keeps_the_bound(rows, most):
    frame = pd.DataFrame({"x": range(rows)}, index=pd.Index(range(rows), name="t"), dtype=float)
    made = down_sample(frame, most)
    assert len(made) <= most
    assert made["x"].iloc[0] >= 0
    assert made["x"].max() <= rows - 1


def test_a_panel_without_data_says_why():
    option = stack(
        pd.DataFrame(), [Panel("Power", "W", [Line("drawn", "#000", "power_w")], note="no device")], (0, 1), LIGHT
    )
    assert [title["text"] for title in option["title"]] == ["{t|Power (W)}", "no device"]
    assert option["series"][0]["data"] == []


def test_short_gaps_are_bridged_and_long_ones_stay():
    gap = float("nan")
    frame = pd.DataFrame({"x": [gap, 1.0, gap, gap, 2.0, gap, gap, gap, 3.0, gap]})
    assert bridged(frame)["x"].fillna(-1).tolist() == [-1, 1, 1, 1, 2, -1, -1, -1, 3, -1]


def test_the_window_moves_and_new_points_replace_old_ones():
    now = 10_000.0
    old = pd.DataFrame({"x": [1.0, 2.0, 3.0]}, index=[(now - WINDOW_S - 5) * 1000, (now - 2) * 1000, (now - 1) * 1000])
    new = pd.DataFrame({"x": [30.0, 40.0]}, index=[(now - 1) * 1000, now * 1000])
    assert merge(old, new, now)["x"].tolist() == [2.0, 30.0, 40.0]
    assert merge(old, pd.DataFrame(), now)["x"].tolist() == [2.0, 3.0]


@pytest.mark.parametrize(("limit", "seen"), [(0.9, True), (4.0, True), (40.0, False)])
def test_a_limit_stretches_its_axis_unless_it_would_flatten_the_data(limit, seen):
    frame = pd.DataFrame({"ttft": [0.4, 0.5]}, index=pd.Index([1000, 2000], name="t"))
    panel = Panel("TTFT", "s", [Line("p95", "#000", "ttft")], limit=("SLO", limit))
    option = stack(frame, [panel], (0.0, 3000.0), LIGHT)
    (guides,) = [series for series in option["series"] if "markLine" in series]
    assert guides["markLine"]["data"][0]["yAxis"] == limit
    assert guides["data"] == ([[0.0, limit]] if seen else [])


def test_policy_mode_is_set_in_the_text_and_nowhere_else():
    text = "spec:\n  mode: enforce  # now\n  power: {governor: default}\n"
    assert policies.with_mode(text, "shadow") == text.replace("enforce", "shadow")
    assert policies.mode_of(text) == "enforce"
    with pytest.raises(ValueError, match="no `mode:` line"):
        policies.with_mode("spec: {}", "shadow")


def test_reports_sum_what_is_known_and_count_what_is_not():
    records = [read(World().request(index), RequestRecord) for index in range(3)]
    records[2] = msgspec.structs.replace(records[2], energy_j=None, operational_g=None)
    total = reports.lines(records, "Tenant")[-1]
    assert total.energy_j == pytest.approx(records[0].energy_j + records[1].energy_j)
    assert (total.requests, total.without_energy, total.without_grams) == (3, 1, 1)
    nothing = reports.lines([records[2]], "Hour")[0]
    assert nothing.energy_j is None
    assert reports.rows([nothing])[0]["Energy"] == UNKNOWN
    assert reports.to_csv([nothing]).splitlines()[1].split(",")[3] == ""


def test_reports_run_nothing_a_tenant_wrote():
    record = msgspec.structs.replace(read(World().request(0), RequestRecord), tenant="=cmd|' /C calc'!A0")
    made = reports.lines([record], "Tenant")
    assert reports.to_csv(made).splitlines()[1].startswith("'=cmd")
    record = msgspec.structs.replace(record, tenant="<script>alert(1)</script>")
    assert "<script>" not in reports.to_html(reports.lines([record], "Tenant"), "t", 0, 1)


def test_budget_of_requests_without_joules_is_unknown_not_zero():
    tenant = read(World().budgets(), BudgetList).tenants[0]
    blind = msgspec.structs.replace(tenant, energy_j=0.0, requests_without_energy=tenant.requests)
    assert budgets.rows([blind], 0.0)[0]["Energy"] == UNKNOWN
    assert budgets.projected_share(tenant, tenant.day_unix_s + 60) is None
    assert budgets.projected_share(tenant, tenant.day_unix_s + 43200) == pytest.approx(2 * 402 / 500)


def test_one_life_is_drawn_from_what_is_recorded():
    record = read(World().request(1), RequestRecord)
    found = requests.phases(record)
    assert [phase.name for phase in found] == ["queue", "prefill", "decode"]
    assert [phase.joules for phase in found] == [None, record.prefill_j, record.decode_j]
    assert found[0].seconds == record.queue_s
    assert sum(phase.seconds for phase in found) == pytest.approx(record.e2e_s)
    drawn = requests.life_spec(record, LIGHT)["series"]
    assert [series["name"].split()[0] for series in drawn if series["stack"] == "0"] == ["queue", "prefill", "decode"]
    older = msgspec.structs.replace(record, queue_s=None)
    assert [phase.name for phase in requests.phases(older)] == ["queue and prefill", "decode"]
    assert requests.facts(older)["Waited"] == "not on record"
    bare = msgspec.structs.replace(record, ttft_s=None, prefill_j=None, decode_j=None, idle_j=None)
    assert requests.life_spec(bare, LIGHT) is None


def test_the_axis_of_quality_begins_at_a_short_number_below_every_interval():
    judged = read(World().evaluator(), EvaluatorState)
    low = carbon.quality_spec(judged, DARK)["xAxis"]["min"]
    assert low <= min(entry.low for entry in judged.quality)
    assert len(str(low)) <= 4


def test_energy_parts_add_up_to_the_counter():
    totals = state().power
    assert sum(value for _, value in devices.energy_parts(totals)) == pytest.approx(totals.totals.counter_j)
    assert serving.tiles(state("empty"))[4].origin.state is DataState.MISSING


def test_a_throttled_engine_says_so():
    plain_state = state()
    assert serving.tiles(plain_state)[0].against == "batch of at most 64"
    engine = msgspec.structs.replace(plain_state.engine, token_budget=256)
    throttled = serving.tiles(msgspec.structs.replace(plain_state, engine=engine))[0]
    assert throttled.against == "batch of at most 64; throttled to 256 of 2048 tokens a step"


def test_no_run_on_the_pareto_front_is_beaten():
    figures = {"a": (1.0, 9.0), "b": (2.0, 2.0), "c": (3.0, 3.0), "d": (9.0, 1.0), "e": (2.0, 2.5)}
    runs = [experiments.Run(name, {"x": x, "y": y}) for name, (x, y) in figures.items()]
    assert experiments.pareto(runs, "x", "y") == {"a", "b", "d"}


def luminance(colour):
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize(("palette", "ground"), [(LIGHT, "#FFFFFF"), (DARK, "#0F1722")])
def test_lines_and_words_stand_out_from_the_ground(palette, ground):
    """WCAG 2.2: 3 for graphics, 4.5 for text."""

    def contrast(colour):
        light, dark = sorted((luminance(colour), luminance(ground)), reverse=True)
        return (light + 0.05) / (dark + 0.05)

    assert all(contrast(colour) >= 3.0 for colour in palette.series())
    assert contrast(palette.text) >= 4.5
    assert contrast(palette.grey) >= 4.5


def cell(folder, name, **figures):
    (folder / "runs" / name).mkdir(parents=True)
    (folder / "runs" / name / "result.json").write_text("{}")
    document = {"trace": "chats", "variant": "1x", "zone": None, "energy_method": "simulated"} | figures
    (folder / "runs" / name / "cell.json").write_text(json.dumps(document))


def test_cells_that_differ_in_the_seed_alone_become_one_run(tmp_path):
    cell(tmp_path / "e", "a1", policy="a", seed=1, energy_j=1.0, p99_ttft_ms=10.0, date="x")
    cell(tmp_path / "e", "a2", policy="a", seed=2, energy_j=3.0, p99_ttft_ms=None, date="y")
    cell(tmp_path / "e", "b1", policy="b", seed=1, energy_j=5.0)
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "result.json").write_text('{"energy_j": 7.0, "info": {"policy": "a"}}')
    runs = experiments.find(tmp_path)
    assert experiments.experiments(runs) == ["e", experiments.ALONE]
    a, b = experiments.over_seeds(experiments.of(runs, "e"))
    assert (a.name, a.seeds, a.value("energy_j")) == ("a", 2, 2.0)
    # Unknown in one is unknown for both; a word they do not share is left out.
    assert a.value("p99_ttft_ms") is None
    assert "date" not in a.figures
    assert [row["Figure"] for row in experiments.compare(a, b)] == ["energy_j"], "a seed is no figure"
    assert (a.figures["energy_method"], b.name, b.seeds) == ("simulated", "b", 1)
    (alone,) = experiments.over_seeds(experiments.of(runs, experiments.ALONE))
    assert (alone.name, alone.value("energy_j"), alone.figures["policy"]) == ("alone", 7.0, "a")


def test_runs_are_named_by_all_that_tells_them_apart(tmp_path):
    for policy in "ab":
        for variant in ("1x", "2x"):
            cell(tmp_path, f"{policy}{variant}", policy=policy, variant=variant, energy_j=1.0)
    made = experiments.over_seeds(experiments.find(tmp_path))
    assert [run.name for run in made] == ["a · 1x", "a · 2x", "b · 1x", "b · 2x"]
    assert {run.experiment for run in made} == {tmp_path.name}


@pytest.mark.parametrize(("text", "problem"), [("{", "cannot be read"), ("[]", "is no result")])
def test_a_broken_result_is_listed_with_its_problem(tmp_path, text, problem):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "result.json").write_text(text)
    (run,) = experiments.over_seeds(experiments.find(tmp_path))
    assert problem in experiments.rows([run])[0]["Problem"]
    assert experiments.methods([run]) == ""
