"""Reports over ledger rows: by hour, tenant, model, class or directive, with what is unknown counted and not hidden."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from carbon.accounting import PhaseUse, SciScore, sci
from carbon.intensity import as_utc

DIMENSIONS = ("hour", "tenant", "model", "class", "directive", "tier")


@dataclass(frozen=True, slots=True)
class LedgerRow:
    """One request as a report needs it; None where the ledger does not know."""

    finished_at: datetime
    tenant: str
    model: str
    prompt_class: str
    directive: str
    tier: str
    prompt_tokens: int
    output_tokens: int
    energy_j: float | None = None
    prefill_j: float | None = None
    decode_j: float | None = None
    operational_g: float | None = None
    market_g: float | None = None
    embodied_g: float | None = None


@dataclass(frozen=True, slots=True)
class ReportLine:
    """Sums over known figures. `without_energy`, `without_intensity`: requests that are missing from them."""

    key: tuple[str, ...]
    requests: int
    prompt_tokens: int
    output_tokens: int
    energy_j: float
    operational_g: float
    market_g: float | None
    embodied_g: float
    without_energy: int
    without_intensity: int
    sci: SciScore

    @property
    def total_g(self) -> float:
        return self.operational_g + self.embodied_g


@dataclass(slots=True)
class _Group:
    rows: list[LedgerRow] = field(default_factory=list)

    def line(self, key: tuple[str, ...]) -> ReportLine:
        rows = self.rows
        operational = math.fsum(row.operational_g for row in rows if row.operational_g is not None)
        embodied = math.fsum(row.embodied_g for row in rows if row.embodied_g is not None)
        market = [row.market_g for row in rows if row.market_g is not None]
        known = [row for row in rows if row.operational_g is not None]
        phases = [PhaseUse(row.prompt_tokens, row.output_tokens, row.prefill_j, row.decode_j) for row in known]
        grams = math.fsum((row.operational_g or 0.0) + (row.embodied_g or 0.0) for row in known)
        return ReportLine(
            key=key,
            requests=len(rows),
            prompt_tokens=sum(row.prompt_tokens for row in rows),
            output_tokens=sum(row.output_tokens for row in rows),
            energy_j=math.fsum(row.energy_j for row in rows if row.energy_j is not None),
            operational_g=operational,
            market_g=math.fsum(market) if market else None,
            embodied_g=embodied,
            without_energy=sum(row.energy_j is None for row in rows),
            without_intensity=sum(row.operational_g is None and row.energy_j is not None for row in rows),
            sci=sci(grams, len(known), phases),
        )


def report(rows: Iterable[LedgerRow], by: Sequence[str]) -> list[ReportLine]:
    """One line for each combination of `by`, in ascending order. Raises `ValueError` for an unknown dimension."""
    unknown = [name for name in by if name not in DIMENSIONS]
    if unknown:
        raise ValueError(f"cannot report by {unknown[0]!r}; choose from {', '.join(DIMENSIONS)}")
    groups: dict[tuple[str, ...], _Group] = {}
    for row in rows:
        groups.setdefault(tuple(_value(row, name) for name in by), _Group()).rows.append(row)
    return [groups[key].line(key) for key in sorted(groups)]


def _value(row: LedgerRow, dimension: str) -> str:
    if dimension == "hour":
        return as_utc(row.finished_at).strftime("%Y-%m-%dT%H:00Z")
    values = {
        "tenant": row.tenant,
        "model": row.model,
        "class": row.prompt_class,
        "directive": row.directive,
        "tier": row.tier,
    }
    return values[dimension]


def read_ledger(path: Path) -> list[LedgerRow]:
    """Rows of a CSV with header or of JSON lines (by suffix `.jsonl`), columns named as the fields of `LedgerRow`.

    An empty or missing figure is unknown. Raises `ValueError` naming the row for anything else that does not fit.
    """
    with path.open(encoding="utf-8-sig", newline="") as file:
        if path.suffix == ".jsonl":
            rows: Iterable[Mapping[str, Any]] = [json.loads(line) for line in file if line.strip()]
        else:
            rows = list(csv.DictReader(file))
    found = []
    for number, row in enumerate(rows, start=1):
        try:
            found.append(_ledger_row(row))
        except (KeyError, TypeError, ValueError) as error:
            name = f"no column {error}" if isinstance(error, KeyError) else str(error)
            raise ValueError(f"{path} row {number}: {name}") from None
    return found


def _ledger_row(row: Mapping[str, Any]) -> LedgerRow:
    return LedgerRow(
        finished_at=as_utc(datetime.fromisoformat(str(row["finished_at"]))),
        tenant=str(row.get("tenant") or ""),
        model=str(row.get("model") or ""),
        prompt_class=str(row.get("prompt_class") or ""),
        directive=str(row.get("directive") or ""),
        tier=str(row.get("tier") or ""),
        prompt_tokens=int(row["prompt_tokens"]),
        output_tokens=int(row["output_tokens"]),
        energy_j=_figure(row, "energy_j"),
        prefill_j=_figure(row, "prefill_j"),
        decode_j=_figure(row, "decode_j"),
        operational_g=_figure(row, "operational_g"),
        market_g=_figure(row, "market_g"),
        embodied_g=_figure(row, "embodied_g"),
    )


def _figure(row: Mapping[str, Any], name: str) -> float | None:
    if row.get(name) in (None, ""):
        return None
    value = float(row[name])
    if not (math.isfinite(value) and value >= 0.0):
        raise ValueError(f"{name} must be at least 0, got {row[name]}")
    return value
