"""JSON-line traces with prefix ids: Mooncake, Qwen-Bailian and RAGPulse.

Mooncake (kvcache-ai/Mooncake FAST'25, Apache-2.0): milliseconds, one id for 512 tokens. Qwen-Bailian: seconds, one id
for 16 tokens. RAGPulse (flashserve/RAGPulse, MIT): seconds as text from 12:00 local time, ids by component of the
prompt; it does not say how many tokens an id stands for.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from traces.formats.layout import JsonlLayout, ParseRecord
from traces.request import Count
from traces.rows import Row, real_number

MOONCAKE_BLOCK_TOKENS = 512
BAILIAN_BLOCK_TOKENS = 16

Tokens = Annotated[int, msgspec.Meta(ge=1)]
Stamp = Annotated[float, msgspec.Meta(ge=0)]


class MooncakeRecord(msgspec.Struct):
    timestamp: Stamp
    input_length: Tokens
    output_length: Count
    hash_ids: tuple[Count, ...] = ()
    session_id: str | None = None


class BailianRecord(msgspec.Struct):
    chat_id: int
    parent_chat_id: int
    timestamp: Stamp
    input_length: Tokens
    output_length: Count
    type: str
    turn: int
    hash_ids: tuple[Count, ...]


class RagPulseComponents(msgspec.Struct):
    sys_prompt: tuple[Count, ...] = ()
    passages_ids: tuple[Count, ...] = ()
    history: tuple[Count, ...] = ()
    web_search: tuple[Count, ...] = ()
    user_input: tuple[Count, ...] = ()


class RagPulseRecord(msgspec.Struct):
    timestamp: str
    input_length: Tokens
    output_length: Count
    hash_ids: RagPulseComponents
    session_id: str


def _bind_mooncake(seconds_per_unit: float) -> ParseRecord:
    def parse(record: MooncakeRecord) -> Row:
        extras: dict[str, Any] = {"session_id": record.session_id}
        if record.hash_ids:
            extras |= {"prefix_ids": record.hash_ids, "block_tokens": MOONCAKE_BLOCK_TOKENS}
        return Row(record.timestamp * seconds_per_unit, record.input_length, record.output_length, extras)

    return parse


def _bind_bailian(seconds_per_unit: float) -> ParseRecord:
    conversation_of: dict[int, int] = {}

    def parse(record: BailianRecord) -> Row:
        root = conversation_of.get(record.parent_chat_id, record.chat_id)
        conversation_of[record.chat_id] = root
        extras = {
            "session_id": str(root),
            "task": record.type,
            "prefix_ids": record.hash_ids,
            "block_tokens": BAILIAN_BLOCK_TOKENS,
        }
        return Row(record.timestamp * seconds_per_unit, record.input_length, record.output_length, extras)

    return parse


def _bind_ragpulse(seconds_per_unit: float) -> ParseRecord:
    def parse(record: RagPulseRecord) -> Row:
        parts = record.hash_ids
        ids = parts.sys_prompt + parts.passages_ids + parts.history + parts.web_search + parts.user_input
        extras = {"session_id": record.session_id or None, "prefix_ids": ids}
        stamp_s = real_number("timestamp", record.timestamp) * seconds_per_unit
        return Row(stamp_s, record.input_length, record.output_length, extras)

    return parse


MOONCAKE = JsonlLayout(
    name="mooncake",
    title="Mooncake FAST'25",
    required=("timestamp", "input_length", "output_length"),
    record=MooncakeRecord,
    bind=_bind_mooncake,
    time_unit="ms",
)
BAILIAN = JsonlLayout(
    name="bailian",
    title="Qwen-Bailian",
    required=("timestamp", "input_length", "output_length", "chat_id", "parent_chat_id", "turn"),
    record=BailianRecord,
    bind=_bind_bailian,
    time_unit="s",
)
RAGPULSE = JsonlLayout(
    name="ragpulse",
    title="RAGPulse",
    required=("timestamp", "input_length", "output_length", "session_id", "hash_ids.sys_prompt"),
    record=RagPulseRecord,
    bind=_bind_ragpulse,
    time_unit="s",
    stamp_zero="noon",
)
