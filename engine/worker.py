"""The engine process: owns the device and the step loop, speaks `engine.messages` over one Unix socket.

It blocks while there is nothing to do, reads no clock but for a lease on its limits, and ends when its standard input
does: the front end holds the other end of that pipe, so that no engine outlives it.
"""

from __future__ import annotations

import gc
import logging
import math
import os
import secrets
import signal
import socket
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from types import FrameType
from typing import TYPE_CHECKING

import msgspec
import zmq

from engine.batch import DeviceLostError
from engine.client_protocol import EngineStats
from engine.config import EngineConfig
from engine.engine import Engine, StepOutcome
from engine.messages import (
    Abort,
    Delta,
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
    to_engine_decoder,
)
from engine.rank_processes import EXIT_DEVICE_LOST
from engine.request import FinishReason, Request
from kernels.threads import configure_environment

if TYPE_CHECKING:
    from engine.build import Probed
    from engine.guided import CompiledGuide, GuideCompiler
    from engine.pace import PacedExecutor

logger = logging.getLogger("gridserve.engine")

MAX_PROBES = 3
PROBE_INTERVAL_MS = 500


@dataclass(frozen=True, slots=True)
class _Live:
    """A request in the engine: the ticket its deltas carry, and its guide, held so that it is compiled once."""

    ticket: int
    guide: CompiledGuide | None = None


class Worker:
    """The loop: take messages, step, send what came of it."""

    def __init__(
        self,
        channel: zmq.Socket[bytes],
        engine: Engine,
        executor: PacedExecutor,
        runner: Probed,
        compiler: GuideCompiler,
        eos_token_ids: frozenset[int],
    ) -> None:
        self._channel = channel
        self._engine = engine
        self._executor = executor
        self._runner = runner
        self._compiler = compiler
        self._eos_token_ids = eos_token_ids
        self._fault: str | None = None
        self._failed_probes = 0
        self._stopping = False
        self._limits_end_s: float | None = None
        # Guides compile on a thread; the request joins the queue when its guide is ready.
        self._compilers = ThreadPoolExecutor(max_workers=1, thread_name_prefix="guide")
        self._compiling: dict[str, tuple[Request, int, Future[CompiledGuide]]] = {}
        self._live: dict[str, _Live] = {}
        self._wake_receiver, self._wake_sender = socket.socketpair()
        self._wake_receiver.setblocking(False)
        self._poller = zmq.Poller()
        self._poller.register(channel, zmq.POLLIN)
        self._poller.register(self._wake_receiver, zmq.POLLIN)

    def run(self) -> None:
        while not self._stopping:
            self._take_messages()
            self._end_lease()
            if self._fault is not None:
                self._try_to_recover()
            elif self._engine.has_work:
                self._send_outcome(self._engine.step())

    def stop(self) -> None:
        self._stopping = True
        self._wake()

    def _wake(self) -> None:
        self._wake_sender.send(b"\0")

    def _take_messages(self) -> None:
        """Apply everything that has arrived; block first when there is nothing to run."""
        timeout_ms = PROBE_INTERVAL_MS if self._fault is not None else 0 if self._engine.has_work else self._lease_ms()
        while ready := dict(self._poller.poll(timeout_ms)):
            timeout_ms = 0
            if self._wake_receiver.fileno() in ready:
                self._wake_receiver.recv(4096)
                self._add_compiled()
            if self._channel in ready:
                self._apply(to_engine_decoder.decode(self._channel.recv()))
            if self._stopping:
                return

    def _apply(self, message: ToEngine) -> None:
        match message:
            case Submit():
                self._submit(message)
            case Abort(request_ids=request_ids):
                for request_id in request_ids:
                    self._live.pop(request_id, None)
                    if request_id in self._compiling:
                        self._compiling.pop(request_id)[-1].cancel()
                self._engine.abort(request_ids)
                if not self._engine.has_work:
                    self._send(StepOutputs((), None, self._stats(), self._fault))
            case SetLimits():
                self._limit(message)
            case SetPaused(paused=paused):
                self._engine.scheduler.pause() if paused else self._engine.scheduler.resume()
            case SetPace(factor=factor):
                self._executor.factor = factor
            case ResetPrefixCache():
                self._engine.scheduler.reset_prefix_cache()
            case Shutdown():
                self._stopping = True

    def _limit(self, limits: SetLimits) -> None:
        self._engine.scheduler.set_token_budget(limits.token_budget)
        self._engine.scheduler.set_max_running(limits.max_running)
        self._limits_end_s = None if limits.for_s is None else time.monotonic() + limits.for_s
        if not self._engine.has_work:
            self._send(StepOutputs((), None, self._stats(), self._fault))

    def _end_lease(self) -> None:
        """Lift limits that were not set again in time: who set them may be gone."""
        if self._limits_end_s is not None and time.monotonic() >= self._limits_end_s:
            logger.warning("limits on steps were not renewed; lifted")
            self._limit(SetLimits())

    def _lease_ms(self) -> int | None:
        """How long an idle engine may block before limits run out."""
        if self._limits_end_s is None:
            return None
        return max(0, math.ceil(1e3 * (self._limits_end_s - time.monotonic())))

    def _submit(self, message: Submit) -> None:
        sampling = message.sampling
        if sampling.seed is None and not sampling.greedy:
            sampling = replace(sampling, seed=secrets.randbits(63))
        request = Request(
            message.request_id,
            message.prompt_token_ids,
            sampling,
            message.arrival_s,
            priority=message.priority,
            cache_salt=message.cache_salt,
            eos_token_ids=self._eos_token_ids,
        )
        if sampling.guide is None:
            self._add(request, _Live(message.ticket))
            return
        future = self._compilers.submit(self._compiler.compiled, sampling.guide)
        self._compiling[request.request_id] = (request, message.ticket, future)
        future.add_done_callback(lambda _: self._wake())

    def _add_compiled(self) -> None:
        for request_id, (request, ticket, future) in list(self._compiling.items()):
            if not future.done():
                continue
            del self._compiling[request_id]
            error = future.exception()
            if error is None:
                self._add(request, _Live(ticket, future.result()))
            else:
                self._refuse(request_id, ticket, f"guided output cannot be compiled: {error}")

    def _add(self, request: Request, live: _Live) -> None:
        try:
            self._engine.add(request)
        except ValueError as error:
            self._refuse(request.request_id, live.ticket, str(error))
        else:
            self._live[request.request_id] = live

    def _refuse(self, request_id: str, ticket: int, reason: str) -> None:
        delta = Delta(request_id, ticket, (), (), FinishReason.ERROR, 0, reason)
        self._send(StepOutputs((delta,), None, self._stats(), self._fault))

    def _send_outcome(self, outcome: StepOutcome) -> None:
        if outcome.fault is not None:
            self._fault = outcome.fault
            self._failed_probes = 0
        deltas = tuple(
            Delta(
                update.request.request_id,
                self._live[update.request.request_id].ticket,
                update.token_ids,
                update.logprobs,
                update.finish_reason,
                update.request.num_cached_tokens,
                update.error,
                update.request.admitted_s,
            )
            for update in outcome.updates
        )
        for delta in deltas:
            if delta.finish_reason is not None:
                del self._live[delta.request_id]
        if deltas or outcome.record is not None or outcome.fault is not None:
            self._send(StepOutputs(deltas, outcome.record, self._stats(), self._fault))
        if not self._engine.has_work:
            self._engine.scheduler.check_integrity()

    def _try_to_recover(self) -> None:
        """Probe the model after an executor error; a device that stays lost ends the process, to be restarted."""
        try:
            self._runner.probe()
        except DeviceLostError:
            raise SystemExit(EXIT_DEVICE_LOST) from None
        except Exception:
            self._failed_probes += 1
            logger.exception("probe %d of %d failed", self._failed_probes, MAX_PROBES)
            if self._failed_probes >= MAX_PROBES:
                raise SystemExit(EXIT_DEVICE_LOST) from None
            return
        self._fault = None
        self._send(StepOutputs((), None, self._stats()))

    def _stats(self) -> EngineStats:
        return self._engine.scheduler.stats()

    def _send(self, message: FromEngine) -> None:
        self._channel.send(encoder.encode(message))


def _end_with_parent() -> None:
    """Leave at once when standard input closes: the front end is gone, whatever ended it."""

    def wait() -> None:
        # Not `sys.stdin`: its lock, held by this thread, would abort the interpreter's own exit.
        while os.read(0, 4096):
            pass
        os._exit(0)

    threading.Thread(target=wait, name="lifeline", daemon=True).start()


def main(argv: list[str]) -> int:
    """`python -m engine.worker SOCKET CONFIG_JSON`, started by `engine.client`."""
    address, config_json = argv
    logging.basicConfig(
        level=os.environ.get("GRIDSERVE_LOG_LEVEL", "INFO"), format="%(levelname)s %(name)s: %(message)s"
    )
    config = msgspec.json.decode(config_json, type=EngineConfig)
    _end_with_parent()
    # Ctrl-C in a terminal reaches the whole process group; the front end decides when the engine stops.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with zmq.Context() as context, context.socket(zmq.PAIR) as channel:
        channel.set_hwm(0)
        channel.linger = 1000
        channel.connect(address)

        def report(stage: str, done: int = 0, total: int = 0) -> None:
            channel.send(encoder.encode(Loading(stage, done, total)))

        # Heavy imports come after the socket, so that the front end sees progress from the start.
        report("starting")
        configure_environment()
        from engine.build import build_engine

        try:
            built = build_engine(config, report)
        except (ValueError, OSError, MemoryError) as error:
            channel.send(encoder.encode(StartFailed(str(error) or type(error).__name__)))
            return 1
        worker = Worker(channel, built.engine, built.executor, built.runner, built.guide_compiler, built.eos_token_ids)

        def on_sigterm(_signal: int, _frame: FrameType | None) -> None:
            worker.stop()

        signal.signal(signal.SIGTERM, on_sigterm)
        # What loading made stays: a full collection over it would hold up a step.
        gc.freeze()
        channel.send(encoder.encode(Ready(built.info, built.engine.scheduler.stats())))
        try:
            worker.run()
        finally:
            built.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
