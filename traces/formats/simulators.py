"""Inputs of the public simulators: Vidur (microsoft/vidur) and splitwise-sim (Mutinifni/splitwise-sim), both MIT."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from traces.formats.layout import CsvLayout, ParseFields
from traces.rows import NO_EXTRAS, BadField, Row, real_number, whole_number

SPLITWISE_COLUMNS = (
    "request_id",
    "request_type",
    "application_id",
    "arrival_timestamp",
    "batch_size",
    "prompt_size",
    "token_size",
)


def _bind_vidur(at: Mapping[str, int], seconds_per_unit: float) -> ParseFields:
    stamp, prefill, decode = at["arrived_at"], at["num_prefill_tokens"], at["num_decode_tokens"]

    def parse(fields: Sequence[str]) -> Row:
        return Row(
            real_number("arrived_at", fields[stamp]) * seconds_per_unit,
            whole_number("num_prefill_tokens", fields[prefill], least=1),
            whole_number("num_decode_tokens", fields[decode]),
            NO_EXTRAS,
        )

    return parse


def _bind_vidur_lengths(at: Mapping[str, int], _seconds_per_unit: float) -> ParseFields:
    prefill, decode = at["num_prefill_tokens"], at["num_decode_tokens"]

    def parse(fields: Sequence[str]) -> Row:
        return Row(
            0.0,
            whole_number("num_prefill_tokens", fields[prefill], least=1),
            whole_number("num_decode_tokens", fields[decode]),
            NO_EXTRAS,
        )

    return parse


def _bind_splitwise(at: Mapping[str, int], seconds_per_unit: float) -> ParseFields:
    stamp, prompt, tokens, batch = (
        at[name] for name in ("arrival_timestamp", "prompt_size", "token_size", "batch_size")
    )

    def parse(fields: Sequence[str]) -> Row:
        if fields[batch] != "1":
            raise BadField("batch_size", f"{fields[batch]!r}: only 1 (one request a row) can be replayed")
        return Row(
            real_number("arrival_timestamp", fields[stamp]) * seconds_per_unit,
            whole_number("prompt_size", fields[prompt], least=1),
            whole_number("token_size", fields[tokens]),
            NO_EXTRAS,
        )

    return parse


VIDUR = CsvLayout(
    name="vidur",
    title="Vidur, with arrivals",
    required=("arrived_at", "num_prefill_tokens", "num_decode_tokens"),
    bind=_bind_vidur,
    time_unit="s",
)
VIDUR_LENGTHS = CsvLayout(
    name="vidur-lengths",
    title="Vidur, lengths without arrivals",
    required=("num_prefill_tokens", "num_decode_tokens"),
    refused=("arrived_at",),
    bind=_bind_vidur_lengths,
    time_unit=None,
)
SPLITWISE = CsvLayout(
    name="splitwise-sim",
    title="splitwise-sim input",
    required=SPLITWISE_COLUMNS,
    bind=_bind_splitwise,
    time_unit="s",
)
