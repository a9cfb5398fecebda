"""Feeds, jobs, ledger, alarms and keys."""

from __future__ import annotations

from collections.abc import Sequence

from dashboard.schema_access import KeyInfo
from dashboard.schema_state import Alarm, FeedHealthState, JobState, LedgerState
from dashboard.views.formats import UNKNOWN, ago, clock, count, duration, seconds

SCOPES = {
    "inference": "send requests",
    "metrics:read": "read metrics",
    "control:read": "viewer",
    "control:write": "operator",
    "admin": "admin",
}
EXPIRIES = {"30 days": 30 * 86400.0, "90 days": 90 * 86400.0, "1 year": 365 * 86400.0, "never": None}


def feed_rows(feeds: Sequence[FeedHealthState], now_unix_s: float) -> list[dict[str, str]]:
    return [
        {
            "Feed": feed.name,
            "State": "live" if feed.last_error is None and feed.last_success_unix_s is not None else "stale",
            "Last answer": ago(feed.last_success_unix_s, now_unix_s),
            "Failures in a row": count(feed.failures),
            "Last error": feed.last_error or "",
            "Not asked before (UTC)": clock(feed.not_before_unix_s),
        }
        for feed in feeds
    ]


def job_rows(jobs: Sequence[JobState], now_unix_s: float) -> list[dict[str, str]]:
    return [
        {
            "Job": job.name,
            "Every": duration(job.every_s),
            "Last success": ago(job.last_success_unix_s, now_unix_s),
            "Next run (UTC)": clock(job.next_run_unix_s),
            "Runs": count(job.runs),
            "Failures": count(job.failures),
            "Last error": job.last_error or "",
        }
        for job in jobs
    ]


def ledger_facts(ledger: LedgerState) -> dict[str, str]:
    return {
        "Where": ledger.location,
        "Rows written": count(ledger.written_rows),
        "Rows waiting": count(ledger.queued_rows),
        "Rows refused or rejected": f"{count(ledger.refused_rows)}, {count(ledger.rejected_rows)}",
        "Samples written": count(ledger.written_samples),
        "Samples dropped": count(ledger.dropped_samples),
        "Last commit took": seconds(ledger.last_commit_s),
    }


def alarm_rows(alarms: Sequence[Alarm], now_unix_s: float) -> list[dict[str, str]]:
    return [
        {"From": alarm.source, "What": alarm.text, "First seen": ago(alarm.since_unix_s, now_unix_s)}
        for alarm in alarms
    ]


def key_rows(keys: Sequence[KeyInfo], now_unix_s: float) -> list[dict[str, str]]:
    return [
        {
            "Key": key.key_id,
            "Name": key.name,
            "Kind": key.kind,
            "Scopes": ", ".join(key.scopes),
            "Created (UTC)": clock(key.created_unix_s),
            "Expires (UTC)": "never" if key.expires_unix_s is None else clock(key.expires_unix_s),
            "Last used": ago(key.last_used_unix_s, now_unix_s),
            "Requests a minute": UNKNOWN if key.requests_per_minute is None else count(key.requests_per_minute),
        }
        for key in keys
    ]
