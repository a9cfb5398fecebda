"""The server: engine process, planes, inference API and admin API under one event loop, from start to drain."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from carbon.text_features import load_learning
from engine.checkpoint import open_checkpoint
from engine.client import EngineClient
from engine.client_protocol import EngineInfo
from power.throttle import LimitEngine
from serving.admin_api import create_admin_app
from serving.admin_context import AdminContext
from serving.composition import Parts, build_parts, serve_with, served_shape, sweep_requests
from serving.deferral_api import deferral_router
from serving.deferral_queue import DeferralQueue
from serving.http_server import bind, server_config
from serving.inference_api import create_app
from serving.model_text import ModelText
from serving.server_options import AdminOptions, ServerOptions
from serving.settings import ApiSettings

__all__ = ["AdminOptions", "ServerOptions", "run_server"]

logger = logging.getLogger(__name__)

IMPORT_AFTER_S = 5.0

OnReady = Callable[[EngineInfo, str, str | None], None]


class SignalledServer(uvicorn.Server):
    """uvicorn's server, but a signal ends `serve` instead of the process, so that what comes after it still runs."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def ask_to_stop(self) -> None:
        """Let running requests finish; asked again, cut them off."""
        self.force_exit = self.should_exit
        self.should_exit = True


async def run_server(
    options: ServerOptions, engine: EngineClient, starting: asyncio.Task[EngineInfo], on_ready: OnReady
) -> None:
    """Serve until SIGINT or SIGTERM; then restore the clocks, let running requests finish, and stop everything.

    `starting` is the start of `engine`, which goes on meanwhile. `on_ready` is called with the engine's facts, the base
    URL and the admin API's once requests are answered. Raises `EngineStartError` when the engine cannot start,
    `OSError` when an address cannot be listened on, `LedgerError`, `ValueError` and `DeviceError` for a ledger, policy
    or device that cannot be used.
    """
    with contextlib.ExitStack() as bound:
        # Before anything slow: a port that is taken is a mistake to learn of at once.
        sockets = [bound.enter_context(bind(options.api.host, options.port))]
        if options.admin is not None:
            sockets.append(bound.enter_context(bind(options.admin.host, options.admin.port)))
        await _serve_on(sockets, options, engine, starting, on_ready)


async def _serve_on(
    sockets: list[socket.socket],
    options: ServerOptions,
    engine: EngineClient,
    starting: asyncio.Task[EngineInfo],
    on_ready: OnReady,
) -> None:
    """Serve on the sockets of the inference API and, where one is asked for, the admin API."""
    checkpoint = open_checkpoint(Path(options.engine.model))
    parts = await asyncio.to_thread(lambda: build_parts(options, served_shape(options, checkpoint)))
    steering = parts.steering
    engine.on_step = steering.on_step
    steering.set_pace = engine.set_pace
    background: list[asyncio.Task[None]] = []
    try:
        if steering.power is not None:
            steering.power.controller.throttle.limit_engine = _limiter(engine)
            steering.power.start()
        await parts.control.start()
        text = ModelText(await asyncio.to_thread(checkpoint.load_tokenizer))
        info = await starting
        if steering.power is not None:
            steering.power.set_engine_size(info.max_num_seqs, info.max_num_batched_tokens)
        service, context = serve_with(parts, engine, text)
        await _take_up(parts, context)
        app = create_app(service, options.api)
        if options.deferred is not None:
            queue = DeferralQueue(options.deferred, service, parts.better_moment)
            await asyncio.to_thread(queue.load)
            app.include_router(deferral_router(queue, options.api))
            background.append(asyncio.create_task(queue.run(), name="deferred"))
        servers = [_Listening(app, options.api, sockets[0])]
        if options.admin is not None:
            settings = ApiSettings(host=options.admin.host, allow_unauthenticated=True)
            servers.append(_Listening(create_admin_app(context), settings, sockets[1]))
        parts.jobs.start()
        background.append(asyncio.create_task(context.sampler.run(), name="sampler"))
        background.append(asyncio.create_task(sweep_requests(parts.log), name="request-log"))
        _on_signals(parts, servers)
        background.append(asyncio.create_task(_announce(servers, info, on_ready)))
        await asyncio.gather(*(one.server.serve([one.socket]) for one in servers))
    finally:
        await _stop(parts, starting, background, engine)


def _limiter(engine: EngineClient) -> LimitEngine:
    """Passes limits on from the controller's thread; called on the event loop's."""
    loop = asyncio.get_running_loop()

    def limit(tokens: int | None, seconds: float) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended, and the engine with it
            loop.call_soon_threadsafe(lambda: engine.set_limits(token_budget=tokens, for_s=seconds))

    return limit


class _Listening:
    """A server and the socket that was bound for it."""

    def __init__(self, app: FastAPI, settings: ApiSettings, bound: socket.socket) -> None:
        self.server = SignalledServer(server_config(app, settings))
        self.socket = bound
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        self.url = f"http://{host}:{self.socket.getsockname()[1]}"


async def _take_up(parts: Parts, context: AdminContext) -> None:
    """What an earlier process left: today's use of tenants, and an operator's hold."""
    if parts.ledger is not None:
        parts.budgets.take_up(await asyncio.to_thread(parts.ledger.reader.usages, parts.budgets.day_us))
    try:
        await context.holds.take_up()
    except Exception:
        logger.exception("the hold on record could not be taken up again")
    await context.sampler.refresh()


def _on_signals(parts: Parts, servers: list[_Listening]) -> None:
    loop = asyncio.get_running_loop()

    def stop() -> None:
        if not servers[0].server.should_exit and parts.steering.power is not None:
            # Clocks and limits go back first; joules are still counted while requests drain.
            loop.run_in_executor(None, _restore, parts)
        for one in servers:
            one.server.ask_to_stop()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    store = parts.control.store
    if store is not None:
        loop.add_signal_handler(signal.SIGHUP, lambda: loop.run_in_executor(None, store.reload, "sighup", "SIGHUP"))


def _restore(parts: Parts) -> None:
    power = parts.steering.power
    assert power is not None
    power.controller.stop()
    parts.control.audit("restore", "shutdown", result="restored", reason="the server stops; its lease has ended")


async def _stop(
    parts: Parts, starting: asyncio.Task[EngineInfo], background: list[asyncio.Task[None]], engine: EngineClient
) -> None:
    """Devices first, then what depends on them; the ledger last, so that everything is written."""
    starting.cancel()
    for task in background:
        task.cancel()
    parts.jobs.stop()
    if parts.evaluator is not None:
        await parts.evaluator.close()
    await parts.control.close()
    await _keep_learned(parts)
    if parts.steering.power is not None:
        await asyncio.to_thread(parts.steering.power.stop)
    parts.log.sweep(everything=True)
    if parts.tracer is not None:
        await asyncio.to_thread(parts.tracer.close)
    if parts.keeper is not None:
        await asyncio.to_thread(parts.keeper.close)
    if parts.ledger is not None:
        await asyncio.to_thread(parts.ledger.close)
    await engine.close()


async def _keep_learned(parts: Parts) -> None:
    try:
        await asyncio.to_thread(parts.control.save_learned)
    except OSError as error:
        logger.error("what was learned since the last minute is lost: %s", error)


async def _announce(servers: list[_Listening], info: EngineInfo, on_ready: OnReady) -> None:
    while not all(one.server.started for one in servers):
        await asyncio.sleep(0.01)
    # What start-up made stays: a full collection over it would hold up every stream for a fifth of a second.
    gc.freeze()
    on_ready(info, servers[0].url, servers[1].url if len(servers) > 1 else None)
    # What the classifier of prompts stands on takes a second to import: after the start, and not on the event loop.
    await asyncio.sleep(IMPORT_AFTER_S)
    await asyncio.to_thread(load_learning)
