"""What works on this host, and how to mend what does not. Each check is one function; none changes anything."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import sqlite3
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

GIB = 1024**3
MIN_FREE_BYTES = 2 * GIB
FEED_TIMEOUT_S = 15.0

State = Literal["ok", "warning", "problem"]


@dataclass(frozen=True, slots=True)
class Check:
    """`found`: what is so. `fix`: what to do about it; None where nothing is to be done."""

    name: str
    state: State
    found: str
    fix: str | None = None


@dataclass(frozen=True, slots=True)
class Subject:
    """What is looked at beside the host: the options `serve` would be given."""

    model: str
    policy: Path | None = None
    powerd: Path | None = None
    ledger: Path | None = None
    host: str = "127.0.0.1"
    ports: tuple[int, ...] = (8000, 9000)


def examine(subject: Subject) -> Iterator[Check]:
    """Every check in turn. One that fails itself is a problem, never the end of the others."""
    steps: tuple[Callable[[Subject], Iterator[Check]], ...] = (
        check_python,
        check_kernels,
        check_devices,
        check_powerd,
        check_policy,
        check_model,
        check_traces,
        check_sqlite,
        check_disk,
        check_ports,
    )
    for step in steps:
        try:
            yield from step(subject)
        except Exception as error:  # noqa: BLE001 - a doctor reports what it meets
            name = step.__name__.removeprefix("check_")
            yield Check(name, "problem", f"the check itself failed: {type(error).__name__}: {error}")


def check_python(_subject: Subject) -> Iterator[Check]:
    import torch

    version = ".".join(map(str, sys.version_info[:3]))
    yield Check("python", "ok", f"Python {version}, torch {torch.__version__}, {os.cpu_count()} CPUs")


def check_kernels(_subject: Subject) -> Iterator[Check]:
    import torch

    from kernels import cpu_status

    status = cpu_status()
    if status.native:
        yield Check("cpu kernels", "ok", f"compiled for {status.instruction_set}, {status.threads} threads")
    else:
        fix = "install g++ 10 or later and run `python -m kernels.build`"
        yield Check("cpu kernels", "warning", f"torch runs them, several times slower: {status.reason}", fix)
    if torch.cuda.is_available():
        yield Check("gpu kernels", "ok", f"CUDA on {torch.cuda.get_device_name(0)}; Triton kernels are used")
    else:
        yield Check("gpu kernels", "ok", "no CUDA device; the model runs on the CPU")


def check_devices(_subject: Subject) -> Iterator[Check]:
    from power.device import Capability, DeviceError, PowerDevice
    from power.nvml import NvmlDevice, visible_uuids
    from power.rapl import open_rapl

    devices: list[PowerDevice] = []
    try:
        devices = [NvmlDevice(uuid) for uuid in visible_uuids()]
    except DeviceError as error:
        yield Check(
            "gpu power", "warning", f"NVML gives nothing: {error}", "without a GPU use --device simulated:h100-sxm"
        )
    if devices:
        for device in devices:
            info = device.info
            can = ", ".join(sorted(capability.value for capability in info.capabilities))
            note = "; ".join(info.notes)
            state: State = "ok" if info.can(Capability.CLOCKS) else "warning"
            fix = None if state == "ok" else "start gridserve-powerd: clocks need its privileges"
            yield Check("gpu power", state, f"{info.name}: {can}{'; ' + note if note else ''}", fix)
            device.close()
        return
    rapl, why = open_rapl()
    if rapl is not None:
        yield Check("cpu power", "ok", f"{rapl.info.name} can be read")
        rapl.close()
    else:
        fix = (
            "let the server's user read /sys/class/powercap (chmod or a udev rule), or use --device simulated:h100-sxm"
        )
        yield Check("cpu power", "warning", f"no CPU energy: {why}", fix)


def check_powerd(subject: Subject) -> Iterator[Check]:
    from power.client import ActuatorUnavailableError, PowerdClient
    from power.powerd import DEFAULT_SOCKET

    path = subject.powerd or DEFAULT_SOCKET
    try:
        status = PowerdClient(path, holder="doctor").status()
    except (ActuatorUnavailableError, ValueError) as error:
        state: State = "problem" if subject.powerd is not None else "warning"
        yield Check("powerd", state, str(error), "only needed to control real clocks; see docs/operations.md")
        return
    held = f", held: {status.hold.reason}" if status.hold is not None else ""
    holder = status.lease.holder if status.lease is not None else "nobody"
    yield Check("powerd", "ok", f"answers at {path}: {len(status.devices)} devices, lease with {holder}{held}")


def check_policy(subject: Subject) -> Iterator[Check]:
    from serving.policy.load import load_policy
    from serving.policy.problems import PolicyError

    if subject.policy is None:
        yield Check("policy", "ok", "none given; the server would only measure")
        return
    try:
        loaded = load_policy(subject.policy)
    except (PolicyError, OSError) as error:
        yield Check("policy", "problem", str(error), f"mend it: gridserve policy check {subject.policy}")
        return
    yield Check("policy", "ok", f"{loaded.policy.metadata.name}, mode {loaded.policy.spec.mode}")
    for warning in loaded.warnings:
        yield Check("policy", "warning", str(warning))
    carbon = loaded.policy.spec.carbon
    if carbon is None:
        return
    from datetime import UTC, datetime

    from serving.planes_carbon import build_chain

    try:
        chain = build_chain(carbon, Path(), lambda: datetime.now(UTC))
    except ValueError as error:
        yield Check("feeds", "problem", str(error), "set the variable it names, or take the feed out of the policy")
        return

    async def ask() -> None:
        try:
            async with asyncio.timeout(FEED_TIMEOUT_S):
                await chain.refresh()
        except TimeoutError:
            pass
        finally:
            await chain.close()

    asyncio.run(ask())
    reading = chain.reading()
    for health in chain.health:
        if health.last_error is not None:
            fix = "check network, key and zone; the chain goes on with the next feed"
            yield Check("feeds", "warning", f"{health.name}: {health.last_error}", fix)
    if reading.g_per_kwh is None:
        fix = "without one grams are unknown; add a feed, or zone_mean_g_per_kwh as a last resort"
        yield Check("feeds", "problem", f"no intensity for {carbon.zone}: {reading.reason}", fix)
    else:
        yield Check("feeds", "ok", f"{carbon.zone}: {reading.g_per_kwh:g} g/kWh, {reading.tier}")


def check_model(subject: Subject) -> Iterator[Check]:
    from engine.model_store import list_models

    known = next((model for model in list_models() if model.name == subject.model), None)
    path = known.path if known is not None else Path(subject.model).expanduser()
    if path is not None and path.exists():
        yield Check("model", "ok", f"{subject.model} is at {path}")
        return
    fix = f"it is fetched at the first start; to do it now: gridserve models pull {subject.model}"
    yield Check("model", "warning", f"{subject.model} is not on this machine", fix)


def check_traces(_subject: Subject) -> Iterator[Check]:
    from serving.tracing_options import asked_by, installed, problem_of

    if not asked_by(os.environ):
        yield Check("traces", "ok", f"none asked for; OpenTelemetry is {'' if installed() else 'not '}installed")
        return
    problem = problem_of(None, os.environ)
    if problem is None:
        yield Check("traces", "ok", "exported as the OTEL_* variables say")
    else:
        yield Check("traces", "warning", f"the environment asks for traces: {problem}", "mend it, or unset OTEL_*")


def check_sqlite(_subject: Subject) -> Iterator[Check]:
    from serving.ledger.engine import ENVIRONMENT, LedgerError, sqlite_module

    if os.environ.get(ENVIRONMENT):
        yield Check("ledger", "ok", f"{ENVIRONMENT} is set: PostgreSQL holds the ledger")
        return
    try:
        module = sqlite_module()
    except LedgerError as error:
        yield Check("ledger", "problem", str(error), "pip install pysqlite3")
        return
    yield Check("ledger", "ok", f"SQLite {module.sqlite_version} (the system's is {sqlite3.sqlite_version})")


def check_disk(subject: Subject) -> Iterator[Check]:
    folder = subject.ledger or Path.home()
    while not folder.exists():
        folder = folder.parent
    if not os.access(folder, os.W_OK):
        yield Check("disk", "problem", f"{folder} cannot be written", "choose another --ledger, or mend its owner")
        return
    free = shutil.disk_usage(folder).free
    state: State = "ok" if free >= MIN_FREE_BYTES else "warning"
    fix = None if state == "ok" else "free some: a full disk stops telemetry first, then the ledger"
    yield Check("disk", state, f"{free / GIB:.1f} GiB free at {folder}", fix)


def check_ports(subject: Subject) -> Iterator[Check]:
    family = socket.AF_INET6 if ":" in subject.host else socket.AF_INET
    for port in subject.ports:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((subject.host, port))
            except OSError as error:
                fix = "another server may run there; choose another with --port or --admin-port"
                yield Check("ports", "problem", f"{subject.host}:{port}: {error.strerror}", fix)
            else:
                yield Check("ports", "ok", f"{subject.host}:{port} is free")
