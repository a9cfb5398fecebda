"""The inference API's own cost, on an engine that computes nothing. `gridserve bench api [--json FILE]`.

Overhead: how much later a first token is there through HTTP than from a direct call of the engine, while other streams
are open; both with the same streams. The server, the readers of the streams and the probe are processes of their own; a
token counts as there when the kernel has put it on the probe's socket. Soak (`--soak S`): many
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

from bench._api_clients import Probe, completion_request, open_streams
from bench._machine import cpu_name
from bench._null_api import NullApi
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
    """Milliseconds to the first token, measured. `null_*`: of `NullApi` under the same server, the floor under any API.
    `overhead_*`: the difference of the percentiles of `http_*` and `direct_*`. `cpu_per_request_ms`: processor time of
    the server for one request of one token without other streams; unlike the rest it hardly depends on what else the
    machine does. `load_average`: of the last minute, when the measurement ended."""

    open_streams: int
    tokens_per_s: float
    probes: int
    direct_p50_ms: float
    direct_p99_ms: float
    null_p50_ms: float
    null_p99_ms: float
    http_p50_ms: float
    http_p99_ms: float
    overhead_p50_ms: float
    overhead_p99_ms: float
    null_cpu_per_request_ms: float
    cpu_per_request_ms: float
    load_average: float


@dataclass(frozen=True, slots=True)
class Soak:
    """`wrong_streams`: their text or their number of chunks was not what the engine gave; `failed_streams`: not 200, or
    cut off. `late_p99_ms`: by how much the last token came later than the engine's pace, counted from the first one.
    Memory is the server process's resident set, after warm-up and at the end."""

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
    apps = create_app(InferenceService(engine, text, settings), settings), NullApi(engine)
    servers = [uvicorn.Server(server_config(app, settings)) for app in apps]
    with bind(settings.host, 0) as ours, bind(settings.host, 0) as null:
        await _serve_on((ours, null), servers, engine, text.decode(text.encode(COUNTING)[:STREAM_TOKENS]), channel)


async def _serve_on(
    listeners: Sequence[socket.socket],
    servers: Sequence[uvicorn.Server],
    engine: PacedEngine,
    expected: str,
    channel: Connection,
) -> None:
    running = [asyncio.create_task(one.serve([on])) for one, on in zip(servers, listeners, strict=True)]
    gc.freeze()  # as the server does when it is ready
    channel.send((tuple(one.getsockname()[1] for one in listeners), expected))
    loop = asyncio.get_running_loop()
    while (asked := await loop.run_in_executor(None, _asked, channel)) is not None:
        channel.send(await _direct(engine, *asked))
    for server in servers:
        server.should_exit = True
    await asyncio.gather(*running)


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
        started_s, first_s = time.perf_counter(), None
        self._writer.write(completion_request(tokens))
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


def measure_overhead(
    ports: tuple[int, int], channel: Connection, server: psutil.Process, streams: int, rate: float, probes: int
) -> Overhead:
    """`ports`: of the API and of `NullApi`."""
    cpu_ms, null_cpu_ms = (_cpu_ms(port, server, probes) for port in ports)
    channel.send((streams, probes))
    d50, d99 = _percentiles_ms(channel.recv())
    (n50, n99), (h50, h99) = (_percentiles_ms(_over_http(port, streams, probes)) for port in reversed(ports))
    return Overhead(
        open_streams=streams,
        tokens_per_s=streams * rate,
        probes=probes,
        direct_p50_ms=d50,
        direct_p99_ms=d99,
        null_p50_ms=n50,
        null_p99_ms=n99,
        http_p50_ms=h50,
        http_p99_ms=h99,
        overhead_p50_ms=h50 - d50,
        overhead_p99_ms=h99 - d99,
        null_cpu_per_request_ms=null_cpu_ms,
        cpu_per_request_ms=cpu_ms,
        load_average=os.getloadavg()[0],
    )


def _over_http(port: int, streams: int, probes: int) -> list[float]:
    """Seconds to the first token beside `streams` that are read."""
    with open_streams(port, streams, STREAM_TOKENS):
        time.sleep(WARM_UP_S)
        probe, found = Probe(port), []
        probe.first_token_s()
        for _ in range(probes):
            found.append(probe.first_token_s())
            time.sleep(PROBE_GAP_S)
        probe.close()
    return found


def _cpu_ms(port: int, server: psutil.Process, requests: int) -> float:
    """Of the server's process, for one request."""
    probe = Probe(port)
    for _ in range(20):
        probe.first_token_s()
    before = server.cpu_times()
    for _ in range(requests):
        probe.first_token_s()
    after = server.cpu_times()
    probe.close()
    return float(after.user + after.system - before.user - before.system) / requests * 1e3


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
                first_s, text, chunks, took_s = await stream.ask(STREAM_TOKENS)
            except (OSError, ValueError, asyncio.IncompleteReadError) as error:
                failed += 1
                errors[f"{type(error).__name__}: {error}"] += 1
                stream = Stream(port)
                continue
            finished += 1
            tokens += chunks
            wrong += text != expected or chunks != STREAM_TOKENS
            late.append(took_s - first_s - (STREAM_TOKENS - 1) / rate)
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
    ports, expected = ours.recv()
    found: Overhead | Soak
    watched = psutil.Process(server.pid)
    if arguments.soak is not None:
        found = asyncio.run(
            measure_soak(ports[0], watched, expected, arguments.streams, arguments.soak, arguments.rate)
        )
    else:
        found = measure_overhead(ports, ours, watched, arguments.streams, arguments.rate, arguments.probes)
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
