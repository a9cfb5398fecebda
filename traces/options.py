"""Flags that say how a trace is read and shaped, shared by the commands that take one."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from traces.reader import TraceFile
    from traces.rows import ReadOptions
    from traces.workload import Workload


def add_read_options(parser: argparse.ArgumentParser) -> None:
    """How rows are read."""
    group = parser.add_argument_group("reading")
    group.add_argument("--format", help="default: told from the first line")
    group.add_argument("--skip-bad", action="store_true", help="count bad rows and go on, not stop at the first")
    group.add_argument("--time-unit", choices=("s", "ms", "us"), help="unit of numeric stamps, if not the format's own")
    group.add_argument(
        "--backwards",
        choices=("error", "continue", "clamp"),
        default="error",
        help="a stamp below the one before: an error (default), a restarted clock, or disorder to even out",
    )
    group.add_argument("--window", type=int, metavar="TOKENS", help="window of the model: prompt and answer must fit")
    group.add_argument(
        "--over-window",
        choices=("error", "clip", "drop"),
        default="error",
        help="what to do with longer ones (default: error); clipped and dropped ones are counted",
    )


def add_shape_options(parser: argparse.ArgumentParser) -> None:
    """What is made of the workload; applied in the order of the flags here."""
    group = parser.add_argument_group("shaping, in this order")
    group.add_argument("--start", type=float, default=0.0, metavar="S", help="from this second of the trace")
    group.add_argument("--end", type=float, default=math.inf, metavar="S", help="up to this second of the trace")
    group.add_argument("--thin", type=float, metavar="SHARE", help="keep this share of the requests, drawn with --seed")
    group.add_argument(
        "--thin-by", choices=("request", "session"), default="request", help="keep or drop whole sessions"
    )
    group.add_argument("--amplify", type=float, metavar="FACTOR", help="each request so many times, spread by --jitter")
    group.add_argument("--jitter", type=float, metavar="S", help="move arrivals later by up to S, drawn with --seed")
    group.add_argument("--scale-time", type=float, metavar="FACTOR", help="multiply arrivals: below 1 is another load")
    group.add_argument("--scale-input", type=float, default=1.0, metavar="FACTOR", help="multiply prompt lengths")
    group.add_argument("--scale-output", type=float, default=1.0, metavar="FACTOR", help="multiply answer lengths")
    group.add_argument("--loop", type=int, metavar="N", help="repeat N times, each --period seconds")
    group.add_argument("--period", type=float, default=86400.0, metavar="S", help="default: a day")
    group.add_argument("--limit", type=int, metavar="N", help="only the first N requests")
    group.add_argument("--seed", type=int, default=0, help="of everything drawn at random (default 0)")


def read_options(arguments: argparse.Namespace) -> ReadOptions:
    from traces.rows import ReadOptions

    return ReadOptions(
        skip_bad=arguments.skip_bad,
        time_unit=arguments.time_unit,
        backwards=arguments.backwards,
        window_tokens=arguments.window,
        over_window=arguments.over_window,
    )


def open_trace(arguments: argparse.Namespace) -> TraceFile:
    from traces.reader import TraceFile

    return TraceFile(Path(arguments.trace), arguments.format, read_options(arguments))


def shape(workload: Workload, arguments: argparse.Namespace) -> Workload:
    """Apply the shaping flags. Raises `ValueError` for values out of range."""
    seed = arguments.seed
    if arguments.start > 0.0 or arguments.end < math.inf:
        workload = workload.select(arguments.start, arguments.end).from_zero()
    if arguments.thin is not None:
        workload = workload.thin(arguments.thin, seed, arguments.thin_by)
    if arguments.amplify is not None:
        workload = workload.amplify(arguments.amplify, seed, arguments.jitter or 0.0)
    elif arguments.jitter is not None:
        workload = workload.jitter(arguments.jitter, seed)
    if arguments.scale_time is not None:
        workload = workload.scale_time(arguments.scale_time)
    if (arguments.scale_input, arguments.scale_output) != (1.0, 1.0):
        workload = workload.scale_lengths(arguments.scale_input, arguments.scale_output)
    if arguments.loop is not None:
        workload = workload.loop(arguments.loop, arguments.period)
    if arguments.limit is not None:
        workload = workload.select(limit=arguments.limit)
    return workload
