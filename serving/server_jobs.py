"""The server's background jobs."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from serving.composition import Parts

HOUR_S = 3600.0
DAY_S = 86_400.0


def add_jobs(parts: Parts) -> None:
    """Feeds and plan as a safety net beside the plane's own loop, forecast, budgets, keys, retention, evaluator."""
    control, jobs = parts.control, parts.jobs

    async def feeds() -> None:
        if control.carbon is not None:
            await control.carbon.chain.refresh()

    async def forecast() -> None:
        if control.carbon is not None:
            await control.carbon.chain.refresh_forecast()

    async def budgets() -> None:
        parts.budgets.roll()

    jobs.add("feeds", feeds, every_s=300.0, timeout_s=120.0, first_s=60.0, jitter_s=15.0)
    jobs.add("forecast", forecast, every_s=HOUR_S, timeout_s=300.0, first_s=120.0, jitter_s=60.0)
    jobs.add("budgets", budgets, every_s=60.0, timeout_s=10.0, first_s=60.0)
    keys, ledger = parts.options.keys, parts.ledger
    if keys is not None:

        async def key_use() -> None:
            await asyncio.to_thread(keys.save_used)

        jobs.add("keys", key_use, every_s=60.0, timeout_s=30.0, first_s=30.0)
    if ledger is not None:

        async def retention() -> None:
            await asyncio.to_thread(ledger.writer.prune, time.time_ns() // 1000)

        jobs.add("retention", retention, every_s=DAY_S, timeout_s=HOUR_S, first_s=600.0, jitter_s=300.0)
    evaluator, keeper = parts.evaluator, parts.keeper
    if evaluator is not None:
        jobs.add("evaluator", evaluator.turn, every_s=900.0, timeout_s=6 * HOUR_S, first_s=60.0, jitter_s=30.0)
    if keeper is not None:

        async def prompts() -> None:
            if not control.keeps_prompts and control.applied is not None:
                await keeper.forget_all()

        jobs.add("prompts", prompts, every_s=HOUR_S, timeout_s=60.0, first_s=30.0)
    if parts.options.learned is not None:

        async def learned() -> None:
            await asyncio.to_thread(control.save_learned)

        jobs.add("learned", learned, every_s=60.0, timeout_s=30.0, first_s=60.0)
