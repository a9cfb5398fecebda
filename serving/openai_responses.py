"""Response bodies of the inference API. One definition serves the encoder and the OpenAPI document."""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import UNSET, Struct, UnsetType

FinishReasonText = Literal["stop", "length"]


class PromptTokensDetails(Struct):
    cached_tokens: int


class Usage(Struct):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class EnergyUsage(Struct):
    """Joules and grams of a request. What is not known is null, with the reason in `unknown`; nothing is ever 0 for
    lack of a figure. `method`: measured, estimated or simulated."""

    energy_joules: float | None
    energy_kwh: float | None
    prefill_joules: float | None
    decode_joules: float | None
    idle_joules: float | None
    avg_power_watts: float | None
    duration_seconds: float | None
    method: str | None
    source: str | None
    scope: str | None
    attribution_method: str | None
    uncertainty_percent: float | None
    settled: bool | None
    grams_co2e: float | None
    operational_grams: float | None
    embodied_grams: float | None
    pue: float | None
    carbon_intensity_g_per_kwh: float | None
    carbon_source: str | None
    carbon_kind: str | None
    carbon_tier: str | None
    carbon_age_seconds: float | None
    zone: str | None
    directive: str | None
    directive_reason: str | None
    policy_revision: str | None
    unknown: str | None


class TopLogprob(Struct):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(Struct):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChoiceLogprobs(Struct):
    """One entry for each generated token, those of a stop string and the end-of-sequence token included."""

    content: list[TokenLogprob]
    refusal: None = None


class ChatMessage(Struct):
    content: str
    role: Literal["assistant"] = "assistant"
    refusal: None = None


class ChatChoice(Struct):
    index: int
    message: ChatMessage
    logprobs: ChoiceLogprobs | None
    finish_reason: FinishReasonText
    stop_reason: int | str | None = None


class ChatCompletion(Struct):
    id: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    system_fingerprint: str
    energy: EnergyUsage | UnsetType | None = UNSET
    object: Literal["chat.completion"] = "chat.completion"


class ChatDelta(Struct):
    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET


class ChatChunkChoice(Struct):
    index: int
    delta: ChatDelta
    logprobs: ChoiceLogprobs | None = None
    finish_reason: FinishReasonText | None = None
    stop_reason: int | str | UnsetType = UNSET


class ChatCompletionChunk(Struct):
    id: str
    created: int
    model: str
    choices: list[ChatChunkChoice]
    system_fingerprint: str
    usage: Usage | UnsetType | None = UNSET
    energy: EnergyUsage | UnsetType | None = UNSET
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"


class CompletionLogprobs(Struct):
    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]] | None
    text_offset: list[int]


class CompletionChoice(Struct):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReasonText | None
    stop_reason: int | str | None = None


class Completion(Struct):
    """The whole answer, and each chunk of a stream too, as OpenAI has it."""

    id: str
    created: int
    model: str
    choices: list[CompletionChoice]
    system_fingerprint: str
    usage: Usage | UnsetType | None = UNSET
    energy: EnergyUsage | UnsetType | None = UNSET
    object: Literal["text_completion"] = "text_completion"


class ModelCard(Struct):
    id: str
    created: int
    max_model_len: int
    owned_by: Literal["gridserve"] = "gridserve"
    object: Literal["model"] = "model"


class ModelList(Struct):
    data: list[ModelCard]
    object: Literal["list"] = "list"


class TokenizeResponse(Struct):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class DetokenizeResponse(Struct):
    prompt: str


class HealthResponse(Struct):
    """`reason` says why the status is not `ready`."""

    status: Literal["ready", "unavailable"]
    reason: str | None


class VersionResponse(Struct):
    version: str


class ServiceInfo(Struct):
    name: str
    version: str
    model: str
    endpoints: list[str]


encode = msgspec.json.Encoder().encode
