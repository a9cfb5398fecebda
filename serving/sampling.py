"""From a validated body to the engine's sampling parameters."""

from __future__ import annotations

from engine.client_protocol import EngineInfo
from engine.request import Guide, SamplingParams
from serving.generation import TextOptions
from serving.openai_errors import BadRequestError
from serving.openai_requests import INT64_MAX, ChatCompletionRequest, GenerationBody
from serving.prompts import check_token_ids


def text_options(body: GenerationBody) -> TextOptions:
    return TextOptions(
        stop=body.stop_strings,
        include_stop=bool(body.include_stop_str_in_output),
        skip_special_tokens=body.skip_special_tokens is not False,
    )


def sampling_params(
    body: GenerationBody,
    info: EngineInfo,
    prompt_len: int,
    logprobs: int | None,
    guide: Guide | None,
    choice: int,
    cap: int | None = None,
) -> SamplingParams:
    """Parameters of one sequence; with a seed, each further `choice` draws from the next seed. `cap`: a directive's
    limit of output tokens, which never goes below `min_tokens`."""
    try:
        return SamplingParams(
            max_tokens=_capped(_max_tokens(body, info, prompt_len), body.min_tokens, cap),
            min_tokens=body.min_tokens or 0,
            temperature=1.0 if body.temperature is None else body.temperature,
            top_k=body.top_k or 0,
            top_p=1.0 if body.top_p is None else body.top_p,
            min_p=body.min_p or 0.0,
            seed=None if body.seed is None else _wrap_int64(body.seed + choice),
            presence_penalty=body.presence_penalty or 0.0,
            frequency_penalty=body.frequency_penalty or 0.0,
            repetition_penalty=1.0 if body.repetition_penalty is None else body.repetition_penalty,
            logit_bias=_logit_bias(body, info),
            ignore_eos=bool(body.ignore_eos),
            stop_token_ids=_stop_token_ids(body, info),
            logprobs=logprobs,
            guide=guide,
        )
    except ValueError as error:
        field = str(error).partition(" ")[0]
        raise BadRequestError(str(error), field if field in type(body).model_fields else None) from None


def _max_tokens(body: GenerationBody, info: EngineInfo, prompt_len: int) -> int:
    """What was asked for, or all that fits. A limit that does not fit is refused, never cut."""
    param, asked = "max_tokens", body.max_tokens
    if isinstance(body, ChatCompletionRequest) and body.max_completion_tokens is not None:
        if asked is not None and asked != body.max_completion_tokens:
            raise BadRequestError("max_tokens and max_completion_tokens differ; send one of them", "max_tokens")
        param, asked = "max_completion_tokens", body.max_completion_tokens
    room = info.max_model_len - prompt_len
    if asked is not None and asked > room:
        raise BadRequestError(
            f"The prompt has {prompt_len} tokens and {param} asks for {asked} more; this model's context window is "
            f"{info.max_model_len} tokens. Lower {param} to {room} or shorten the prompt.",
            param,
            "context_length_exceeded",
        )
    return room if asked is None else asked


def _capped(max_tokens: int, min_tokens: int | None, cap: int | None) -> int:
    return max_tokens if cap is None else min(max_tokens, max(cap, min_tokens or 0))


def _logit_bias(body: GenerationBody, info: EngineInfo) -> dict[int, float]:
    biases: dict[int, float] = {}
    for key, bias in (body.logit_bias or {}).items():
        if not (key.isascii() and key.isdigit() and len(key) <= 10 and int(key) < info.vocab_size):
            raise BadRequestError(
                f"logit_bias: {key[:64]!r} is not a token id; ids go from 0 to {info.vocab_size - 1}", "logit_bias"
            )
        biases[int(key)] = bias
    return biases


def _stop_token_ids(body: GenerationBody, info: EngineInfo) -> tuple[int, ...]:
    check_token_ids(body.stop_token_ids or (), info, "stop_token_ids")
    return tuple(body.stop_token_ids or ())


def _wrap_int64(value: int) -> int:
    return value if value <= INT64_MAX else value - 2 * (INT64_MAX + 1)
