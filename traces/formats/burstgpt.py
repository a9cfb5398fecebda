"""BurstGPT v1 and v3 (HPMLL/BurstGPT, CC-BY-4.0).

`Timestamp`: seconds from 0:00 of day 1, whole in v1, with fraction in v3. v3 adds `Session ID` (blank for API rows) and
`Elapsed time` (seconds of the whole response, not the time to the first token). Zero response tokens: a failed request.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from traces.formats.layout import CsvLayout, ParseFields
from traces.rows import Row, real_number, whole_number

_COMMON = ("Timestamp", "Model", "Request tokens", "Response tokens", "Total tokens", "Log Type")


def _bind(at: Mapping[str, int], seconds_per_unit: float) -> ParseFields:
    stamp, model, log_type = at["Timestamp"], at["Model"], at["Log Type"]
    sent, received = at["Request tokens"], at["Response tokens"]
    session, elapsed = at.get("Session ID"), at.get("Elapsed time")

    def parse(fields: Sequence[str]) -> Row:
        extras: dict[str, Any] = {"model": fields[model] or None, "task": fields[log_type] or None}
        if session is not None and fields[session]:
            extras["session_id"] = fields[session]
        if elapsed is not None and fields[elapsed]:
            extras["recorded_duration_s"] = real_number("Elapsed time", fields[elapsed])
        return Row(
            real_number("Timestamp", fields[stamp]) * seconds_per_unit,
            whole_number("Request tokens", fields[sent], least=1),
            whole_number("Response tokens", fields[received]),
            extras,
        )

    return parse


BURSTGPT_V1 = CsvLayout(
    name="burstgpt-v1",
    title="BurstGPT 1 and 2",
    required=_COMMON,
    refused=("Session ID",),
    bind=_bind,
    time_unit="s",
    stamp_zero="midnight",
)
BURSTGPT_V3 = CsvLayout(
    name="burstgpt-v3",
    title="BurstGPT 3",
    required=(*_COMMON, "Session ID", "Elapsed time"),
    bind=_bind,
    time_unit="s",
    stamp_zero="midnight",
)
