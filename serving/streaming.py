"""What `stream_options` asks for."""

from __future__ import annotations

from dataclasses import dataclass

from msgspec import UNSET, UnsetType

from serving.openai_errors import BadRequestError
from serving.openai_requests import GenerationBody
from serving.openai_responses import Usage
from serving.service import UsageCount


def check_stream_options(body: GenerationBody) -> None:
    if body.stream_options is not None and not body.stream:
        raise BadRequestError("stream_options needs stream=true", "stream_options")


@dataclass(slots=True)
class StreamUsage:
    """The `usage` of each chunk: absent unless asked for, null until the last chunk unless continuous."""

    body: GenerationBody
    count: UsageCount
    last: bool = False

    @property
    def included(self) -> bool:
        options = self.body.stream_options
        return options is not None and bool(options.include_usage)

    @property
    def continuous(self) -> bool:
        options = self.body.stream_options
        return self.included and options is not None and bool(options.continuous_usage_stats)

    def of_chunk(self) -> Usage | UnsetType | None:
        if not self.included:
            return UNSET
        return self.count.usage() if self.last or self.continuous else None
