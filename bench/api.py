"""The inference API's own cost, on an engine that computes nothing. `gridserve bench api [--json FILE]`.

Overhead: how much later a first token is there through HTTP than from a direct call of the engine, while other streams
are open; both with the same streams, the server in a process of its own, the client in another. Soak (`--soak S`): many
streams at once for so long; every stream's text and number of chunks are checked, the server's memory is watched.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import multiprocessing
import os
import socket
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
import uvicorn

from bench._machine import cpu_name
from bench._paced_engine import PacedEngine
from engine.client_protocol import Generation
from engine.request import SamplingParams

COUNTING = " ".join(str(number) for number in range(1, 400))
MODEL = "smollm2-135m-instruct"
WARM_UP_S = 3.0
PROBE_GAP_S = 0.02
STREAM_TOKENS = 100


@dataclass(frozen=True, slots=True)
class Overhead:
    """Milliseconds to the first token, measured. `overhead_*`: the difference of the percentiles. `cpu_per_request_ms`:
    processor time of the server for one request of one token without other streams; unlike the rest it hardly depends
    on what else the machine does. `load_average`: of the last minute, when the measurement ended."""

    open_streams: int
    tokens_per_s: float
    probes: int
    direct_p50_ms: float
    direct_p99_ms: float
    http_p50_ms: float
    http_p99_ms: float
    overhead_p50_ms: float
    overhead_p99_ms: float
    cpu_per_request_ms: float
    load_average: float


@dataclass(frozen=True, slots=True)
class Soak:
    """`wrong_streams`: their text or their number of chunks was not what the engine gave; `failed_streams`: not 200, or
    cut off. Memory is the server process's resident set, after warm-up and at the end."""

    streams: int
    seconds: float
    finished_streams: int
    wrong_streams: int
    failed_streams: int
    tokens: int
    tokens_per_s: float
    errors: dict[str, int]
    late_p99_ms: float
    memory_start_mib: float
    memory_end_mib: float
    memory_peak_mib: float


def serve(channel: Connection, interval_s: float) -> None:
    """The server process: answers `("direct", streams, probes)` with seconds to the first token, and serves HTTP."""
    import uvloop

    uvloop.run(_serve(channel, interval_s))


async def _serve(channel: Connection, interval_s: float) -> None:
    from engine.checkpoint import open_checkpoint
    from engine.model_store import resolve_model
    from serving.http_server import bind, server_config
    from serving.inference_api import create_app
    from serving.model_text import ModelText
    from serving.service import InferenceService
    from serving.settings import ApiSettings

    path = resolve_model(MODEL, lambda stage, done, total: None)
    text = ModelText(open_checkpoint(Path(path)).load_tokenizer())
    engine = PacedEngine(text.encode(COUNTING), 49152, interval_s)
    settings = ApiSettings(max_queued_requests=4096)
    server = uvicorn.Server(server_config(create_app(InferenceService(engine, text, settings), settings), settings))
    with bind(settings.host, 0) as listener:
        await _serve_on(listener, server, engine, text.decode(text.encode(COUNTING)[:STREAM_TOKENS]), channel)


async def _serve_on(
    listener: socket.socket, server: uvicorn.Server, engine: PacedEngine, expected: str, channel: Connection
) -> None:
    running = asyncio.create_task(server.serve([listener]))
    gc.freeze()  # as the server does when it is ready
    channel.send((listener.getsockname()[1], expected))
    loop = asyncio.get_running_loop()
    while (asked := await loop.run_in_executor(None, _asked, channel)) is not None:
        channel.send(await _direct(engine, *asked))
    server.should_exit = True
    await running


def _asked(channel: Connection) -> tuple[int, int] | None:
    try:
        found: tuple[int, int] | None = channel.recv()
    except EOFError:
        return None
    return found


async def _direct(engine: PacedEngine, streams: int, probes: int) -> list[float]:
    """Seconds to the first token of direct calls, beside `streams` that are read."""

    async def read(number: int) -> None:
        while True:
            async for _ in engine.generate(_generation(f"b{number}", STREAM_TOKENS)):
                pass

    readers = [asyncio.create_task(read(number)) for number in range(streams)]
    await asyncio.sleep(WARM_UP_S)
    found = []
    for number in range(probes):
        started_s = time.perf_counter()
        await anext(aiter(engine.generate(_generation(f"p{number}", 1))))
        found.append(time.perf_counter() - started_s)
        await asyncio.sleep(PROBE_GAP_S)
    for reader in readers:
        reader.cancel()
    await asyncio.gather(*readers, return_exceptions=True)
    return found


def _generation(name: str, tokens: int) -> Generation:
    return Generation(name, (1, 2, 3), SamplingParams(max_tokens=tokens, temperature=0.0))


class Stream:
    """One streamed completion over a kept connection; nothing but asyncio between us and the socket."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def ask(self, tokens: int) -> tuple[float, str, int, float]:
        """`(seconds to the first token, text, chunks with text, seconds in all)`. Raises `OSError`."""
        if self._writer is None or self._reader is None:
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        body = json.dumps({"model": "paced", "prompt": "Count", "max_tokens": tokens, "stream": True}).encode()
        head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        started_s, first_s = time.perf_counter(), None
        self._writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        status = await self._reader.readline()
        if b" 200 " not in status:
            raise OSError(f"answered {status!r}")
        while await self._reader.readline() != b"\r\n":
            pass
        parts, pending = [], b""
        while size := int(await self._reader.readline(), 16):
            pending += await self._reader.readexactly(size)
            await self._reader.readexactly(2)
            *events, pending = pending.split(b"\n\n")
            for event in events:
                if not event.startswith(b"data: {"):
                    continue
                for choice in json.loads(event[6:])["choices"]:
                    if choice["text"]:
                        first_s = first_s or time.perf_counter()
                        parts.append(choice["text"])
        await self._reader.readline()
        assert first_s is not None
        return first_s - started_s, "".join(parts), len(parts), time.perf_counter() - started_s

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


async def measure_overhead(
    port: int, channel: Connection, server: psutil.Process, streams: int, rate: float, probes: int
) -> Overhead:
    loop = asyncio.get_running_loop()
    cpu_ms = await _cpu_ms(port, server, probes)
    channel.send((streams, probes))
    direct = await loop.run_in_executor(None, channel.recv)
    others = [asyncio.create_task(_keep_reading(port)) for _ in range(streams)]
    await asyncio.sleep(WARM_UP_S)
    probe, found = Stream(port), []
    await probe.ask(1)
    for _ in range(probes):
        found.append((await probe.ask(1))[0])
        await asyncio.sleep(PROBE_GAP_S)
    for other in others:
        other.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    probe.close()
    (d50, d99), (h50, h99) = _percentiles_ms(direct), _percentiles_ms(found)
    load = os.getloadavg()[0]
    return Overhead(streams, streams * rate, probes, d50, d99, h50, h99, h50 - d50, h99 - d99, cpu_ms, load)


async def _cpu_ms(port: int, server: psutil.Process, requests: int) -> float:
    """Of the server's process, for one request."""
    probe = Stream(port)
    for _ in range(20):
        await probe.ask(1)
    before = server.cpu_times()
    for _ in range(requests):
        await probe.ask(1)
    after = server.cpu_times()
    probe.close()
    return float(after.user + after.system - before.user - before.system) / requests * 1e3


async def _keep_reading(port: int) -> None:
    stream = Stream(port)
    while True:
        await stream.ask(STREAM_TOKENS)


async def measure_soak(
    port: int, server: psutil.Process, expected: str, streams: int, seconds: float, rate: float
) -> Soak:
    wrong = failed = finished = tokens = 0
    late: list[float] = []
    errors: Counter[str] = Counter()
    ends_s = time.monotonic() + seconds
    nominal_s = STREAM_TOKENS / rate

    async def one(number: int) -> None:
        nonlocal wrong, failed, finished, tokens
        await asyncio.sleep(nominal_s * number / streams)
        stream = Stream(port)
        while time.monotonic() < ends_s:
            try:
                _, text, chunks, took_s = await stream.ask(STREAM_TOKENS)
            except (OSError, ValueError, asyncio.IncompleteReadError) as error:
                failed += 1
                errors[f"{type(error).__name__}: {error}"] += 1
                stream = Stream(port)
                continue
            finished += 1
            tokens += chunks
            wrong += text != expected or chunks != STREAM_TOKENS
            late.append(took_s - nominal_s)
        stream.close()

    memory: list[float] = []

    async def watch() -> None:
        while True:
            memory.append(server.memory_info().rss / 2**20)
            await asyncio.sleep(1.0)

    watching = asyncio.create_task(watch())
    started_s = time.monotonic()
    await asyncio.gather(*(one(number) for number in range(streams)))
    elapsed_s = time.monotonic() - started_s
    watching.cancel()
    warm = min(len(memory) - 1, int(nominal_s) + 5)
    return Soak(
        streams=streams,
        seconds=elapsed_s,
        finished_streams=finished,
        wrong_streams=wrong,
        failed_streams=failed,
        tokens=tokens,
        tokens_per_s=tokens / elapsed_s,
        errors=dict(errors),
        late_p99_ms=_percentiles_ms(late)[1],
        memory_start_mib=memory[warm],
        memory_end_mib=memory[-1],
        memory_peak_mib=max(memory),
    )


def _percentiles_ms(seconds: Sequence[float]) -> tuple[float, float]:
    cuts = statistics.quantiles(seconds, n=100, method="inclusive")
    return cuts[49] * 1e3, cuts[98] * 1e3


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="gridserve bench api", description=__doc__)
    parser.add_argument("--streams", type=int, default=200, help="open beside the probes (%(default)s)")
    parser.add_argument("--rate", type=float, default=10.0, help="tokens a second of each stream (%(default)s)")
    parser.add_argument("--probes", type=int, default=1000, help="(%(default)s)")
    parser.add_argument("--soak", type=float, metavar="S", help="measure --streams for so long instead")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    arguments = parser.parse_args(argv)
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    server = context.Process(target=serve, args=(theirs, 1.0 / arguments.rate), daemon=True)
    server.start()
    port, expected = ours.recv()
    found: Overhead | Soak
    watched = psutil.Process(server.pid)
    if arguments.soak is not None:
        found = asyncio.run(measure_soak(port, watched, expected, arguments.streams, arguments.soak, arguments.rate))
    else:
        found = asyncio.run(measure_overhead(port, ours, watched, arguments.streams, arguments.rate, arguments.probes))
    ours.send(None)
    server.join(10.0)
    figures: dict[str, Any] = {**asdict(found), "method": "measured", "machine": cpu_name()}
    for name, value in figures.items():
        print(f"{name}: {value:.3f}" if isinstance(value, float) else f"{name}: {value}")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
