"""What would the recorded traffic have cost under another policy? The ledger's window through the simulator.

Both policies run through the same simulation, in a process of its own (`serving.what_if_run`), as if enforced; compare
them with each other rather than with what was measured.
"""

from __future__ import annotations

import asyncio
import math
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec

import serving
from carbon.energy_model import EnergyModel
from carbon.quality_book import QualityBook
from power.simulated import SimulatedDevice
from serving.admin_context import AdminContext
from serving.admin_schema.policy import WhatIfOutcome
from serving.ledger.reader import LedgerReader
from serving.planes import power_in_force
from serving.planes_carbon import SteeredCarbonPlane, carbon_settings
from serving.policy.effective import Situation, effective
from serving.policy.model import Policy
from serving.policy_simulation import translated
from serving.what_if_run import Asked, Mixes, Question, Variant, shape_fields

MAX_REQUESTS = 20_000
MAX_WINDOW_S = 7 * 86_400.0
TIMEOUT_S = 120.0
HISTORY_TIMEOUT_S = 10.0
MONTH = timedelta(days=30)
DEFAULT_GPU = "h100-sxm"


class WhatIfError(Exception):
    """It cannot be answered; the message says why. `busy`: another one runs."""

    def __init__(self, text: str, *, busy: bool = False) -> None:
        super().__init__(text)
        self.busy = busy


@dataclass(frozen=True, slots=True)
class Answered:
    in_force: WhatIfOutcome
    proposed: WhatIfOutcome
    notes: tuple[str, ...]

    @property
    def both(self) -> tuple[WhatIfOutcome, WhatIfOutcome]:
        return self.in_force, self.proposed


class WhatIf:
    """One at a time: a simulation takes a core."""

    def __init__(self, context: AdminContext) -> None:
        self._context = context
        self._running = asyncio.Lock()

    async def ask(self, proposed: Policy, window_s: float, gpu: str | None) -> Answered:
        """Raises `WhatIfError`, or `ValueError` for a window or a policy that cannot be simulated."""
        control = self._context.control
        if not 1.0 <= window_s <= MAX_WINDOW_S:
            raise ValueError(f"window_s must be from 1 to {MAX_WINDOW_S:.0f} seconds")
        if control.active is None:
            raise WhatIfError("the server runs without a policy file; start it with --policy FILE")
        if control.ledger is None:
            raise WhatIfError("no ledger is kept, so there is no traffic to replay; start with --ledger FOLDER")
        if control.shape is None:
            raise WhatIfError("the shape of the served model is not known here")
        if self._running.locked():
            raise WhatIfError("another what-if runs; ask again when it is done", busy=True)
        async with self._running:
            return await self._ask(control.ledger.reader, control.active.policy, proposed, window_s, gpu)

    async def _ask(
        self, reader: LedgerReader, in_force: Policy, proposed: Policy, window_s: float, gpu: str | None
    ) -> Answered:
        now_s, info, control = time.time(), self._context.service.engine.info, self._context.control
        asked, started_s, notes = await asyncio.to_thread(recorded, reader, now_s - window_s, now_s)
        if not asked:
            raise WhatIfError(f"no request with tokens was recorded in the last {window_s:.0f} s")
        intensity, source = await self._intensity(reader, started_s, now_s)
        if not intensity:
            notes.append("the intensity of the window is not known: grams stay unknown")
        elif intensity[0][0] > started_s:
            intensity = [(started_s - 3600.0, intensity[0][0], intensity[0][2]), *intensity]
            notes.append(
                "the window begins before the first known intensity, which is taken for the time before it too"
            )
        same = proposed.spec.directives == in_force.spec.directives
        variants = [await self._variant(in_force, True, notes), await self._variant(proposed, same, notes)]
        assert control.shape is not None
        question = Question(
            gpu=gpu or self._gpu(notes),
            shape=shape_fields(control.shape),
            started_unix_s=started_s,
            requests=asked,
            variants=variants,
            max_num_seqs=info.max_num_seqs,
            max_model_len=max(info.max_model_len, *(one.input_tokens + one.output_tokens for one in asked)),
            intensity=whole_hours(intensity),
            intensity_source=source,
        )
        first, second = await answered(question)
        notes.insert(
            0, f"{len(asked)} requests on profile {question.gpu} with {control.shape.name}; both as if enforced"
        )
        return Answered(first, second, tuple(dict.fromkeys(notes)))

    def _gpu(self, notes: list[str]) -> str:
        power = self._context.control.power
        device = power.devices[0] if power is not None else None
        if isinstance(device, SimulatedDevice):
            return device.twin.gpu.name
        notes.append(f"no power profile is known for the device that serves: simulated on {DEFAULT_GPU}")
        return DEFAULT_GPU

    async def _variant(self, policy: Policy, same_directives: bool, notes: list[str]) -> Variant:
        spec, carbon = policy.spec, self._context.control.carbon
        power = spec.power
        if spec.rules:
            reading = carbon.reading() if carbon is not None else None
            found = effective(policy, Situation(datetime.now(UTC), g_per_kwh=reading.g_per_kwh if reading else None))
            power = power_in_force(power, found)
            notes.append("rules are taken as they hold now, for the whole window")
        made = translated(policy, power=power, directives=False)
        mixes = None
        if not same_directives:
            mixes = await self._mixes(policy, notes)
        return Variant(policy.revision, made.policy, made.slo, made.pue, mixes)

    async def _mixes(self, policy: Policy, notes: list[str]) -> Mixes | None:
        """What the proposed directives would choose now, from what the plane has learned."""
        plane = self._context.control.carbon
        if plane is None or policy.spec.carbon is None or policy.spec.directives is None:
            notes.append("answers keep their recorded lengths: without spec.carbon and directives none is chosen anew")
            return None
        settings = carbon_settings(policy, enforce=True)
        alike = len(settings.levels) == plane.energy_model.levels
        if not alike:
            notes.append("the proposed policy has another number of levels: nothing is known of them yet")
        trial = SteeredCarbonPlane(
            settings,
            plane.chain,
            classifier=plane.classifier,
            bands=plane.bands,
            energy_model=plane.energy_model if alike else EnergyModel(len(settings.levels)),
            quality=plane.quality if alike else QualityBook(len(settings.levels)),
        )
        await trial.replan()
        plan = trial.plan
        if plan is None:
            return None
        notes.extend(f"directives: {note}" for note in plan.notes)
        notes.append("directives are those the proposed policy would choose now; their lengths are estimated")
        shares: dict[str, tuple[float, ...]] = {}
        lengths: dict[str, tuple[float, ...]] = {}
        for key, mix in plan.mixes.items():
            name = "" if key == "unknown" else key.partition("/")[0]
            shares.setdefault(name, tuple(mix.probabilities))
            lengths.setdefault(name, relative_lengths(trial.energy_model, key))
        return Mixes(tuple(settings.levels.ids), shares, lengths)

    async def _intensity(
        self, reader: LedgerReader, since_s: float, until_s: float
    ) -> tuple[list[tuple[float, float, float]], str]:
        """The feeds' own past where one tells it, else the ledger's record of them and the present value."""
        plane = self._context.control.carbon
        if plane is None:
            return [], ""
        since, until = datetime.fromtimestamp(since_s, UTC), datetime.fromtimestamp(until_s, UTC)
        try:
            async with asyncio.timeout(HISTORY_TIMEOUT_S):
                series = await plane.chain.history(since - MONTH, until + timedelta(hours=1))
        except TimeoutError:
            series = None
        if series:
            points = [(one.start.timestamp(), one.end.timestamp(), one.g_per_kwh) for one in series]
            if points[-1][1] > since_s:
                return points, series[0].source
        rows = await asyncio.to_thread(
            reader.feed_values, plane.chain.zone, round((since_s - 86_400) * 1e6), round(until_s * 1e6)
        )
        known = {
            row["start_us"] / 1e6: (row["start_us"] / 1e6, row["end_us"] / 1e6, row["g_per_kwh"])
            for row in rows
            if row["kind"] != "forecast"
        }
        value = plane.reading().intensity
        if value is not None and value.end > since:
            start_s = max(value.start.timestamp(), since_s - 3600.0)
            known.setdefault(start_s, (start_s, min(value.end.timestamp(), until_s + 3600.0), value.g_per_kwh))
        return [known[start] for start in sorted(known)], "ledger"


def recorded(reader: LedgerReader, since_s: float, until_s: float) -> tuple[list[Asked], float, list[str]]:
    """`(requests, their zero, notes)`: finished requests of the window, oldest first; one with `n` choices is `n`."""
    rows: list[Mapping[str, Any]] = []
    before: tuple[int, str] | None = None
    while len(rows) < MAX_REQUESTS:
        page = reader.requests(since_us=round(since_s * 1e6), until_us=round(until_s * 1e6), before=before, limit=1000)
        rows += page
        if len(page) < 1000:
            break
        before = (page[-1]["arrived_us"], page[-1]["request_id"])
    notes = []
    if len(rows) >= MAX_REQUESTS:
        rows = rows[:MAX_REQUESTS]
        notes.append(f"only the newest {MAX_REQUESTS} requests of the window are replayed")
    usable = [row for row in rows if row["prompt_tokens"] and row["completion_tokens"]]
    if len(usable) < len(rows):
        notes.append(f"{len(rows) - len(usable)} requests without tokens are left out")
    if any(row["cached_tokens"] for row in usable):
        notes.append("prompts are computed in full: which prefixes were shared is not on record")
    if not usable:
        return [], since_s, notes
    usable.reverse()
    zero_s = usable[0]["arrived_us"] / 1e6
    asked = []
    for row in usable:
        choices = max(1, row["choices"] or 1)
        tokens = max(1, round(row["completion_tokens"] / choices))
        arrival_s = row["arrived_us"] / 1e6 - zero_s
        asked += [Asked(arrival_s, row["prompt_tokens"], tokens, row["task_class"], row["directive"])] * choices
    return asked, zero_s, notes


def whole_hours(points: list[tuple[float, float, float]]) -> list[tuple[float, float, float]]:
    """The simulator reads hourly means: the first and the last value reach to the hour's end."""
    if not points:
        return []
    (start, first_end, first), (last_start, end, last) = points[0], points[-1]
    whole = [(math.floor(start / 3600) * 3600.0, first_end, first), *points[1:]]
    last_start = whole[-1][0]
    whole[-1] = (last_start, max(end, math.ceil(end / 3600) * 3600.0), last)
    return whole


def relative_lengths(model: EnergyModel, key: str) -> tuple[float, ...]:
    """Expected length of each level as a share of L0's."""
    known = model.lengths(key)
    if known is None:
        unseen = EnergyModel(model.levels)
        unseen.observe(key, 0, prompt_tokens=1, output_tokens=1000)
        known = unseen.lengths(key) or (1.0,)
    return tuple(length / known[0] if known[0] > 0 else 1.0 for length in known)


async def answered(question: Question) -> tuple[WhatIfOutcome, WhatIfOutcome]:
    """Run it in a process of its own. Raises `WhatIfError`."""
    root = str(Path(serving.__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "serving.what_if_run",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environment,
    )
    try:
        async with asyncio.timeout(TIMEOUT_S):
            out, complaint = await process.communicate(msgspec.json.encode(question))
    except TimeoutError:
        raise WhatIfError(f"the simulation took more than {TIMEOUT_S:.0f} s; ask for a shorter window") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        lines = complaint.decode(errors="replace").strip().splitlines() or ["it ended without a word"]
        raise WhatIfError(f"the simulation failed: {lines[-1]}")
    first, second = msgspec.json.decode(out, type=list[WhatIfOutcome])
    return first, second
