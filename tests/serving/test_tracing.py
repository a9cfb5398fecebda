"""Traces of requests: what a span holds, where it goes, and that a collector's troubles are not the server's."""

from __future__ import annotations

import argparse
import json
import logging
import re
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.context import Context
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes
from opentelemetry.trace import get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from engine.request import SamplingParams
from serving.ledger.engine import Location
from serving.ledger.reader import LedgerReader
from serving.openai_responses import EnergyUsage
from serving.request_log import Finished
from serving.trace_context import RequestTrace, TraceContext, read_trace_context
from serving.tracing import RequestTracer, open_tracer
from serving.tracing_options import TracingOptions, tracing_options
from serving.tracing_spans import phase_spans, request_span
from tests.serving.test_live_server import QUESTION, Server

TRACE_ID, SPAN_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE_ID}-{SPAN_ID}-01"


class Collector:
    """An OTLP/HTTP receiver: keeps the spans it is sent. `status` is what it answers; `hangs` until it is closed."""

    def __init__(self, status: int = 200, hangs: bool = False) -> None:
        self.spans: list[Any] = []
        self.resource: dict[str, Any] = {}
        self.posts = 0
        self.status = status
        self._released = threading.Event()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                collector.posts += 1
                if hangs:
                    collector._released.wait(30)
                assert self.path == "/v1/traces"
                assert self.headers["Content-Type"] == "application/x-protobuf"
                if collector.status == 200:
                    collector._keep(ExportTraceServiceRequest.FromString(body))
                self.send_response(collector.status)
                self.end_headers()

            def log_message(self, format: str, *arguments: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1/traces"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def _keep(self, request: ExportTraceServiceRequest) -> None:
        for sent in request.resource_spans:
            self.resource = attributes_of(sent.resource)
            for scope in sent.scope_spans:
                assert scope.scope.name == "gridserve"
                self.spans += scope.spans

    def close(self) -> None:
        self._released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.close()


def attributes_of(span: Any) -> dict[str, Any]:
    def value(one: Any) -> Any:
        kind = one.WhichOneof("value")
        return [value(item) for item in one.array_value.values] if kind == "array_value" else getattr(one, kind)

    return {one.key: value(one.value) for one in span.attributes}


def usage(**known: Any) -> EnergyUsage:
    return EnergyUsage(**(dict.fromkeys(EnergyUsage.__struct_fields__) | known))


def finished(**changed: Any) -> Finished:
    values: dict[str, Any] = {
        "request_id": "chatcmpl-1", "generation_ids": ("chatcmpl-1-0",), "decision": None, "model": "tiny",
        "tenant": "lab", "endpoint": "/v1/chat/completions", "task_class": None, "priority": None,
        "arrived_unix_s": 1000.0, "finished_unix_s": 1002.0, "prompt_tokens": 7, "completion_tokens": 5,
        "cached_tokens": 0, "choices": 1, "queue_s": 0.25, "ttft_s": 0.5, "tpot_s": 0.1, "e2e_s": 2.0,
        "finish_reason": "stop", "status": 200, "policy_mode": None,
        "trace": RequestTrace(TraceContext(PARENT), SamplingParams(max_tokens=9), streamed=True),
    }  # fmt: skip
    return Finished(**(values | changed))


# The client's context

hexes = st.text("0123456789abcdefABCg-", max_size=40)


@given(
    st.one_of(
        st.builds(
            lambda v, t, s, f, more: f"{v}-{t}-{s}-{f}{more}",
            st.sampled_from(["00", "01", "ff", "0", "fe"]),
            st.one_of(st.from_regex("[0-9a-f]{32}", fullmatch=True), st.just("0" * 32), hexes),
            st.one_of(st.from_regex("[0-9a-f]{16}", fullmatch=True), st.just("0" * 16), hexes),
            st.sampled_from(["00", "01", "ff", "1", "GG"]),
            st.sampled_from(["", "-", "-what", "-00"]),
        ),
        st.text(max_size=80),
    )
)
def test_what_is_taken_for_a_traceparent_is_one_for_opentelemetry_too(header: str) -> None:
    found = read_trace_context({"traceparent": header})
    known = get_current_span(TraceContextTextMapPropagator().extract({"traceparent": header}, Context()))
    if found is not None:
        assert known.get_span_context().is_valid
        assert f"{known.get_span_context().trace_id:032x}" in header


def test_a_traceparent_is_taken_with_a_state_of_bounded_length() -> None:
    assert read_trace_context({}) is None
    assert read_trace_context({"traceparent": PARENT}) == TraceContext(PARENT)
    assert read_trace_context({"traceparent": PARENT, "tracestate": "a=b"}) == TraceContext(PARENT, "a=b")
    assert read_trace_context({"traceparent": PARENT, "tracestate": "a" * 600}) == TraceContext(PARENT)
    assert read_trace_context({"traceparent": f"01-{TRACE_ID}-{SPAN_ID}-01-later"}) is not None
    for wrong in (PARENT + "-00", PARENT.upper(), PARENT[:-1], f"ff{PARENT[2:]}", f"00-{'0' * 32}-{SPAN_ID}-01"):
        assert read_trace_context({"traceparent": wrong}) is None


# What a span holds


def test_a_span_has_the_conventions_attributes_and_figures_with_their_provenance() -> None:
    known = usage(energy_joules=12.0, method="simulated", source="twin", grams_co2e=0.1, zone="GB", pue=1.2)
    span = request_span(finished(), known)
    assert span.name == "chat tiny"
    assert span.attributes["gen_ai.operation.name"] == "chat"
    assert span.attributes["gen_ai.usage.input_tokens"] == 7
    assert span.attributes["gen_ai.response.finish_reasons"] == ("stop",)
    assert span.attributes["gen_ai.response.time_to_first_chunk"] == 0.5
    assert span.attributes["gridserve.energy.joules"] == 12.0
    assert span.attributes["gridserve.energy.method"] == "simulated"
    assert span.attributes["gridserve.carbon.zone"] == "GB"
    assert "gridserve.carbon.intensity_g_per_kwh" not in span.attributes
    assert not span.failed
    conventions = {getattr(gen_ai_attributes, name) for name in dir(gen_ai_attributes) if name.startswith("GEN_AI_")}
    ours = [name for name in span.attributes if name.startswith("gen_ai.")]
    assert len(ours) >= 10
    assert set(ours) <= conventions
    assert None not in span.attributes.values()


def test_every_field_of_the_energy_object_is_in_a_span_or_can_be_worked_out_from_one() -> None:
    values: dict[str, Any] = dict.fromkeys(EnergyUsage.__struct_fields__, 1.5)
    span = request_span(finished(), EnergyUsage(**values))
    derived = {"energy_kwh", "avg_power_watts", "duration_seconds"}
    assert sum(value == 1.5 for value in span.attributes.values()) == len(values) - len(derived)


def test_without_planes_there_are_no_figures_and_no_zeros() -> None:
    span = request_span(finished(), None)
    assert not [name for name in span.attributes if name.startswith(("gridserve.energy", "gridserve.carbon"))]


@given(
    st.none() | st.floats(0, 10),
    st.none() | st.floats(0, 10),
    st.floats(0, 10),
)
def test_phases_tile_the_request(queue_s: float | None, ttft_s: float | None, e2e_s: float) -> None:
    record = finished(finished_unix_s=1000.0 + e2e_s, ttft_s=ttft_s, queue_s=queue_s)
    spans = phase_spans(record, None)
    assert spans
    for span in spans:
        assert record.arrived_unix_s <= span.start_unix_s <= span.end_unix_s <= record.finished_unix_s
    for before, after in pairwise(spans):
        assert before.end_unix_s == after.start_unix_s
    assert spans[-1].end_unix_s == record.finished_unix_s
    names = [span.name for span in spans]
    if queue_s is not None:
        assert names == (["queue", "prefill"] if ttft_s is None else ["queue", "prefill", "decode"])
    else:
        assert names == (["queue"] if ttft_s is None else ["decode"])


def test_a_fault_of_the_server_is_an_error_and_a_client_that_hung_up_is_none() -> None:
    assert request_span(finished(status=503), None).failed
    gone = request_span(finished(status=499), None)
    assert not gone.failed
    assert gone.attributes["error.type"] == "client_closed"


# Who asks for traces

URL = "http://127.0.0.1:4318/v1/traces"


@pytest.mark.parametrize(
    ("flag", "environment", "expected"),
    [
        (None, {}, None),
        (URL, {}, TracingOptions(URL)),
        (URL, {"OTEL_SDK_DISABLED": "true"}, None),
        (None, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}, TracingOptions()),
        (None, {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": URL}, TracingOptions()),
        (None, {"OTEL_TRACES_EXPORTER": "otlp"}, TracingOptions()),
        (None, {"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": URL}, None),
        (None, {"OTEL_SERVICE_NAME": "llm"}, None),
    ],
)
def test_a_flag_or_the_standard_variables_ask_for_traces(
    flag: str | None, environment: dict[str, str], expected: TracingOptions | None
) -> None:
    assert tracing_options(flag, environment, lambda: True) == expected


@pytest.mark.parametrize(
    ("environment", "what"),
    [
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_EXPORTER_OTLP_ENDPOINT": URL}, "http/protobuf"),
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "use otlp or none"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4318"}, "no URL of a collector"),
    ],
)
def test_what_the_environment_cannot_have_is_told_and_serving_goes_on(
    environment: dict[str, str], what: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert tracing_options(None, environment, lambda: True) is None
    assert what in caplog.text


def test_without_the_extra_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from engine.config import EngineConfig
    from serving.commands.serve import add_server_options, options_of

    monkeypatch.setattr("serving.tracing_options.importlib.util.find_spec", lambda name: None)
    parser = argparse.ArgumentParser()
    add_server_options(parser)
    arguments = parser.parse_args(["--model", "m", "--otlp-traces-endpoint", URL])
    with pytest.raises(ValueError, match=re.escape("pip install 'gridserve[otel]'")):
        options_of(arguments, EngineConfig(model="m", model_id="m"))
    assert tracing_options(None, {"OTEL_EXPORTER_OTLP_ENDPOINT": URL}) is None
    assert "pip install 'gridserve[otel]'" in caplog.text


def test_a_variable_the_library_refuses_stops_only_who_asked_by_the_flag(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "-5")
    with pytest.raises(ValueError, match="traces cannot be exported"):
        open_tracer(TracingOptions(URL))
    assert open_tracer(TracingOptions()) is None
    assert "there will be none" in caplog.text


def opened(url: str) -> RequestTracer:
    tracer = open_tracer(TracingOptions(url))
    assert tracer is not None
    return tracer


@pytest.mark.parametrize("wrong", ["collector:4318", "ftp://a/b", "http://", "http://a:99999/"])
def test_a_flag_that_is_no_url_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match=r"--otlp-traces-endpoint: .* is no URL"):
        tracing_options(wrong, {}, lambda: True)


# The way to a collector


def test_spans_arrive_under_the_clients_with_status_and_resource(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.name=mine,deployment.environment.name=test")
    tracer = opened(collector.url)
    tracer.settled(finished(status=500, finish_reason="error"), usage(energy_joules=3.0, method="measured"))
    tracer.settled(finished(trace=RequestTrace(TraceContext(PARENT[:-2] + "00"), SamplingParams(), False)), None)
    tracer.close()
    whole, *phases = sorted(collector.spans, key=lambda span: span.parent_span_id.hex() != SPAN_ID)
    assert whole.trace_id.hex() == TRACE_ID
    assert whole.status.code == 2
    assert whole.kind == 2
    assert (whole.start_time_unix_nano, whole.end_time_unix_nano) == (1000 * 10**9, 1002 * 10**9)
    assert sorted(span.name for span in phases) == ["decode", "prefill", "queue"]
    assert {span.parent_span_id for span in phases} == {whole.span_id}
    assert {span.trace_id for span in phases} == {whole.trace_id}
    assert tracer.exports.exported == 4, "the client's second trace is not sampled"
    assert collector.resource["service.name"] == "mine"
    assert collector.resource["deployment.environment.name"] == "test"
    assert collector.resource["service.version"]


def test_a_dead_collector_costs_one_line_and_a_count_and_its_return_another(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.2")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "1")
    collector = Collector(status=500)
    try:
        tracer = opened(collector.url)
        for _ in range(3):
            tracer.settled(finished(), None)
        until(lambda: tracer.exports.undelivered == 12)
        collector.status = 200
        tracer.settled(finished(), None)
        until(lambda: tracer.exports.exported == 4)
        tracer.close()
    finally:
        collector.close()
    said = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(said) == 2
    assert "takes no traces" in said[0]
    assert "takes traces again; 12 spans were lost" in said[1]
    assert len(collector.spans) == 4


def test_a_collector_that_hangs_fills_a_bounded_queue_and_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "8")
    monkeypatch.setattr("serving.tracing.CLOSE_S", 0.2)
    collector = Collector(hangs=True)
    try:
        tracer = opened(collector.url)
        for _ in range(100):
            tracer.settled(finished(), None)
        assert tracer.exports.dropped == 400 - 8
        tracer.close()
        assert tracer.exports.exported == 0
    finally:
        collector.close()


def until(condition: Any) -> None:
    for _ in range(1500):
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError("never")


# Through the server


@pytest.mark.e2e
def test_a_served_request_is_traced_as_its_answer_says(tiny_model: Path, collector: Collector, tmp_path: Path) -> None:
    server = Server(
        str(tiny_model), "--max-model-len", "512", "--served-model-name", "tiny", "--device", "simulated:h100-sxm",
        "--max-queued-requests", "0", "--max-num-seqs", "2", "--otlp-traces-endpoint", collector.url,
        "--ledger", str(tmp_path / "ledger"),
        environment={"OTEL_BSP_SCHEDULE_DELAY": "100"},
    )  # fmt: skip
    try:
        body = {"model": "tiny", "messages": QUESTION, "max_tokens": 8, "temperature": 0.0, "ignore_eos": True}
        url = f"{server.url}/v1/chat/completions"
        answer = httpx.post(url, json=body, headers={"traceparent": PARENT}, timeout=60).json()
        streamed = httpx.post(url, json=body | {"stream": True}, timeout=60)
        assert streamed.status_code == 200
        refused = httpx.post(url, json=body | {"n": 3}, timeout=60)
        assert refused.status_code == 400
        until(lambda: len(collector.spans) == 9)
        metrics = httpx.get(f"{server.url}/metrics").text
        assert "gridserve_trace_spans_exported_total 9.0" in metrics
        assert 'gridserve_trace_spans_lost_total{why="undelivered"} 0.0' in metrics
    finally:
        assert server.stop() == 0
    by_parent = {span.parent_span_id.hex(): span for span in collector.spans}
    whole = by_parent[SPAN_ID]
    found = attributes_of(whole)
    assert found["gen_ai.response.id"] == answer["id"]
    assert found["gen_ai.usage.input_tokens"] == answer["usage"]["prompt_tokens"]
    assert found["gen_ai.usage.output_tokens"] == 8
    assert found["gen_ai.request.max_tokens"] == 8
    assert found["gen_ai.response.finish_reasons"] == ["length"]
    assert found["gridserve.energy.method"] == "simulated"
    assert found["gridserve.energy.settled"] is True
    assert found["gridserve.energy.joules"] > 0
    assert found["gridserve.unknown"] == "grams: no carbon feed is configured"
    phases = {span.name: span for span in collector.spans if span.parent_span_id == whole.span_id}
    assert sorted(phases) == ["decode", "prefill", "queue"]
    assert phases["queue"].start_time_unix_nano == whole.start_time_unix_nano
    assert phases["queue"].end_time_unix_nano == phases["prefill"].start_time_unix_nano
    assert phases["prefill"].start_time_unix_nano < phases["prefill"].end_time_unix_nano
    assert phases["decode"].end_time_unix_nano == whole.end_time_unix_nano
    reader = LedgerReader(Location(tmp_path / "ledger"))
    row = reader.request(answer["id"])
    reader.close()
    assert row is not None
    waited_ns = phases["queue"].end_time_unix_nano - phases["queue"].start_time_unix_nano
    assert row["queue_s"] == pytest.approx(waited_ns / 1e9, abs=1e-6)
    others = [attributes_of(span) for span in collector.spans if not span.parent_span_id]
    assert sorted(one.get("http.response.status_code", 0) for one in others) == [0, 400]
    assert QUESTION[0]["content"] not in json.dumps([attributes_of(span) for span in collector.spans])


@pytest.mark.e2e
def test_variables_that_ask_for_a_collector_that_is_not_there_stop_nothing(tiny_model: Path) -> None:
    server = Server(
        str(tiny_model), "--max-model-len", "512", "--served-model-name", "tiny",
        environment={
            "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_EXPORTER_OTLP_TIMEOUT": "0.3",
            "OTEL_BSP_SCHEDULE_DELAY": "100",
        },
    )  # fmt: skip
    try:
        body = {"model": "tiny", "messages": QUESTION, "max_tokens": 4}
        for _ in range(3):
            assert httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60).status_code == 200
        lost = re.compile(r'^gridserve_trace_spans_lost_total\{why="undelivered"\} 12\.0$', re.MULTILINE)
        until(lambda: lost.search(httpx.get(f"{server.url}/metrics").text))
    finally:
        assert server.stop() == 0
