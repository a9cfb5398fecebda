"""Prompts of finished requests on their way into the store the evaluator judges from.

One thread owns the store. What does not fit into its short queue is dropped: losing a prompt costs a sample, waiting
for the disk would cost a request.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from carbon.evaluator.retention import KEY_BYTES, KeptPrompt, PromptStore, make_key
from serving.openai_requests import ChatCompletionRequest
from serving.service import Run

logger = logging.getLogger(__name__)

KEY_VARIABLE = "GRIDSERVE_PROMPT_KEY"
STORE_FILE = "prompts.db"
KEY_FILE = "prompts.key"
MAX_QUEUED = 64

T = TypeVar("T")


def prompt_key(folder: Path) -> bytes:
    """The key the prompts are sealed with: of the environment (64 hex digits), else of a file only its owner may read.

    Raises `ValueError` for a key that is none, `OSError` where the file cannot be made.
    """
    given = os.environ.get(KEY_VARIABLE)
    if given:
        try:
            return bytes.fromhex(given)
        except ValueError:
            raise ValueError(f"{KEY_VARIABLE} must be {2 * KEY_BYTES} hexadecimal digits") from None
    path = folder / KEY_FILE
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    except FileExistsError:
        return path.read_bytes()
    with os.fdopen(descriptor, "wb") as file:
        key = make_key()
        file.write(key)
    return key


class PromptKeeper:
    """`agreed(tenant)`: whether the text is kept; False: only its hash; None: nobody's prompts are kept, nothing is
    written. `on_alarm`: text while keeping fails, None once it works again."""

    def __init__(
        self,
        folder: Path,
        agreed: Callable[[str | None], bool | None],
        on_alarm: Callable[[str | None], None] = lambda text: None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._folder = folder
        self._agreed = agreed
        self._on_alarm = on_alarm
        self._now = now
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="prompts")
        self._store: PromptStore | None = None
        self._queued = 0
        self.dropped = 0

    def offer(self, run: Run) -> None:
        """Keep the prompt of an answered chat, as far as its tenant agreed. From the event loop; never waits."""
        body, decision = run.body, run.decision
        if decision is None or not isinstance(body, ChatCompletionRequest):
            return
        agreed = self._agreed(run.caller.key_name)
        if agreed is None:
            return
        if self._queued >= MAX_QUEUED:
            self.dropped += 1
            return
        kept = KeptPrompt(decision.prompt_class, tuple(_plain(message) for message in body.messages))
        self._queued += 1
        future = asyncio.get_running_loop().run_in_executor(self._thread, self._keep, kept, agreed)
        future.add_done_callback(self._done)

    def _keep(self, prompt: KeptPrompt, agreed: bool) -> None:
        self._open().keep(prompt, opted_in=agreed, now=self._now())

    def _done(self, future: asyncio.Future[None]) -> None:
        self._queued -= 1
        error = None if future.cancelled() else future.exception()
        if error is not None:
            logger.error("a prompt could not be kept for judging: %s", error)
        self._on_alarm(f"prompts are not kept for judging: {error}" if error is not None else None)

    async def counts(self) -> Mapping[str, int]:
        """Kept prompts by class; nothing is created to find that there are none."""
        if self._store is None and not (self._folder / STORE_FILE).is_file():
            return {}
        return await self._in_thread(lambda: self._open().counts())

    async def sample(self, a_class: int) -> dict[str, list[KeptPrompt]]:
        """Up to `a_class` prompts of every class, drawn at random."""

        def draw() -> dict[str, list[KeptPrompt]]:
            store = self._open()
            store.expire(self._now())
            return {name: [kept for _, kept in store.sample(name, a_class)] for name in store.counts()}

        return await self._in_thread(draw) if await self.counts() else {}

    async def forget_all(self) -> None:
        """Delete what is kept: the policy no longer allows it."""
        if await self.counts():
            await self._in_thread(lambda: self._open().forget_all())

    def close(self) -> None:
        """Finish what is queued and close the store."""
        if self._store is not None:
            self._thread.submit(self._store.close)
        self._thread.shutdown(wait=True)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _open(self) -> PromptStore:
        if self._store is None:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._store = PromptStore(self._folder / STORE_FILE, prompt_key(self._folder))
        return self._store


def _plain(message: Any) -> dict[str, Any]:
    content = message.content
    if isinstance(content, Sequence) and not isinstance(content, str):
        content = [msgspec.to_builtins(part) for part in content]
    return {"role": message.role, "content": content}
