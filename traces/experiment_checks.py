"""A run that does not add up is no result: every request has an end, every joule an owner."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from traces.record import Outcome
from traces.record_table import RecordTable
from traces.simulate import SimulationOutcome

CLOSES_WITHIN = 1e-6


def check_outcome(outcome: SimulationOutcome) -> None:
    """Raises `ValueError` listing everything that is wrong with a run."""
    if problems := list(problems_of(outcome)):
        raise ValueError("the run does not add up: " + "; ".join(problems))


def problems_of(outcome: SimulationOutcome) -> list[str]:
    result, figures = outcome.result, outcome.figures
    problems = []
    submitted = figures["submitted"]
    table = RecordTable.of(result.records)
    if not np.array_equal(table.column("index"), np.arange(submitted)):
        problems.append(f"{submitted} requests were offered, {len(table)} have an end")
    completed = table.of_outcome(Outcome.COMPLETED)
    lost = int((~completed & ~table.of_outcome(Outcome.DROPPED)).sum())
    if lost:
        problems.append(f"{lost} requests neither completed nor were dropped with a reason")
    short = int((completed & (table.column("output_tokens") != table.column("requested_output_tokens"))).sum())
    if short:
        problems.append(f"{short} answers have another length than asked for")
    device = result.device
    if device is None:
        return [*problems, "no energy of the device"]
    requests_j = math.fsum(np.nan_to_num(table.column("energy_j")))
    claimed = requests_j + (device.idle_j or 0.0) + (device.unattributed_j or 0.0)
    if not math.isclose(claimed, device.energy_j, rel_tol=CLOSES_WITHIN):
        problems.append(f"requests and idle are {claimed:.6g} J, the device drew {device.energy_j:.6g} J")
    timeline_j = float(outcome.timeline.column("energy_j").sum())
    if not math.isclose(timeline_j, device.energy_j, rel_tol=CLOSES_WITHIN):
        problems.append(f"the timeline holds {timeline_j:.6g} J, the device drew {device.energy_j:.6g} J")
    if figures["alarms"]:
        problems.append(f"the controller raised {figures['alarms']} alarms")
    return problems


def check_equal_load(rows: Sequence[Mapping[str, Any]]) -> None:
    """Policies may only be compared on the same requests: raises `ValueError` where they met different ones."""
    offered: dict[tuple[Any, ...], tuple[str, int]] = {}
    for row in rows:
        point = (row["trace"], row["variant"], row["zone"], row["seed"])
        before = offered.setdefault(point, (row["policy"], row["submitted"]))
        if before[1] != row["submitted"]:
            raise ValueError(
                f"{point}: {row['policy']} was offered {row['submitted']} requests, {before[0]} {before[1]}"
            )
