"""What `stream_options` asks for.

`energy: comment` puts the `energy` object into an SSE comment, `: energy {...}`, before `[DONE]`, for clients that
refuse fields they do not know; by default it stands in the last chunk.
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec import UNSET, UnsetType

from serving.openai_errors import BadRequestError
from serving.openai_requests import GenerationBody
from serving.openai_responses import EnergyUsage, Usage, encode
from serving.service import UsageCount
from serving.sse import comment


def check_stream_options(body: GenerationBody) -> None:
    if body.stream_options is not None and not body.stream:
        raise BadRequestError("stream_options needs stream=true", "stream_options")


class StreamUsage:
    """The `usage` of each chunk: absent unless asked for, null until the last chunk unless continuous."""

    def __init__(self, body: GenerationBody, count: UsageCount) -> None:
        options = body.stream_options
        self.included = options is not None and bool(options.include_usage)
        self.continuous = self.included and options is not None and bool(options.continuous_usage_stats)
        self.energy_as_comment = options is not None and options.energy == "comment"
        self.last = False
        self._count = count

    def in_chunk(self, energy: Callable[[], EnergyUsage | UnsetType], last: bool) -> EnergyUsage | UnsetType:
        """The `energy` of a chunk."""
        return energy() if last and not self.energy_as_comment else UNSET

    def closing(self, energy: Callable[[], EnergyUsage | UnsetType]) -> bytes:
        """What follows the last chunk: nothing, or the comment."""
        found = energy() if self.energy_as_comment else UNSET
        return comment(b"energy " + encode(found)) if found is not UNSET else b""

    def of_chunk(self) -> Usage | UnsetType | None:
        if not self.included:
            return UNSET
        return self._count.usage() if self.last or self.continuous else None
