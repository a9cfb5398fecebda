"""`gridserve carbon ...`: the grid now and ahead, the mix of directives, judging their quality, grams reported.

examples:
  gridserve carbon now --zone GB --feed uk_grid
  gridserve carbon now --zone GB --csv GB_2023_hourly.csv --boundary direct --at 2023-03-01T10:00Z
  gridserve carbon forecast --zone GB --csv GB_2023_hourly.csv --at 2023-03-01T10:00Z --hours 24
  gridserve carbon optimize --zone GB --csv GB_2023_hourly.csv --at 2023-03-01T10:00Z --state learned/
  gridserve carbon evaluate prompts.jsonl --url http://127.0.0.1:8000/v1 --model m --exact --state learned/
  gridserve carbon report ledger.csv --by tenant directive
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serving.commands import CommandError

if TYPE_CHECKING:
    from carbon.feed_chain import FeedChain
    from carbon.intensity import CarbonIntensity
    from serving.commands import Subparsers


def register(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "carbon",
        help="grid intensity, directive mixes, quality evaluation, reports",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)

    now = _action(actions, "now", "the intensity now, with its provenance", _now)
    _add_feed(now)

    forecast = _action(actions, "forecast", "the hours ahead, with the error of the forecast", _forecast)
    _add_feed(forecast)
    forecast.add_argument("--hours", type=int, default=24, help="how far ahead (default 24)")

    optimize = _action(actions, "optimize", "the mix of directives for every prompt class now", _optimize)
    _add_feed(optimize)
    _add_state(optimize)
    optimize.add_argument("--strategy", choices=["sprout", "classed", "budgeted"], default="classed")
    optimize.add_argument("--tolerance", type=float, default=0.1, help="quality given up at the dirtiest (default 0.1)")
    optimize.add_argument("--floor", type=float, default=0.0, help="of L0's quality, whatever the grid (default 0)")
    optimize.add_argument("--confidence", type=float, help="of every floor (default 0.75)")
    optimize.add_argument("--target", type=float, default=1.0, help="budgeted: of L0's quality (default 1)")

    evaluate = _action(actions, "evaluate", "judge every level against L0 and remember the result", _evaluate)
    evaluate.add_argument("prompts", type=Path, help="JSON lines: class, and prompt or messages; answer where known")
    evaluate.add_argument("--url", required=True, help="OpenAI-compatible base address of the served model")
    evaluate.add_argument("--model", required=True)
    evaluate.add_argument("--api-key-env", help="environment variable with the served model's key")
    judge = evaluate.add_mutually_exclusive_group(required=True)
    judge.add_argument("--exact", action="store_true", help="match the known answers instead of asking a judge")
    judge.add_argument("--judge-model", help="model that judges; the served one may judge itself")
    evaluate.add_argument("--judge-url", help="where it is (default: --url)")
    evaluate.add_argument("--judge-key-env", help="environment variable with the judge's key")
    evaluate.add_argument("--max-judge-calls", type=int, help="stop when the judge was asked this often")
    evaluate.add_argument("--max-prompts", type=int, default=200, help="prompts a class (default 200)")
    evaluate.add_argument("--max-tokens", type=int, default=1024, help="of an answer (default 1024)")
    evaluate.add_argument("--share", type=float, default=0.95, help="of L0's quality to test for (default 0.95)")
    evaluate.add_argument("--gridserve", action="store_true", help="the served model is gridserve: name the level")
    _add_state(evaluate, required=True)
    _add_json(evaluate)

    report = _action(actions, "report", "grams by hour, tenant, model, class or directive", _report)
    report.add_argument("ledger", type=Path, help="CSV or JSON lines, one finished request a row")
    report.add_argument("--by", nargs="+", default=["tenant"], metavar="DIMENSION", help="default: tenant")
    _add_json(report)


def _action(
    actions: Subparsers, name: str, summary: str, run: Callable[[argparse.Namespace], int]
) -> argparse.ArgumentParser:
    parser = actions.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
    parser.set_defaults(run=run)
    return parser


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def _add_state(parser: argparse.ArgumentParser, *, required: bool = False) -> None:
    parser.add_argument("--state", type=Path, required=required, help="folder of what was learned")


def _add_feed(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--zone", required=True, help="zone of the grid, as the source names it")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--csv", type=Path, help="recorded intensity, CSV or Parquet")
    source.add_argument(
        "--feed", choices=["electricity_maps", "watttime", "uk_grid", "entsoe", "eia"], help="keys: see docs/carbon.md"
    )
    source.add_argument("--constant", type=float, metavar="G_PER_KWH", help="a declared intensity")
    parser.add_argument("--boundary", choices=["direct", "lifecycle"], default="lifecycle", help="default: lifecycle")
    parser.add_argument("--at", help="pretend it is this time (ISO, with offset); for recordings")
    _add_json(parser)


def _moment(arguments: argparse.Namespace) -> datetime:
    if arguments.at is None:
        return datetime.now(UTC)
    try:
        moment = datetime.fromisoformat(arguments.at)
    except ValueError:
        raise CommandError(f"--at {arguments.at!r} is not an ISO time, for example 2023-03-01T10:00Z") from None
    if moment.tzinfo is None:
        raise CommandError(f"--at {arguments.at} needs an offset, for example {arguments.at}Z")
    return moment.astimezone(UTC)


def _chain(arguments: argparse.Namespace) -> FeedChain:
    from carbon.feed_chain import FeedChain
    from carbon.feeds.build import build_feed

    moment = _moment(arguments)

    def now() -> datetime:
        return moment if arguments.at is not None else datetime.now(UTC)

    settings: dict[str, Any]
    if arguments.csv is not None:
        settings = {"type": "csv", "path": str(arguments.csv.resolve()), "boundary": arguments.boundary}
    elif arguments.constant is not None:
        settings = {"type": "constant", "g_per_kwh": arguments.constant, "boundary": arguments.boundary}
    else:
        settings = {"type": arguments.feed}
        if arguments.feed in ("electricity_maps", "entsoe", "eia"):
            settings["boundary"] = arguments.boundary
    try:
        return FeedChain(arguments.zone, [build_feed(settings, zone=arguments.zone, now=now)], now=now)
    except ValueError as error:
        raise CommandError(str(error)) from None


def _with_chain(arguments: argparse.Namespace, work: Callable[[FeedChain], Coroutine[Any, Any, int]]) -> int:
    async def run() -> int:
        chain = _chain(arguments)
        try:
            return await work(chain)
        finally:
            await chain.close()

    return asyncio.run(run())


def _now(arguments: argparse.Namespace) -> int:
    from carbon.accounting import provenance
    from carbon.text import reading_lines

    async def work(chain: FeedChain) -> int:
        await chain.refresh()
        reading = chain.reading()
        if arguments.json:
            _print_json(asdict(provenance(reading)))
            return 0 if reading.intensity else 1
        if reading.intensity is None:
            raise CommandError(f"no intensity for {arguments.zone}: {reading.reason}")
        _print_lines(reading_lines(reading))
        return 0

    return _with_chain(arguments, work)


def _forecast(arguments: argparse.Namespace) -> int:
    if not 1 <= arguments.hours <= 168:
        raise CommandError("--hours must be between 1 and 168")
    from carbon.text import forecast_lines

    async def work(chain: FeedChain) -> int:
        # A recording knows what follows; as a forecast that would be cheating, so the model is asked instead.
        if arguments.csv is not None:
            await chain.refresh_forecast(arguments.hours, model_only=True)
        else:
            await chain.refresh_forecast(arguments.hours)
        found = chain.forecast()
        if found is None:
            raise CommandError("no forecast: the source gives none and holds less than 8 weeks of history before now")
        if arguments.json:
            _print_json({
                "source": found.source,
                "error": asdict(found.model.error) if found.model else None,
                "points": [_point(value) for value in found.series],
            })  # fmt: skip
            return 0
        _print_lines(forecast_lines(found))
        return 0

    return _with_chain(arguments, work)


def _point(value: CarbonIntensity) -> dict[str, Any]:
    return {
        "start": value.start,
        "end": value.end,
        "g_per_kwh": value.g_per_kwh,
        "low": value.low,
        "high": value.high,
        "kind": str(value.kind),
    }


def _optimize(arguments: argparse.Namespace) -> int:
    from carbon.directives import SPROUT_LEVELS
    from carbon.optimizer.classed import DEFAULT_CONFIDENCE
    from carbon.plan_values import PlanSettings, Strategy
    from carbon.plane import CarbonPlane
    from carbon.plane_values import PlaneSettings
    from carbon.planner import make_plan
    from carbon.state import LearnedState, load_state
    from carbon.text import plan_lines, plan_record

    try:
        state: LearnedState | None = load_state(arguments.state, len(SPROUT_LEVELS)) if arguments.state else None
        settings = PlanSettings(
            strategy=Strategy(arguments.strategy),
            tolerance=arguments.tolerance,
            quality_floor=arguments.floor,
            confidence=DEFAULT_CONFIDENCE if arguments.confidence is None else arguments.confidence,
            target=arguments.target,
        )
    except ValueError as error:
        raise CommandError(str(error)) from None
    moment = _moment(arguments)

    async def work(chain: FeedChain) -> int:
        plane = CarbonPlane(
            PlaneSettings(plan=settings),
            chain,
            classifier=state.classifier if state else None,
            bands=state.bands if state else None,
            energy_model=state.energy_model if state else None,
            quality=state.quality if state else None,
            now=lambda: moment,
        )
        await chain.refresh()
        await plane.start()
        snapshot = plane.snapshot()
        try:
            plan = make_plan(snapshot, settings)
        except ValueError as error:
            raise CommandError(str(error)) from None
        if arguments.json:
            _print_json(plan_record(plan, snapshot.classes))
        else:
            _print_lines(plan_lines(plan, SPROUT_LEVELS.ids, snapshot.classes))
        return 0

    return _with_chain(arguments, work)


def _evaluate(arguments: argparse.Namespace) -> int:
    from carbon.directives import SPROUT_LEVELS
    from carbon.evaluator.endpoints import ChatEndpoint
    from carbon.evaluator.judges import CostCap, ExactMatchJudge, Judge, ModelJudge
    from carbon.evaluator.prompt_file import read_prompts
    from carbon.evaluator.run import EvaluationPlan, evaluate
    from carbon.state import load_state
    from carbon.text import evaluation_lines

    try:
        prompts = read_prompts(arguments.prompts)
        state = load_state(arguments.state, len(SPROUT_LEVELS))
        served = ChatEndpoint(arguments.url, arguments.model, api_key=_key(arguments.api_key_env))
        judge: Judge = ExactMatchJudge()
        asked: ChatEndpoint | None = None
        if not arguments.exact:
            own = arguments.judge_url is None
            asked = ChatEndpoint(
                arguments.judge_url or arguments.url, arguments.judge_model, api_key=_key(arguments.judge_key_env)
            )
            cap = CostCap(max_calls=arguments.max_judge_calls)
            judge = ModelJudge(asked, cap, served_by_gridserve=own and arguments.gridserve)
    except (ValueError, OSError) as error:
        raise CommandError(str(error)) from None
    plan = EvaluationPlan(
        share=arguments.share,
        max_prompts=arguments.max_prompts,
        max_tokens=arguments.max_tokens,
        directive_in_field=arguments.gridserve,
    )

    async def run() -> int:
        try:
            result = await evaluate(prompts, SPROUT_LEVELS, served, judge, plan)
        finally:
            await served.close()
            if asked is not None:
                await asked.close()
        if not result.duels:
            raise CommandError(
                f"nothing was judged: {result.cost.failures} prompts without an answer, {result.unreadable} without a "
                f"verdict; check --url and, with --exact, that prompts have an answer"
            )
        state.quality.record(result.duels)
        state.quality.judged_at = datetime.now(UTC)
        for made in result.generations:
            state.energy_model.observe(
                made.key, made.level, prompt_tokens=made.prompt_tokens, output_tokens=made.output_tokens
            )
        state.save(arguments.state)
        summary = {
            "judged": len(result.duels),
            "verdicts": {f"{name} {SPROUT_LEVELS.ids[n]}": str(v) for (name, n), v in result.verdicts.items()},
            "spared": result.spared,
            "inconsistent": result.inconsistent,
            "unreadable": result.unreadable,
            "ended_by": result.ended_by,
            "generation": asdict(result.cost),
            "judge": asdict(judge.cost) if isinstance(judge, ModelJudge) else None,
        }
        if arguments.json:
            _print_json(summary)
            return 0
        cost = judge.cost if isinstance(judge, ModelJudge) else None
        _print_lines(evaluation_lines(result, state.quality, SPROUT_LEVELS.ids, cost))
        return 0

    return asyncio.run(run())


def _key(variable: str | None) -> str | None:
    if variable is None:
        return None
    value = os.environ.get(variable)
    if not value:
        raise CommandError(f"the environment variable {variable} is empty or not set")
    return value


def _report(arguments: argparse.Namespace) -> int:
    from carbon.reports import read_ledger, report
    from carbon.text import report_lines

    if not arguments.ledger.is_file():
        raise CommandError(f"{arguments.ledger}: no such file")
    try:
        lines = report(read_ledger(arguments.ledger), arguments.by)
    except ValueError as error:
        raise CommandError(str(error)) from None
    if arguments.json:
        _print_json([asdict(line) | {"total_g": line.total_g} for line in lines])
        return 0
    _print_lines(report_lines(lines, arguments.by))
    missing = sum(line.without_energy + line.without_intensity for line in lines)
    if missing:
        print(f"{missing} requests lack energy or intensity and are not in the grams", file=sys.stderr)
    return 0


def _print_lines(lines: Iterable[str]) -> None:
    for line in lines:
        print(line)


def _print_json(value: Any) -> None:
    def plain(item: Any) -> Any:
        if isinstance(item, datetime):
            return item.isoformat()
        if isinstance(item, timedelta):
            return item.total_seconds()
        return str(item)

    print(json.dumps(value, indent=2, default=plain))
