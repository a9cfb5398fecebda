"""Serving: queue, batch, KV cache, throughput and latency."""

from __future__ import annotations

import pandas as pd

from dashboard.schema_state import State
from dashboard.views.charts import Line, Panel
from dashboard.views.formats import count, number, seconds, share
from dashboard.views.origin import DataState, Origin, missing
from dashboard.views.overview import Tile, of_latency
from dashboard.views.palette import Palette

KV_HIGH = 0.9
"""Above it requests may be preempted."""


def kv_usage(state: State) -> float | None:
    used, total = state.engine.kv_blocks_used, state.engine.kv_blocks_total
    return used / total if used is not None and total else None


def tiles(state: State) -> list[Tile]:
    engine, latency = state.engine, state.latency
    live = Origin(DataState.LIVE, "engine", 0.0)
    silent = missing("engine", engine.reason or "the engine reports nothing")
    recent = of_latency(state)
    usage = kv_usage(state)
    blocks = f"{count(engine.kv_blocks_used)} of {count(engine.kv_blocks_total)} blocks"
    places = f"batch of at most {engine.max_num_seqs}"
    if engine.token_budget is not None and engine.token_budget < engine.max_num_batched_tokens:
        places += f"; throttled to {engine.token_budget} of {engine.max_num_batched_tokens} tokens a step"
    return [
        _counted("Running", engine.running, places, live, silent),
        _counted("Waiting", engine.waiting, f"{engine.sequences_in_flight} sequences in flight", live, silent),
        Tile(
            "KV cache",
            share(usage),
            blocks,
            live if usage is not None else silent,
            "Blocks in use.",
            _over(usage, KV_HIGH),
        ),
        Tile(
            "Output tokens/s",
            number(latency.output_tokens_per_s),
            f"preemptions {count(engine.preemptions)}",
            live if latency.output_tokens_per_s is not None else recent,
            "Over the last 10 seconds.",
        ),
        Tile(
            "TTFT p99",
            seconds(latency.ttft_p99_s),
            f"p50 {seconds(latency.ttft_p50_s)}, p95 {seconds(latency.ttft_p95_s)}, SLO {seconds(latency.slo_ttft_s)}",
            recent,
            "Time to the first token, of requests finished in the last minute.",
            _over(latency.ttft_p99_s, latency.slo_ttft_s),
        ),
        Tile(
            "TPOT p99",
            seconds(latency.tpot_p99_s),
            f"p50 {seconds(latency.tpot_p50_s)}, SLO {seconds(latency.slo_tpot_s)}",
            recent,
            "Time per output token after the first.",
            _over(latency.tpot_p99_s, latency.slo_tpot_s),
        ),
    ]


def _counted(label: str, value: int | None, against: str, live: Origin, silent: Origin) -> Tile:
    return Tile(label, count(value), against, silent if value is None else live, "")


def _over(value: float | None, limit: float | None) -> bool:
    return value is not None and limit is not None and value > limit


def panels(frame: pd.DataFrame, state: State, colours: Palette) -> list[Panel]:
    latency = state.latency
    ttft = None if latency.slo_ttft_s is None else ("SLO", latency.slo_ttft_s)
    tpot = None if latency.slo_tpot_s is None else ("SLO", latency.slo_tpot_s)
    live, recent = Origin(DataState.LIVE, "engine", 0.0), of_latency(state)
    return [
        _panel(
            frame,
            "Requests",
            "",
            [Line("running", colours.blue, "running"), Line("waiting", colours.orange, "waiting")],
            live,
            whole=True,
        ),
        _panel(
            frame,
            "KV cache",
            "share in use",
            [Line("in use", colours.purple, "kv_usage_ratio", fill=True)],
            live,
            maximum=1.0,
        ),
        _panel(frame, "Output", "tokens/s", [Line("tokens", colours.green, "output_tokens_per_s")], live),
        _panel(frame, "TTFT p99", "s", [Line("TTFT p99", colours.purple, "ttft_p99_s")], recent, limit=ttft),
        _panel(frame, "TPOT p99", "s", [Line("TPOT p99", colours.sky, "tpot_p99_s")], recent, limit=tpot),
    ]


def _panel(
    frame: pd.DataFrame,
    title: str,
    unit: str,
    lines: list[Line],
    origin: Origin,
    limit: tuple[str, float] | None = None,
    maximum: float | None = None,
    whole: bool = False,
) -> Panel:
    drawn = [line for line in lines if line.column in frame.columns and frame[line.column].notna().any()]
    note = None if drawn else "nothing in this window"
    return Panel(title, unit, drawn, limit=limit, maximum=maximum, note=note, origin=origin, whole=whole)
