"""The front end's side of the engine process: starts it, talks to it, restarts it when it dies."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import zmq
import zmq.asyncio

from engine.batch import StepRecord
from engine.client_protocol import (
    EngineHealth,
    EngineInfo,
    EngineStats,
    EngineUnavailableError,
    Generation,
    TokenDelta,
)
from engine.config import EngineConfig
from engine.messages import (
    Abort,
    FromEngine,
    Loading,
    Ready,
    ResetPrefixCache,
    SetLimits,
    SetPace,
    SetPaused,
    Shutdown,
    StartFailed,
    StepOutputs,
    Submit,
    ToEngine,
    encoder,
    from_engine_decoder,
)
from engine.request import FinishReason
from engine.token_streams import TokenStreams

logger = logging.getLogger(__name__)

FIRST_BACKOFF_S = 0.25
LAST_BACKOFF_S = 30.0
STOP_TIMEOUT_S = 10.0
# What an ending process has already sent is still read for so long.
LAST_WORDS_S = 0.2

OnLoading = Callable[[Loading], None]
OnStep = Callable[[StepRecord, EngineStats], None]


class EngineStartError(Exception):
    """The engine cannot start; the message says why and what to do."""


class EngineClient:
    """One engine process and the streams of tokens that come out of it.

    `on_loading` sees the progress of each start, `on_step` (which may be set later) every step's record; both run on
    the event loop.
    """

    def __init__(
        self, config: EngineConfig, on_loading: OnLoading | None = None, on_step: OnStep | None = None
    ) -> None:
        self._config = config
        self._on_loading = on_loading
        self.on_step = on_step
        self._streams = TokenStreams()
        self._info: EngineInfo | None = None
        self._stats: EngineStats | None = None
        self._health = EngineHealth(False, "the engine has not been started")
        self._ready = asyncio.Event()
        self._start_error: str | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._channel: zmq.asyncio.Socket | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._limits = SetLimits()
        self._limits_end_s: float | None = None
        self._paused = SetPaused(False)
        self._pace = SetPace(1.0)

    @property
    def info(self) -> EngineInfo:
        if self._info is None:
            raise EngineUnavailableError("the engine has not started yet")
        return self._info

    @property
    def health(self) -> EngineHealth:
        return self._health

    @property
    def stats(self) -> EngineStats | None:
        return self._stats

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    async def start(self) -> EngineInfo:
        """Start the process and wait until it serves. Raises `EngineStartError` when it cannot."""
        self._supervisor = asyncio.create_task(self._supervise(), name="engine-supervisor")
        ready = asyncio.create_task(self._ready.wait())
        done, _ = await asyncio.wait({ready, self._supervisor}, return_when=asyncio.FIRST_COMPLETED)
        if self._supervisor in done:
            ready.cancel()
            await self._supervisor
            raise EngineStartError(self._start_error or "the engine ended while starting")
        return self.info

    async def close(self) -> None:
        """Stop the process: ask, then terminate, then kill."""
        self._set_unavailable("the server is shutting down")
        if self._supervisor is not None:
            self._supervisor.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._supervisor
            self._supervisor = None

    async def generate(self, generation: Generation) -> AsyncIterator[TokenDelta]:
        if not self._health.ready:
            raise EngineUnavailableError(self._health.reason)
        request_id = generation.request_id
        stream = self._streams.open(request_id)
        finished = False
        try:
            self._send(
                Submit(
                    request_id,
                    generation.prompt_token_ids,
                    generation.sampling,
                    time.monotonic(),
                    generation.priority,
                    generation.cache_salt,
                    stream.ticket,
                )
            )
            while not finished:
                delta = await stream.next()
                finished = delta.finish_reason is not None
                yield delta
        except EngineUnavailableError:
            finished = True
            raise
        finally:
            self._streams.close(request_id)
            if not finished:
                self._send(Abort((request_id,)))

    async def abort(self, request_id: str) -> None:
        """End a request by id; its stream ends with `FinishReason.ABORT`. Unknown ids are ignored."""
        stream = self._streams.find(request_id)
        if stream is not None:
            self._send(Abort((request_id,)))
            stream.put(TokenDelta((), (), FinishReason.ABORT, 0, None))

    def set_limits(
        self, token_budget: int | None = None, max_running: int | None = None, for_s: float | None = None
    ) -> None:
        """Lower the scheduler's token budget or concurrency; None lifts a limit. Kept across restarts.

        `for_s`: a lease: the engine lifts the limits by itself unless they are set again within so many seconds.
        Raises `ValueError` below 1: `set_paused` stops everything.
        """
        for name, value in (("token_budget", token_budget), ("max_running", max_running)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}; use set_paused to stop")
        self._limits = SetLimits(token_budget, max_running, for_s)
        self._limits_end_s = None if for_s is None else time.monotonic() + for_s
        self._send(self._limits)

    async def set_paused(self, paused: bool) -> None:
        """Hold every request where it is, or go on. Kept across restarts."""
        self._paused = SetPaused(paused)
        self._send(self._paused)

    def set_pace(self, factor: float) -> None:
        """Make each step take `factor` times as long; used with a simulated device."""
        self._pace = SetPace(factor)
        self._send(self._pace)

    async def reset_prefix_cache(self) -> None:
        self._send(ResetPrefixCache())

    def _limits_left(self) -> SetLimits:
        """The limits for a process that has just been started: those of a lease for what is left of it."""
        if self._limits_end_s is None:
            return self._limits
        left_s = self._limits_end_s - time.monotonic()
        return SetLimits(self._limits.token_budget, self._limits.max_running, left_s) if left_s > 0 else SetLimits()

    def _send(self, message: ToEngine) -> None:
        """Queue a message at once: also called while a cancelled stream unwinds, where nothing may be awaited."""
        if self._channel is not None:
            self._channel.send(encoder.encode(message))

    async def _supervise(self) -> None:
        backoff_s = FIRST_BACKOFF_S
        try:
            while True:
                self._ready.clear()
                status = await self._run_once()
                if self._start_error is not None:
                    return
                if self._ready.is_set():
                    backoff_s = FIRST_BACKOFF_S
                elif self._info is None:
                    self._start_error = (
                        f"the engine process ended while starting (exit status {status}); see its log above"
                    )
                    return
                self._set_unavailable(f"the engine process ended (exit status {status}) and is restarting")
                logger.error("engine process ended with exit status %s; restarting in %.2f s", status, backoff_s)
                await asyncio.sleep(backoff_s)
                backoff_s = min(2 * backoff_s, LAST_BACKOFF_S)
        finally:
            self._set_unavailable("the engine is not running")

    async def _run_once(self) -> int:
        """Start one process, relay its messages until it ends, return its exit status."""
        folder = Path(tempfile.mkdtemp(prefix="gridserve-"))
        context = zmq.asyncio.Context()
        channel = context.socket(zmq.PAIR)
        # Without a high-water mark a send never waits; what is queued is bounded by the requests admitted.
        channel.set_hwm(0)
        channel.linger = 0
        address = f"ipc://{folder / 'engine.sock'}"
        channel.bind(address)
        reader = asyncio.create_task(self._read(channel), name="engine-reader")
        process: asyncio.subprocess.Process | None = None
        try:
            process = self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "engine.worker",
                address,
                msgspec.json.encode(self._config).decode(),
                stdin=asyncio.subprocess.PIPE,
            )
            self._channel = channel
            self._send(self._limits_left())
            self._send(self._paused)
            self._send(self._pace)
            ended = asyncio.create_task(process.wait())
            await asyncio.wait({ended, reader}, return_when=asyncio.FIRST_COMPLETED)
            if reader.done():
                logger.error("reading from the engine failed", exc_info=reader.exception())
                process.kill()
            else:
                await asyncio.wait({reader}, timeout=LAST_WORDS_S)
            return await ended
        finally:
            if process is not None and process.returncode is None:
                await self._stop(process)
            self._channel = None
            reader.cancel()
            await asyncio.wait({reader})
            channel.close()
            context.term()
            shutil.rmtree(folder, ignore_errors=True)

    async def _stop(self, process: asyncio.subprocess.Process) -> None:
        if self._ready.is_set():
            self._send(Shutdown())
        else:
            # While it loads it takes no messages, and there is nothing to save.
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), STOP_TIMEOUT_S)
        except TimeoutError:
            process.kill()
            await process.wait()

    async def _read(self, channel: zmq.asyncio.Socket) -> None:
        while True:
            await self._take(from_engine_decoder.decode(await channel.recv()))

    async def _take(self, message: FromEngine) -> None:
        match message:
            case StepOutputs():
                self._take_outputs(message)
                await self._streams.deliver(message.deltas)
            case Loading():
                self._health = EngineHealth(False, f"the engine is loading: {message.stage}")
                if self._on_loading is not None:
                    self._on_loading(message)
            case Ready(info=info, stats=stats):
                self._info, self._stats = info, stats
                self._health = EngineHealth(True, None)
                self._ready.set()
            case StartFailed(reason=reason):
                if self._info is None:
                    self._start_error = reason
                logger.error("engine cannot start: %s", reason)

    def _take_outputs(self, outputs: StepOutputs) -> None:
        """A step is accounted before its tokens are read: the last of them asks for its request's joules."""
        self._stats = outputs.stats
        self._health = EngineHealth(outputs.fault is None, outputs.fault)
        if outputs.record is not None and self.on_step is not None:
            try:
                self.on_step(outputs.record, outputs.stats)
            except Exception:
                logger.exception("a step's record was not taken; serving goes on")

    def _set_unavailable(self, reason: str) -> None:
        self._health = EngineHealth(False, reason)
        self._streams.fail(reason)
