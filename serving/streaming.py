"""What `stream_options` asks for."""

from __future__ import annotations

from msgspec import UNSET, UnsetType

from serving.openai_errors import BadRequestError
from serving.openai_requests import GenerationBody
from serving.openai_responses import Usage
from serving.service import UsageCount


def check_stream_options(body: GenerationBody) -> None:
    if body.stream_options is not None and not body.stream:
        raise BadRequestError("stream_options needs stream=true", "stream_options")


class StreamUsage:
    """The `usage` of each chunk: absent unless asked for, null until the last chunk unless continuous."""

    def __init__(self, body: GenerationBody, count: UsageCount) -> None:
        options = body.stream_options
        self.included = options is not None and bool(options.include_usage)
        self.continuous = self.included and options is not None and bool(options.continuous_usage_stats)
        self.last = False
        self._count = count

    def of_chunk(self) -> Usage | UnsetType | None:
        if not self.included:
            return UNSET
        return self._count.usage() if self.last or self.continuous else None
