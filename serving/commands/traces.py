"""`gridserve traces`: look at request traces, convert them, and draw synthetic ones."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from serving.commands import CommandError
from traces.options import add_read_options, add_shape_options, open_trace, shape

if TYPE_CHECKING:
    from collections.abc import Iterator

    from serving.commands import Subparsers
    from traces.rows import RowCounts
    from traces.statistics import LengthStatistics, WorkloadStatistics
    from traces.workload import Workload

EXAMPLES = """examples:
  gridserve traces inspect AzureLLMInferenceTrace_conv.csv
  gridserve traces convert conversation_trace.jsonl --to vllm --out mooncake.jsonl --window 8192 --over-window clip
  gridserve traces synthesize spec.yaml --out day.jsonl
  gridserve traces synthesize --lengths arxiv.csv --rate 2 --interarrival-cv 1.5 --duration 3600 --out arxiv.jsonl
"""


def register(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "traces",
        help="inspect, convert and synthesize request traces",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)

    inspect = actions.add_parser("inspect", help="rows, span, rates, lengths, bad rows")
    inspect.add_argument("trace", metavar="FILE")
    inspect.add_argument(
        "--prefix-reuse", action="store_true", help="share of prefix blocks an infinite cache would hit"
    )
    inspect.add_argument("--json", action="store_true", help="print JSON")
    add_read_options(inspect)
    add_shape_options(inspect)
    inspect.set_defaults(run=run_inspect)

    convert = actions.add_parser("convert", help="write a trace in another format")
    convert.add_argument("trace", metavar="FILE")
    convert.add_argument(
        "--to", default="native", metavar="FORMAT", help="native, aiperf, vllm, guidellm, vidur, splitwise-sim"
    )
    convert.add_argument("--out", required=True, metavar="FILE")
    add_read_options(convert)
    add_shape_options(convert)
    convert.set_defaults(run=run_convert)

    synthesize = actions.add_parser(
        "synthesize", help="draw a trace from a spec, from lengths, or from ServeGen clients"
    )
    synthesize.add_argument("spec", nargs="?", metavar="SPEC", help="a YAML or JSON spec; see docs/traces.md")
    synthesize.add_argument("--out", required=True, metavar="FILE")
    synthesize.add_argument("--seed", type=int, help="default: the spec's, else 0")
    synthesize.add_argument("--lengths", metavar="FILE", help="draw pairs of lengths from the rows of this file")
    synthesize.add_argument("--rate", type=float, metavar="RPS", help="with --lengths: requests a second")
    synthesize.add_argument("--interarrival-cv", type=float, default=1.0, help="with --lengths: 1 is Poisson (default)")
    synthesize.add_argument("--duration", type=float, metavar="S", help="with --lengths or --servegen")
    synthesize.add_argument("--servegen", metavar="DIR", help="a ServeGen folder: chunk-N-trace.csv and -dataset.json")
    synthesize.add_argument(
        "--start", type=float, default=0.0, metavar="S", help="with --servegen: from this second on"
    )
    synthesize.add_argument("--rate-factor", type=float, default=1.0, help="with --servegen: scale all rates")
    synthesize.set_defaults(run=run_synthesize)


def run_inspect(arguments: argparse.Namespace) -> int:
    import json

    from traces.rows import suspicious_time_unit
    from traces.statistics import describe, prefix_reuse
    from traces.workload import Workload

    try:
        trace = open_trace(arguments)
        workload = shape(Workload.from_file(trace), arguments)
        statistics = describe(workload, workload.origin)
        counts = trace.counts
        reuse = prefix_reuse(workload) if arguments.prefix_reuse else None
    except ValueError as error:
        raise CommandError(str(error)) from None
    unit = getattr(trace.layout, "time_unit", None)
    warning = (
        suspicious_time_unit(statistics.requests, statistics.span_s, statistics.whole_second_stamps) if unit else None
    )
    if arguments.json:
        print(json.dumps(_as_json(trace.layout.name, workload, statistics, counts, reuse, warning)))
        return 0
    for header, value in _table(trace.layout.title, workload, statistics, counts):
        print(f"{header:<28} {value}")
    if arguments.prefix_reuse:
        print(f"{'prefix blocks reused':<28} {'no prefix ids' if reuse is None else f'{100 * reuse:.1f} %'}")
    if warning:
        print(f"warning: {warning}")
    return 0


def run_convert(arguments: argparse.Namespace) -> int:
    import sys
    from pathlib import Path

    from traces.export import EXPORTS, export
    from traces.workload import Workload

    try:
        trace = open_trace(arguments)
        done = export(shape(Workload.from_file(trace), arguments), Path(arguments.out), arguments.to)
    except (ValueError, OSError) as error:
        raise CommandError(str(error)) from None
    print(f"{done.written} requests written to {arguments.out}", file=sys.stderr)
    if done.left_out:
        print(f"{done.left_out} left out: recorded without an answer", file=sys.stderr)
    for reason, count in _oddities(trace.counts):
        print(f"{count} {reason}", file=sys.stderr)
    print(f"to use it: {EXPORTS[arguments.to].usage}", file=sys.stderr)
    return 0


def run_synthesize(arguments: argparse.Namespace) -> int:
    import sys
    from pathlib import Path

    from traces.export import export

    given = [name for name in ("spec", "lengths", "servegen") if getattr(arguments, name) is not None]
    if len(given) != 1:
        raise CommandError("give one of: a spec file, --lengths FILE, --servegen DIR")
    try:
        workload = {"spec": _from_spec, "lengths": _from_lengths, "servegen": _from_servegen}[given[0]](arguments)
        done = export(workload, Path(arguments.out), "native")
    except (ValueError, OSError) as error:
        raise CommandError(str(error)) from None
    print(f"{done.written} requests written to {arguments.out}", file=sys.stderr)
    return 0


def _from_spec(arguments: argparse.Namespace) -> Workload:
    from dataclasses import replace
    from pathlib import Path

    from traces.synthesis import synthesize
    from traces.synthesis_spec import read_spec

    spec = read_spec(Path(arguments.spec))
    return synthesize(spec if arguments.seed is None else replace(spec, seed=arguments.seed))


def _from_lengths(arguments: argparse.Namespace) -> Workload:
    from pathlib import Path

    from traces.synthesis import arrivals_for_lengths

    if arguments.rate is None or arguments.duration is None:
        raise CommandError("--lengths needs --rate RPS and --duration S")
    return arrivals_for_lengths(
        Path(arguments.lengths), arguments.rate, arguments.interarrival_cv, arguments.duration, arguments.seed or 0
    )


def _from_servegen(arguments: argparse.Namespace) -> Workload:
    from pathlib import Path

    from traces.servegen import folder_workload

    end_s = None if arguments.duration is None else arguments.start + arguments.duration
    return folder_workload(Path(arguments.servegen), arguments.seed or 0, arguments.start, end_s, arguments.rate_factor)


def _oddities(counts: RowCounts) -> Iterator[tuple[str, int]]:
    """What a pass found beside good rows, in words, where it is not zero."""
    reasons = {
        "bad rows skipped": counts.bad,
        "requests recorded without an answer": counts.zero_outputs,
        "requests clipped to the window": counts.clipped_over_window,
        "prompt tokens clipped": counts.clipped_input_tokens,
        "answer tokens clipped": counts.clipped_output_tokens,
        "requests over the window dropped": counts.dropped_over_window,
        "stamps that go back": counts.backwards_stamps,
        "stamps equal to the one before": counts.equal_stamps,
    }
    yield from ((reason, count) for reason, count in reasons.items() if count)


def _table(title: str, workload: Workload, found: WorkloadStatistics, counts: RowCounts) -> Iterator[tuple[str, str]]:
    yield "trace", f"{workload.name} ({title}, {workload.obtained})"
    for step in workload.steps:
        yield "  step", step
    if workload.origin.started_at is not None:
        yield "starts at", workload.origin.started_at.isoformat()
    elif workload.origin.seconds_of_day is not None:
        minutes = int(workload.origin.seconds_of_day // 60)
        yield "starts at (time of day)", f"{minutes // 60:02d}:{minutes % 60:02d}"
    yield "requests", f"{found.requests:,}"
    yield "span", f"{found.span_s:,.1f} s ({found.span_s / 3600:.2f} h)"
    yield "rate, mean / busiest minute", f"{_number(found.rate_rps)} / {found.busiest_minute_rps:.3g} req/s"
    yield "inter-arrival CV", f"{_number(found.interarrival_cv)} (Poisson: 1), longest gap {found.longest_gap_s:.1f} s"
    yield "10 s counts, variance/mean", f"{_number(found.count_dispersion)} (Poisson: 1)"
    if found.empty_bins_share is not None:
        yield "10 s bins empty", f"{100 * found.empty_bins_share:.0f} %"
    for name, lengths in (("input tokens", found.input_tokens), ("output tokens", found.output_tokens)):
        if lengths is not None:
            yield name, _lengths(lengths)
    if found.tasks:
        yield "classes", ", ".join(f"{task} {count:,}" for task, count in found.tasks.items())
    if found.by_hour is not None:
        yield "requests by hour of day", " ".join(map(str, found.by_hour))
    for reason, count in _oddities(counts):
        yield reason, f"{count:,}"
    for column, count in counts.bad_reasons.items():
        yield f"  bad {column}", f"{count:,}"


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3g}"


def _lengths(lengths: LengthStatistics) -> str:
    parts = ", ".join(f"p{percentile:.0f} {tokens:,}" for percentile, tokens in lengths.percentiles.items())
    return f"{lengths.total:,} in all, mean {lengths.mean:,.0f}, {parts}, max {lengths.maximum:,}"


def _as_json(
    layout: str,
    workload: Workload,
    found: WorkloadStatistics,
    counts: RowCounts,
    reuse: float | None,
    warning: str | None,
) -> dict[str, Any]:
    from dataclasses import asdict

    started = workload.origin.started_at
    return {
        "format": layout,
        "name": workload.name,
        "obtained": workload.obtained,
        "steps": list(workload.steps),
        "started_at": started.isoformat() if started else None,
        "seconds_of_day": workload.origin.seconds_of_day,
        **asdict(found),
        "counts": asdict(counts),
        "prefix_blocks_reused": reuse,
        "warning": warning,
    }
