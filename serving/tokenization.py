"""`/tokenize` and `/detokenize`, in vLLM's shapes."""

from __future__ import annotations

from serving.openai_errors import BadRequestError
from serving.openai_requests import DetokenizeRequest, TokenizeRequest
from serving.openai_responses import DetokenizeResponse, TokenizeResponse
from serving.prompts import check_token_ids, render_messages
from serving.service import Caller, InferenceService


async def tokenize(service: InferenceService, body: TokenizeRequest, caller: Caller) -> TokenizeResponse:
    """Token ids of a text, or of messages rendered by the chat template."""
    service.check_model(body.model)
    if (body.prompt is None) == (body.messages is None):
        raise BadRequestError("send either prompt or messages", "prompt")

    def work() -> TokenizeResponse:
        info = service.engine.info
        if body.messages is not None:
            if body.add_special_tokens:
                raise BadRequestError("the chat template writes the special tokens of messages", "add_special_tokens")
            tokens = render_messages(service.text, body.messages, body.add_generation_prompt is not False)
        else:
            tokens = service.text.encode(body.prompt or "", add_special_tokens=body.add_special_tokens is not False)
        names = [service.text.token_text(token) for token in tokens] if body.return_token_strs else None
        return TokenizeResponse(len(tokens), info.max_model_len, tokens, names)

    return await service.offload(work, caller.small)


async def detokenize(service: InferenceService, body: DetokenizeRequest, caller: Caller) -> DetokenizeResponse:
    """The text of token ids."""
    service.check_model(body.model)
    check_token_ids(body.tokens, service.engine.info, "tokens")

    def work() -> DetokenizeResponse:
        return DetokenizeResponse(service.text.decode(body.tokens, skip_special_tokens=False))

    return await service.offload(work, caller.small)
