"""Request bodies of the inference API. Bounds stand here, so that nothing large is made before they are checked.

Models are strict: no number is read from a string. `null` means "not given", as OpenAI has it. Unknown fields are
kept in `model_extra`; `serving.unsupported` decides which of them are refused.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, WithJsonSchema

from engine.request import MAX_LOGPROBS

MAX_CHOICES = 128
MAX_PROMPTS = 256
MAX_MESSAGES = 4096
MAX_CONTENT_PARTS = 1024
MAX_STOP_STRINGS = 16
MAX_STOP_CHARS = 256
MAX_STOP_TOKEN_IDS = 128
MAX_LOGIT_BIAS_ENTRIES = 1024
MAX_TOOL_CALLS = 128
INT32_MAX = 2**31 - 1
INT64_MAX = 2**63 - 1


def _at_most(count: int) -> BeforeValidator:
    """Refuse a large object before its entries are looked at."""

    def check(value: Any) -> Any:
        if isinstance(value, dict) and len(value) > count:
            raise ValueError(f"at most {count} entries are allowed, got {len(value)}")
        return value

    return BeforeValidator(check)


def _whole(value: Any) -> Any:
    """`5.0` is an integer in JSON Schema, and some languages write every number so."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = Annotated[int, BeforeValidator(_whole)]

# `fail_fast` stops at the first bad item: an error for each item of a large list would cost seconds and gigabytes.
ShortText = Annotated[str, Field(max_length=512)]
StopText = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]
TokenId = Annotated[int, Field(ge=0, le=INT32_MAX)]

LogitBias = Annotated[dict[str, Annotated[float, Field(ge=-100, le=100)]], Field(max_length=MAX_LOGIT_BIAS_ENTRIES)]
Choices = Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1, max_length=1024)]

TOKEN_IDS_SCHEMA = {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0, "maximum": INT32_MAX}}
PROMPT_SCHEMA = {
    "title": "Prompt",
    "description": "A text, the ids of its tokens, or a list of either.",
    "anyOf": [
        {"type": "string"},
        {"type": "array", "minItems": 1, "maxItems": MAX_PROMPTS, "items": {"type": "string"}},
        TOKEN_IDS_SCHEMA,
        {"type": "array", "minItems": 1, "maxItems": MAX_PROMPTS, "items": TOKEN_IDS_SCHEMA},
    ],
}
Prompt = Annotated[Any, WithJsonSchema(PROMPT_SCHEMA)]


class Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)


class StreamOptions(Body):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    energy: Literal["chunk", "comment"] | None = None


class TextPart(Body):
    type: Literal["text"]
    text: str


Content = str | Annotated[list[TextPart], Field(max_length=MAX_CONTENT_PARTS)]


class InputMessage(Body):
    """`developer` is read as `system`. `name` and `tool_call_id` reach the chat template as they are."""

    role: Literal["system", "developer", "user", "tool"]
    content: Content
    name: ShortText | None = None
    tool_call_id: ShortText | None = None


class AssistantMessage(Body):
    """An earlier answer. It may lack content when it has `tool_calls`, which reach the chat template as they are."""

    role: Literal["assistant"]
    content: Content | None = None
    name: ShortText | None = None
    tool_calls: Annotated[list[dict[str, Any]], Field(max_length=MAX_TOOL_CALLS)] | None = None


Message = Annotated[InputMessage | AssistantMessage, Discriminator("role")]


class JsonSchemaFormat(BaseModel):
    """`strict` changes nothing: the schema always binds."""

    model_config = ConfigDict(strict=True, extra="allow", serialize_by_alias=True)

    schema_: dict[str, Any] = Field(alias="schema")
    name: ShortText | None = None
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(Body):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None


class StructuredOutputs(BaseModel):
    """One constraint on the text, as vLLM names them."""

    model_config = ConfigDict(strict=True, extra="forbid")

    regex: str | None = None
    json_: dict[str, Any] | str | None = Field(default=None, alias="json")
    json_object: bool | None = None
    choice: Choices | None = None


class GenerationBody(Body):
    """The fields that chat and text completions share."""

    model: ShortText | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[Whole, Field(ge=1, le=MAX_CHOICES)] | None = None
    max_tokens: Annotated[Whole, Field(ge=1, le=INT32_MAX)] | None = None
    min_tokens: Annotated[Whole, Field(ge=0, le=INT32_MAX)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[Whole, Field(ge=-1, le=INT32_MAX)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: Annotated[Whole, Field(ge=-INT64_MAX - 1, le=INT64_MAX)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=10)] | None = None
    logit_bias: Annotated[LogitBias | None, _at_most(MAX_LOGIT_BIAS_ENTRIES)] = None
    stop: StopText | Annotated[list[StopText], Field(max_length=MAX_STOP_STRINGS)] | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=MAX_STOP_TOKEN_IDS)] | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    ignore_eos: bool | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: dict[str, Any] | str | None = None
    guided_regex: str | None = None
    guided_choice: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1, max_length=1024)] | None = (
        None
    )
    priority: Annotated[Whole, Field(ge=-INT32_MAX, le=INT32_MAX)] | None = None
    cache_salt: Annotated[str, Field(max_length=256)] | None = None
    directive: ShortText | None = None
    task: ShortText | None = None
    user: ShortText | None = None
    metadata: Annotated[dict[str, Any], Field(max_length=64)] | None = None

    @property
    def num_choices(self) -> int:
        return self.n or 1

    @property
    def stop_strings(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class ChatCompletionRequest(GenerationBody):
    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
    max_completion_tokens: Annotated[Whole, Field(ge=1, le=INT32_MAX)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[Whole, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    tools: Annotated[list[dict[str, Any]], Field(max_length=128)] | None = None
    tool_choice: str | dict[str, Any] | None = None


class CompletionRequest(GenerationBody):
    prompt: Prompt
    logprobs: Annotated[Whole, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    echo: bool | None = None
    best_of: Annotated[Whole, Field(ge=1, le=MAX_CHOICES)] | None = None
    suffix: str | None = None


class TokenizeRequest(Body):
    """Either `prompt` or `messages`."""

    model: ShortText | None = None
    prompt: str | None = None
    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    return_token_strs: bool | None = None


class DetokenizeRequest(Body):
    model: ShortText | None = None
    tokens: Annotated[list[TokenId], Field(fail_fast=True)]
