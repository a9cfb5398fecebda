"""Reports: recorded requests by hour, day or tenant, as a table, CSV or a page to file."""

from __future__ import annotations

import csv
import html
import io
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from dashboard.schema_records import RequestRecord
from dashboard.views.formats import clock, count, grams, joules, number
from dashboard.views.requests import total_grams

SPANS = {"Last hour": 3600.0, "Last 24 hours": 86400.0, "Last 7 days": 7 * 86400.0}
FORMULA_SIGNS = ("=", "+", "-", "@", "\t", "\r")
HEADER = (
    "Group", "Requests", "Output tokens", "Energy (J)", "Requests without joules", "J per output token",
    "CO2e (g)", "Requests without grams", "How",
)  # fmt: skip


@dataclass(frozen=True)
class Line:
    """Sums over what is known; how many requests are not in them stands beside. Null: known of none."""

    group: str
    requests: int
    tokens: int
    energy_j: float | None
    without_energy: int
    j_per_token: float | None
    co2e_g: float | None
    without_grams: int
    methods: str


def _hour(record: RequestRecord) -> str:
    return datetime.fromtimestamp(record.arrived_unix_s, UTC).strftime("%Y-%m-%d %H:00")


def _day(record: RequestRecord) -> str:
    return datetime.fromtimestamp(record.arrived_unix_s, UTC).strftime("%Y-%m-%d")


GROUPS: dict[str, Callable[[RequestRecord], str]] = {
    "Hour": _hour,
    "Day": _day,
    "Tenant": lambda record: record.tenant or "(none)",
    "Class": lambda record: record.task_class or "(none)",
    "Directive": lambda record: record.directive or "(none)",
}


def lines(records: Iterable[RequestRecord], group: str) -> list[Line]:
    """`group`: a key of `GROUPS`. The last line is the total."""
    grouped: dict[str, list[RequestRecord]] = defaultdict(list)
    everything = list(records)
    for record in everything:
        grouped[GROUPS[group](record)].append(record)
    made = [_line(name, rows) for name, rows in sorted(grouped.items())]
    return [*made, _line("Total", everything)] if everything else []


def _line(name: str, records: Sequence[RequestRecord]) -> Line:
    with_energy = [r for r in records if r.energy_j is not None]
    energy_j = sum(r.energy_j or 0.0 for r in with_energy) if with_energy else None
    charged = [total for total in map(total_grams, records) if total is not None]
    tokens = sum(r.completion_tokens or 0 for r in with_energy)
    return Line(
        group=name,
        requests=len(records),
        tokens=sum(r.completion_tokens or 0 for r in records),
        energy_j=energy_j,
        without_energy=len(records) - len(with_energy),
        j_per_token=energy_j / tokens if energy_j is not None and tokens else None,
        co2e_g=sum(charged) if charged else None,
        without_grams=len(records) - len(charged),
        methods=", ".join(sorted({r.energy_method for r in with_energy if r.energy_method})) or "missing",
    )


def rows(made: Sequence[Line]) -> list[dict[str, str]]:
    return [
        {
            "Group": line.group,
            "Requests": count(line.requests),
            "Output tokens": count(line.tokens),
            "Energy": joules(line.energy_j),
            "J per output token": number(line.j_per_token),
            "CO2e": grams(line.co2e_g),
            "Without joules": count(line.without_energy),
            "Without grams": count(line.without_grams),
            "How": line.methods,
        }
        for line in made
    ]


def cell(text: str) -> str:
    """A text a spreadsheet will not run: tenants choose their names."""
    return f"'{text}" if text.startswith(FORMULA_SIGNS) else text


def to_csv(made: Sequence[Line]) -> str:
    """Unknown is empty."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(HEADER)
    for line in made:
        figures = (line.requests, line.tokens, line.energy_j, line.without_energy, line.j_per_token)
        writer.writerow(
            [cell(line.group), *map(_cell, figures), _cell(line.co2e_g), line.without_grams, cell(line.methods)]
        )
    return out.getvalue()


def _cell(value: float | None) -> str | float:
    return "" if value is None else value


def to_html(made: Sequence[Line], title: str, since_unix_s: float, until_unix_s: float) -> str:
    """A page that stands alone and fetches nothing; every text is escaped."""
    shown = rows(made)
    head = "".join(f"<th scope='col'>{html.escape(name)}</th>" for name in (shown[0] if shown else {"No requests": ""}))
    body = "".join("<tr>" + "".join(f"<td>{html.escape(v)}</td>" for v in row.values()) + "</tr>" for row in shown)
    period = f"{clock(since_unix_s)} to {clock(until_unix_s)} UTC"
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><title>" + html.escape(title) + "</title><style>"
        "body{font:14px system-ui,sans-serif;margin:2rem}table{border-collapse:collapse}"
        "th,td{border:1px solid #cbd5e1;padding:.3rem .6rem;text-align:right}"
        "th:first-child,td:first-child{text-align:left}tr:last-child{font-weight:600}</style></head><body>"
        f"<h1>{html.escape(title)}</h1><p>{period}. Energy as attributed to requests; a dash is unknown, never zero. "
        "No saving is stated: a saving needs a counterfactual.</p>"
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></body></html>"
    )
