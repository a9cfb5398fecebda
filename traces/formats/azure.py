"""Azure LLM inference traces of 2023 (code, conv), 2024 (one week) and 2025 (LMM, with images).

Source: Azure/AzurePublicDataset, CC-BY-4.0. 2023: naive stamps with seven fraction digits, CRLF. 2024: stamps with
offset, without fraction when it is zero. 2025: ISO stamps ending in Z, and `NumImages`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from traces.formats.layout import CsvLayout, ParseFields, date_stamp
from traces.rows import NO_EXTRAS, Row, whole_number


def _bind(at: Mapping[str, int], _seconds_per_unit: float) -> ParseFields:
    stamp, context, generated = at["TIMESTAMP"], at["ContextTokens"], at["GeneratedTokens"]

    def parse(fields: Sequence[str]) -> Row:
        return Row(
            date_stamp("TIMESTAMP", fields[stamp]),
            whole_number("ContextTokens", fields[context], least=1),
            whole_number("GeneratedTokens", fields[generated]),
            NO_EXTRAS,
        )

    return parse


def _bind_multimodal(at: Mapping[str, int], seconds_per_unit: float) -> ParseFields:
    text_only, images = _bind(at, seconds_per_unit), at["NumImages"]

    def parse(fields: Sequence[str]) -> Row:
        count = whole_number("NumImages", fields[images])
        row = text_only(fields)
        return row._replace(extras={"images": count}) if count else row

    return parse


AZURE = CsvLayout(
    name="azure",
    title="Azure LLM inference 2023 / 2024",
    required=("TIMESTAMP", "ContextTokens", "GeneratedTokens"),
    refused=("NumImages",),
    bind=_bind,
    time_unit=None,
    stamp_zero="unix",
)
AZURE_MULTIMODAL = CsvLayout(
    name="azure-lmm",
    title="Azure LMM inference 2025",
    required=("TIMESTAMP", "NumImages", "ContextTokens", "GeneratedTokens"),
    bind=_bind_multimodal,
    time_unit=None,
    stamp_zero="unix",
)
