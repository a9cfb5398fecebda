"""`gridserve replay TRACE --url URL --out DIR`: send a trace to an OpenAI-compatible server at its own times."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from serving.commands import CommandError
from traces.options import add_read_options, add_shape_options, open_trace, shape

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from serving.commands import Subparsers
    from traces.reader import TraceFile
    from traces.replay import Progress
    from traces.results import RunResult
    from traces.workload import Workload

    Replayed = tuple[RunResult, ValueError | None]

EXAMPLES = """examples:
  gridserve replay conv.csv --url http://127.0.0.1:8000 --out runs/conv --thin 0.1 --seed 1
  gridserve replay trace.jsonl --url http://127.0.0.1:8000 --out runs/day --goodput ttft:300 tpot:50
  gridserve replay trace.jsonl --url http://127.0.0.1:8000 --out runs/directives --endpoint chat --output natural
"""
_MOST_FILES = 65536


def register(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "replay",
        help="send a trace to a server",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("trace", metavar="TRACE", help="a trace file of any known format")
    parser.add_argument("--url", required=True, help="http://HOST:PORT of the server")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the results")
    add_read_options(parser)
    add_shape_options(parser)
    group = parser.add_argument_group("requests")
    group.add_argument("--model", help="default: the first one the server lists")
    group.add_argument("--endpoint", choices=("completions", "chat"), help="default: completions where it is offered")
    group.add_argument(
        "--prompts",
        choices=("auto", "token-ids", "text"),
        default="auto",
        help="token ids are exact; text is sized through /tokenize (default: token ids where the server takes them)",
    )
    group.add_argument(
        "--share-prefixes",
        choices=("ids", "sessions", "none"),
        default="ids",
        help="which prompts begin alike: by the trace's prefix ids (default), by session (an upper bound), or none",
    )
    group.add_argument(
        "--output",
        choices=("recorded", "natural"),
        default="recorded",
        help="force answers to the recorded length (default), or let the model stop by itself; savings by directives "
        "can only be seen with natural lengths",
    )
    group.add_argument("--max-tokens", type=int, default=1024, help="limit of natural answers (default 1024)")
    group.add_argument(
        "--no-answer",
        choices=("drop", "one"),
        default="drop",
        help="requests recorded with 0 output tokens: drop them, or ask for one token",
    )
    group.add_argument("--body", metavar="JSON", help='fields added to every request, e.g. \'{"directive": "auto"}\'')
    group.add_argument("--header", action="append", default=[], metavar="NAME=VALUE", help="header of every request")
    group.add_argument("--timeout", type=float, default=600.0, metavar="S", help="limit of one answer (default 600)")
    group = parser.add_argument_group("results")
    group.add_argument(
        "--goodput", nargs="+", metavar="METRIC:MS", help="ttft:300 tpot:50 e2el:5000, or a preset: chat"
    )
    group.add_argument("--percentiles", default="50,90,95,99", help="default 50,90,95,99")
    group.add_argument(
        "--warmup", type=float, default=0.0, metavar="S", help="leave the first S seconds out of figures"
    )
    group.add_argument("--no-itl", action="store_true", help="do not keep the gaps between tokens (saves memory)")
    group.add_argument("--policy", help="a name for this run's policy, kept in the results")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    import math
    import sys
    from pathlib import Path

    from traces.report import report_lines, send_lag_warning
    from traces.results_io import write_run
    from traces.target import TargetError
    from traces.workload import Workload

    try:
        trace = open_trace(arguments)
        workload = shape(Workload.from_file(trace), arguments)
        out = Path(arguments.out)
        if not 0.0 <= arguments.warmup < math.inf:
            raise CommandError(f"--warmup takes seconds of at least 0, got {arguments.warmup:g}")
        if out.exists() and not out.is_dir():
            raise CommandError(f"{out} is a file; --out must be a folder")
        _raise_file_limit()
        result, failure = _run_loop(_replay(arguments, workload, trace))
        write_run(result, out)
    except (ValueError, OSError, TargetError) as error:
        raise CommandError(str(error)) from None
    for line in report_lines(result):
        print(line)
    figures = result.summary()
    if warning := send_lag_warning(figures):
        print(f"gridserve: {warning}", file=sys.stderr)
    print(f"Results are in {out}", file=sys.stderr)
    if failure is not None:
        raise CommandError(f"{failure} (the results up to there are in {out})")
    if result.aborted:
        return 130
    return 0 if figures["completed"] else 1


def _run_loop(main: Coroutine[Any, Any, Replayed]) -> Replayed:
    """On uvloop where there is one: less work for each piece of a stream."""
    import asyncio
    import sys

    if sys.platform == "win32":
        return asyncio.run(main)
    import uvloop

    return uvloop.run(main)


async def _replay(arguments: argparse.Namespace, workload: Workload, trace: TraceFile) -> Replayed:
    import asyncio
    import os
    import signal
    from dataclasses import asdict
    from datetime import UTC, datetime

    from traces.http_stream import StreamClient
    from traces.prompts import PromptMaker
    from traces.replay import Replay, ReplayOptions
    from traces.results import RunInfo, RunResult
    from traces.target import FORM_DESCRIPTIONS, PromptForm, find_target

    options = ReplayOptions(
        output=arguments.output,
        max_tokens=arguments.max_tokens,
        zero_output=arguments.no_answer,
        request_timeout_s=arguments.timeout,
        keep_itl=not arguments.no_itl,
        extra=_json_object(arguments.body),
    )
    headers = dict(_header(text) for text in arguments.header)
    if key := os.environ.get("OPENAI_API_KEY"):
        headers.setdefault("Authorization", f"Bearer {key}")
    slo_ms, percentiles = _slo(arguments.goodput or []), _percentiles(arguments.percentiles)
    async with StreamClient(arguments.url, headers) as client:
        form: PromptForm | None = "token_ids" if arguments.prompts == "token-ids" else None
        target = await find_target(
            client, arguments.model, arguments.endpoint, form, allow_ids=arguments.prompts != "text"
        )
        with _ProgressBar() as bar:
            replay = Replay(client, target, PromptMaker(arguments.seed, arguments.share_prefixes), options, bar.show)
            loop = asyncio.get_running_loop()
            loop.add_signal_handler(signal.SIGINT, replay.stop)
            loop.add_signal_handler(signal.SIGTERM, replay.stop)
            try:
                records = await replay.run(workload)
            finally:
                loop.remove_signal_handler(signal.SIGINT)
                loop.remove_signal_handler(signal.SIGTERM)
    notes = [] if replay.failure is None else [f"the trace could not be read to its end: {replay.failure}"]
    if arguments.output == "recorded":
        notes.append("answers were forced to the recorded lengths: no saving by directives can show")
    warmup_s = arguments.warmup
    if warmup_s >= replay.duration_s:
        notes.append(f"the run ended within the warm-up of {warmup_s:g} s: nothing is left out")
        warmup_s = 0.0
    info = RunInfo(
        kind="replay",
        date=datetime.now(UTC).strftime("%Y%m%d-%H%M%S"),
        backend="openai" if target.endpoint == "completions" else "openai-chat",
        model_id=target.model,
        trace=workload.name,
        trace_obtained=workload.obtained,
        output_lengths=arguments.output,
        prompts=FORM_DESCRIPTIONS[target.form],
        endpoint=arguments.url.rstrip("/") + target.path,
        steps=workload.steps,
        policy=arguments.policy,
        seed=arguments.seed,
        measure_from_s=warmup_s,
        counts={name: count for name, count in asdict(trace.counts).items() if isinstance(count, int)},
        notes=tuple(notes),
    )
    result = RunResult(info, replay.duration_s, records, replay.aborted, None, slo_ms, percentiles)
    return result, replay.failure


class _ProgressBar:
    """Counts of sent, answered and failed requests on a terminal; silent elsewhere."""

    def __enter__(self) -> _ProgressBar:
        import sys

        from tqdm import tqdm

        self._bar = tqdm(unit="req", desc="replay", disable=not sys.stderr.isatty(), mininterval=0.2)
        return self

    def show(self, progress: Progress) -> None:
        done = progress.completed + progress.failed
        waiting = {"next_in_s": round(progress.next_send_in_s)} if progress.next_send_in_s > 5.0 else {}
        if done > self._bar.n or waiting:
            counts = {"sent": progress.sent, "in_flight": progress.in_flight, "failed": progress.failed}
            self._bar.set_postfix({**counts, **waiting}, refresh=bool(waiting))
            self._bar.update(done - self._bar.n)

    def __exit__(self, *_: object) -> None:
        self._bar.close()


def _raise_file_limit() -> None:
    """Every request under way holds a socket."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _json_object(text: str | None) -> dict[str, Any]:
    import json

    if text is None:
        return {}
    try:
        fields = json.loads(text)
    except json.JSONDecodeError as error:
        raise CommandError(f"--body is not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise CommandError("--body must be a JSON object")
    return fields


def _header(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise CommandError(f"--header must look like NAME=VALUE, got {text!r}")
    return name, value


def _slo(parts: list[str]) -> dict[str, float]:
    from traces.metrics import SLO_NAMES
    from traces.results import SLO_PRESETS

    limits: dict[str, float] = {}
    for part in parts:
        name, separator, limit = part.partition(":")
        if not separator and name in SLO_PRESETS:
            limits |= SLO_PRESETS[name]
            continue
        try:
            if name not in SLO_NAMES:
                raise ValueError(name)
            limits[name] = float(limit)
        except ValueError:
            raise CommandError(
                f"--goodput takes METRIC:MS (METRIC one of {', '.join(SLO_NAMES)}) "
                f"or one of {', '.join(SLO_PRESETS)}, got {part!r}"
            ) from None
    return limits


def _percentiles(text: str) -> list[float]:
    try:
        wanted = [float(part) for part in text.split(",")]
    except ValueError:
        wanted = [-1.0]
    if any(not 0.0 <= percentile <= 100.0 for percentile in wanted):
        raise CommandError(f"--percentiles takes numbers from 0 to 100 with commas between, got {text!r}")
    return wanted
