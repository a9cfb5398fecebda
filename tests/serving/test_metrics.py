"""What `/metrics` exports, read by Prometheus' own parser."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.parser import text_string_to_metric_families

from engine.client_protocol import EngineHealth
from serving import metric_catalogue as catalogue
from serving.metric_catalogue import CATALOGUE
from serving.step_histogram import StepHistogram

MODEL = {"model_name": "fake/model"}


async def scrape(client):
    answer = await client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    families = list(text_string_to_metric_families(answer.text))
    names = [family.name for family in families]
    assert len(names) == len(set(names))
    samples = {}
    for family in families:
        assert family.documentation
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in samples
            samples[key] = sample.value
    return families, samples


def value(samples, name, **labels):
    return samples[name, tuple(sorted((MODEL | labels).items()))]


async def test_counts_of_requests(client, engine):
    body = {"messages": [{"role": "user", "content": "hello"}], "n": 2, "max_tokens": 5}
    for _ in range(3):
        await client.post("/v1/chat/completions", json=body)
    await client.post("/v1/chat/completions", json=body | {"stream": True, "stop": "he"})
    await client.post("/v1/chat/completions", json=body | {"max_tokens": 5000})
    engine.error_after = 2
    await client.post("/v1/completions", json={"prompt": "x"})
    engine.error_after, engine.crash_after = None, 2
    await client.post("/v1/completions", json={"prompt": "x"})
    _, samples = await scrape(client)
    assert value(samples, "gridserve_request_success_total", finished_reason="length") == 6
    assert value(samples, "gridserve_request_success_total", finished_reason="stop") == 2
    assert value(samples, "gridserve_request_success_total", finished_reason="error") == 2
    assert value(samples, "gridserve_prompt_tokens_total") == 4 * 8 + 2
    assert value(samples, "gridserve_generation_tokens_total") == 6 * 5 + 2 * 3 + 2 * 2
    assert value(samples, "gridserve_time_to_first_token_seconds_count") == 10
    assert value(samples, "gridserve_inter_token_latency_seconds_count") == 6 * 4 + 2 * 2 + 2 * 1
    assert value(samples, "gridserve_e2e_request_latency_seconds_count") == 4
    assert samples["gridserve_requests_rejected_total", (("status", "400"),)] == 1
    route = (("method", "POST"), ("route", "/v1/chat/completions"), ("status", "200"))
    assert samples["gridserve_http_requests_total", route] == 4


async def test_engine_report(client, engine):
    _, samples = await scrape(client)
    assert value(samples, "gridserve_num_requests_running") == 1
    assert value(samples, "gridserve_num_requests_waiting") == 2
    assert value(samples, "gridserve_kv_cache_usage_ratio") == 0.25
    assert value(samples, "gridserve_num_preemptions_total") == 3
    assert value(samples, "gridserve_prefix_cache_queries_total") == 100
    assert value(samples, "gridserve_prefix_cache_hits_total") == 40
    assert value(samples, "gridserve_engine_ready") == 1
    engine.stats, engine.health = None, EngineHealth(False, "down")
    families, samples = await scrape(client)
    assert value(samples, "gridserve_engine_ready") == 0
    assert "gridserve_num_requests_running" not in {family.name for family in families}


async def test_the_catalogue_is_what_is_exported(client):
    await client.post("/v1/completions", json={"prompt": "x", "max_tokens": 2})
    await client.post("/v1/completions", json={"prompt": "x" * 999})
    families, samples = await scrape(client)
    listed = {spec.name.removesuffix("_total"): spec for spec in CATALOGUE}
    assert len(listed) == len(CATALOGUE)
    assert {family.name for family in families} == set(listed)
    for family in families:
        spec = listed[family.name]
        assert family.type == spec.kind
        assert (spec.kind == "counter") == spec.name.endswith("_total")
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == set(spec.labels)
    assert not any(name.endswith("_created") for name, _ in samples)


async def test_labels_are_bounded(client):
    for k in range(20):
        await client.get(f"/nope/{k}")
        await client.request(f"ODD{k}", f"/other{k}")
        await client.get(f"/v1/models/other{k}")
        await client.post("/v1/completions", json={"prompt": "x", "model": f"other{k}"})
    families, _ = await scrape(client)
    [http] = [family for family in families if family.name == "gridserve_http_requests"]
    assert len(http.samples) <= 6
    assert {sample.labels["route"] for sample in http.samples} <= {
        "unmatched", "/v1/models/{model_id:path}", "/v1/completions", "/metrics",
    }  # fmt: skip


@pytest.mark.parametrize("accept", ["application/openmetrics-text; version=1.0.0", "text/plain", "*/*"])
async def test_formats(client, accept):
    assert (await client.get("/metrics", headers={"accept": accept})).status_code == 200


async def test_two_applications_do_not_share_series(connect, fake):
    first, second = fake(), fake()
    async with connect(first) as one, connect(second) as two:
        await one.post("/v1/completions", json={"prompt": "x", "max_tokens": 2})
        _, samples = await scrape(two)
        assert value(samples, "gridserve_generation_tokens_total") == 0


@given(st.lists(st.tuples(st.floats(0, 100), st.integers(1, 5)), max_size=40))
def test_the_histogram_of_steps_is_exposed_as_the_librarys_own(observed):
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    fast = StepHistogram(catalogue.ITL, "m")
    ours.register(fast)
    usual = Histogram(
        catalogue.ITL.name, catalogue.ITL.help, catalogue.ITL.labels, buckets=catalogue.ITL.buckets, registry=theirs
    ).labels("m")
    for value, times in observed:
        fast.observe(value, times)
        for _ in range(times):
            usual.observe(value)
    found, expected = (
        {
            (one.name, tuple(sorted(one.labels.items()))): one.value
            for family in registry.collect()
            for one in family.samples
        }
        for registry in (ours, theirs)
    )
    assert found.keys() == expected.keys()
    assert found == pytest.approx(expected)
