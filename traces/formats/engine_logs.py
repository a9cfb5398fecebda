"""Requests as logged from a real engine run: the validation data of LLMServingSim (casys-kaist, MIT).

Arrival is on another clock (Unix epoch) than the engine's own stamps, which are not read here.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from traces.formats.layout import JsonlLayout, ParseRecord
from traces.request import Count
from traces.rows import NO_EXTRAS, Row


class EngineLogRecord(msgspec.Struct):
    request_id: str
    input_toks: Annotated[int, msgspec.Meta(ge=1)]
    output_toks: Count
    arrival_time: Annotated[float, msgspec.Meta(ge=0)]


def _bind(seconds_per_unit: float) -> ParseRecord:
    def parse(record: EngineLogRecord) -> Row:
        return Row(record.arrival_time * seconds_per_unit, record.input_toks, record.output_toks, NO_EXTRAS)

    return parse


LLMSERVINGSIM = JsonlLayout(
    name="llmservingsim",
    title="LLMServingSim validation run",
    required=("request_id", "input_toks", "output_toks", "arrival_time"),
    record=EngineLogRecord,
    bind=_bind,
    time_unit="s",
    stamp_zero="unix",
)
