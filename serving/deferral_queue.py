"""Deferrable chat requests that are taken now, run when the grid is cleaner, and fetched later.

Each is a file of its own, written before it is acknowledged, so that it survives a restart; one that was running then
runs again. Files hold prompts and answers, so only their owner may read them, and they go a day after they are done.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from serving.bodies import parse_body
from serving.chat import check_chat, complete_chat
from serving.openai_errors import ApiError, BadRequestError
from serving.openai_requests import ChatCompletionRequest
from serving.openai_responses import encode
from serving.service import Caller, InferenceService

logger = logging.getLogger(__name__)

LOOK_S = 0.5
KEEP_S = 86_400.0
MAX_KEPT = 10_000
MAX_RUNNING = 8
MAX_DEFER_S = 7 * 86_400.0
MAX_TRIES = 3

NO_ANSWER = msgspec.Raw(b"null")

Status = Literal["waiting", "running", "done", "failed"]


class Deferred(Struct):
    """A request as kept. `request`: its body as it came; `answer`: the completion once done, null before."""

    id: str
    owner: str | None
    deferrable_until: float
    accepted_unix_s: float
    request: msgspec.Raw
    status: Status = "waiting"
    tries: int = 0
    finished_unix_s: float | None = None
    answer: msgspec.Raw = NO_ANSWER
    error: str | None = None


class DeferralQueue:
    """`due(until_unix_s)`: whether work with that deadline should run now. Use from the event loop."""

    def __init__(
        self,
        folder: Path,
        service: InferenceService,
        due: Callable[[float], bool],
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._folder = folder
        self._service = service
        self._due = due
        self._wall = wall
        self._known: dict[str, Deferred] = {}
        self._running: set[asyncio.Task[None]] = set()

    def load(self) -> None:
        """Take up what an earlier process left; a damaged file is left alone and reported."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for path in sorted(self._folder.glob("*.json")):
            try:
                kept = msgspec.json.decode(path.read_bytes(), type=Deferred)
            except (OSError, msgspec.MsgspecError) as error:
                logger.error("%s is not a deferred request and is left alone: %s", path, error)
                continue
            if kept.status == "running":
                kept.status = "waiting"
            self._known[kept.id] = kept

    def counts(self) -> dict[str, int]:
        found = {"waiting": 0, "running": 0, "done": 0, "failed": 0}
        for kept in self._known.values():
            found[kept.status] += 1
        return found

    async def accept(self, raw: bytes, until_unix_s: float, owner: str | None) -> Deferred:
        """Keep a request; it is on disk when this returns. Raises `BadRequestError`, or `ApiError` 429 when full."""
        now = self._wall()
        if not now < until_unix_s <= now + MAX_DEFER_S:
            raise BadRequestError("deferrable_until must lie ahead, by at most 7 days", "deferrable_until")
        body = parse_body(raw, ChatCompletionRequest)
        check_chat(body)
        if body.stream:
            raise BadRequestError("a deferred request cannot be streamed; leave 'stream' out", "stream")
        self._service.check_model(body.model)
        if len(self._known) >= MAX_KEPT:
            raise ApiError(
                429, "too many deferred requests are kept", code="over_capacity", headers={"Retry-After": "60"}
            )
        kept = Deferred(f"defer-{uuid.uuid4().hex}", owner, until_unix_s, now, msgspec.Raw(raw))
        await asyncio.to_thread(self._write, kept)
        self._known[kept.id] = kept
        return kept

    def find(self, identity: str, owner: str | None) -> Deferred | None:
        """A request of this owner; somebody else's is as unknown as none."""
        kept = self._known.get(identity)
        return kept if kept is not None and kept.owner == owner else None

    async def cancel(self, kept: Deferred) -> None:
        """Forget a request that has not begun, or one that is done."""
        self._known.pop(kept.id, None)
        await asyncio.to_thread(self._remove, kept.id)

    async def run(self) -> None:
        """Begin what is due, earliest deadline first, until cancelled; what runs then is kept for the next start."""
        try:
            while True:
                await asyncio.sleep(LOOK_S)
                self._begin_due()
                await self._forget_old()
        finally:
            for task in self._running:
                task.cancel()
            await asyncio.gather(*self._running, return_exceptions=True)

    def _begin_due(self) -> None:
        waiting = [kept for kept in self._known.values() if kept.status == "waiting"]
        for kept in sorted(waiting, key=lambda one: one.deferrable_until):
            if len(self._running) >= MAX_RUNNING:
                return
            if self._due(kept.deferrable_until):
                kept.status, kept.tries = "running", kept.tries + 1
                task = asyncio.create_task(self._serve(kept), name=kept.id)
                self._running.add(task)
                task.add_done_callback(self._running.discard)

    async def _serve(self, kept: Deferred) -> None:
        try:
            body = parse_body(bytes(kept.request), ChatCompletionRequest)
            caller = Caller(kept.owner, time.monotonic(), len(kept.request))
            answer = await complete_chat(self._service, body, caller)
        except ApiError as error:
            again = error.status in (429, 503) and kept.tries < MAX_TRIES
            kept.status, kept.error = "waiting" if again else "failed", error.message
        except asyncio.CancelledError:
            kept.status = "waiting"
            raise
        except Exception:
            logger.exception("deferred request %s failed", kept.id)
            kept.status, kept.error = "failed", "the server failed"
        else:
            kept.status, kept.answer, kept.error = "done", msgspec.Raw(encode(answer)), None
        if kept.status in ("done", "failed"):
            kept.finished_unix_s = self._wall()
        await asyncio.to_thread(self._write, kept)

    async def _forget_old(self) -> None:
        oldest = self._wall() - KEEP_S
        for kept in [one for one in self._known.values() if (one.finished_unix_s or oldest) < oldest]:
            await self.cancel(kept)

    def _write(self, kept: Deferred) -> None:
        path = self._folder / f"{kept.id}.json"
        partial = path.with_suffix(".part")
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(msgspec.json.encode(kept))
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)

    def _remove(self, identity: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            (self._folder / f"{identity}.json").unlink()
