"""Whether traces are asked for, and where they go: by a flag, or by OpenTelemetry's own environment variables."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

logger = logging.getLogger(__name__)

REMEDY = "pip install 'gridserve[otel]'"
PROTOCOL = "http/protobuf"
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")


@dataclass(frozen=True, slots=True)
class TracingOptions:
    """`endpoint`: the URL spans are posted to; None leaves it to the environment."""

    endpoint: str | None = None


def installed() -> bool:
    """Whether the extra `otel` is there."""
    try:
        return all(importlib.util.find_spec(f"opentelemetry.{name}") for name in ("sdk", "exporter.otlp.proto.http"))
    except ModuleNotFoundError:
        return False


def tracing_options(
    flag: str | None, environment: Mapping[str, str], installed: Callable[[], bool] = installed
) -> TracingOptions | None:
    """None where nobody asks. Raises `ValueError` when the flag asks for what cannot be done.

    What the environment asks for and cannot be had is logged, and requests are served without traces: such variables
    are often set for every process of a cluster.
    """
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return None
    if flag is not None:
        problem = problem_of(flag, environment, installed)
        if problem is not None:
            raise ValueError(f"--otlp-traces-endpoint: {problem}")
        return TracingOptions(flag)
    if not asked_by(environment):
        return None
    problem = problem_of(None, environment, installed)
    if problem is not None:
        logger.warning("the environment asks for traces, but there will be none: %s", problem)
        return None
    return TracingOptions()


def asked_by(environment: Mapping[str, str]) -> bool:
    exporter = environment.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    return exporter != "none" and bool(exporter or any(environment.get(name) for name in _ENDPOINTS))


def problem_of(
    flag: str | None, environment: Mapping[str, str], installed: Callable[[], bool] = installed
) -> str | None:
    """Why traces cannot be exported as asked, and what to do; None where they can."""
    endpoint = flag or next((environment[name] for name in _ENDPOINTS if environment.get(name)), None)
    try:
        parts = urlsplit(endpoint or "http://localhost:4318")
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        sound = False
    if not sound:
        return f"{endpoint!r} is no URL of a collector; write it like http://localhost:4318/v1/traces"
    protocol = next((environment[name] for name in _PROTOCOLS if environment.get(name)), PROTOCOL)
    if protocol != PROTOCOL:
        return f"OTLP over {protocol} is not supported; set {_PROTOCOLS[0]}={PROTOCOL}, a collector's port 4318"
    exporter = environment.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    if flag is None and exporter not in ("", "otlp"):
        return f"OTEL_TRACES_EXPORTER={exporter} is not supported; use otlp or none"
    if not installed():
        return f"OpenTelemetry is not installed; {REMEDY}"
    return None
