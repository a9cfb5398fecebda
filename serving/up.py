"""What `gridserve up` runs on any machine: server, `powerd` and dashboard under one supervisor, and its notes on them.

A working copy of the shipped policy is put into the data folder, to be edited there. Two things differ from the
shipped file so that it works offline and at once: the intensity is a bundled synthetic series, replayed, and the
promotion gate is left out. Where no GPU can be measured the power device is simulated, so nothing real is touched:
`powerd` then sets the clocks of a simulated board; its settings lie in the data folder and outlive it as real ones do.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import importlib.util
import io
import os
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import platformdirs

import serving
import traces.data
from serving.admin_auth import TOKEN_VARIABLE
from serving.policy.load import load_policy
from serving.supervisor import Service

SERVER, POWERD, DASHBOARD = "server", "powerd", "dashboard"
# Whoever looks on takes no core from what is looked at: a tenth of its weight where both want it.
DASHBOARD_NICENESS = 10
DASHBOARD_PORT = 8501
SYSTEM_POWERD = Path("/run/gridserve/powerd.sock")
DATA_VARIABLE = "GRIDSERVE_DATA"
SIMULATED = "simulated:h100-sxm"
SERIES = "intensity_synthetic_wind.csv"
SERIES_START = "2026-01-06T00:00:00Z"
BANNER = f"""\
# A working copy for `gridserve up`: edit it here, changes take effect within a second.
# Unlike the shipped policies/follow-the-grid.yaml it replays the bundled synthetic series {SERIES}
# in place of a live feed, and it has no promotion gate.
"""


@dataclass(frozen=True, slots=True)
class Prepared:
    """`powerd`: the socket to control clocks by; `powerd_command`: what serves it, None where somebody else does.
    `notes`: what differs from a server in earnest, one line each."""

    policy: Path
    device: str
    override: str | None
    ledger: Path | None
    powerd: Path | None
    powerd_command: tuple[str, ...] | None
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Addresses:
    """Chosen once, so that a process that is started again is where it was. `dashboard` None: none runs."""

    port: int
    admin_port: int
    dashboard: int | None


def data_folder(given: Path | None) -> Path:
    """Where `up` keeps its ledger, policy and knowledge."""
    named = os.environ.get(DATA_VARIABLE)
    return given or (Path(named) if named else platformdirs.user_state_path("gridserve"))


@contextlib.contextmanager
def data_claimed(data: Path) -> Iterator[bool]:
    """Whether this process is the one `up` on the data folder, for as long as it lasts."""
    data.mkdir(parents=True, exist_ok=True)
    with (data / "up.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        yield True


def prepare(
    data: Path, run: Path, arguments: argparse.Namespace, *, alone: bool = True, system: Path = SYSTEM_POWERD
) -> Prepared:
    """Lay out the data folder. `run`: a short path for sockets. `alone`: whether no other `up` uses `data`; else no
    ledger is kept and the board's settings are this run's own. `system`: socket of a powerd that runs already.

    Raises `PolicyError` or `OSError`.
    """
    policy, device, ledger = arguments.policy, arguments.device, arguments.ledger
    notes: list[str] = []
    if device == "auto" and not gpu_visible():
        device = SIMULATED
        notes.append(f"no GPU is visible: power is that of {SIMULATED}, and every joule says simulated")
    override = None
    if policy is None:
        policy = data / "policy.yaml"
        if not policy.exists():
            policy.write_text(working_copy(), encoding="utf-8")
        override = f"working copy of follow-the-grid: replays {SERIES}, no promotion gate"
        notes.append(f"carbon intensity is the bundled synthetic series {SERIES}, replayed; no network is used")
        notes.append(f"policy {policy}: edit it, and it holds within a second")
    load_policy(policy)
    ledger = ledger or data / "ledger"
    if not alone or written_by_another(ledger):
        notes.append(f"no ledger is kept: another process writes to {ledger}; give --data or --ledger another folder")
        ledger = None
    power = (data if alone else run) / "power"
    socket_path: Path | None = arguments.powerd
    command = None
    if socket_path is None:
        device, socket_path, command = _powerd(device, run, power, system)
        if socket_path is not None and command is not None and not device.startswith("simulated"):
            notes.append("clocks and power limits of the GPU are set as the policy says, and restored at the end")
    return Prepared(policy, device, override, ledger, socket_path, command, tuple(notes))


def _powerd(device: str, run: Path, power: Path, system: Path) -> tuple[str, Path | None, tuple[str, ...] | None]:
    """`(device, socket, command)`: who sets the clocks of the device."""
    kind, _, profile = device.partition(":")
    socket_path = run / "powerd.sock"
    command: tuple[str, ...] = (sys.executable, "-m", "power.powerd", "--socket", str(socket_path))
    command += ("--state-dir", str(power), "--die-with-parent")
    if kind == "simulated":
        shared = f"{profile.partition('@')[0] or SIMULATED.partition(':')[2]}@{power / 'registers'}"
        return f"simulated:{shared}", socket_path, (*command, "--simulate", shared)
    if kind not in ("auto", "nvml"):
        return device, None, None
    if system.exists():
        return device, system, None
    return device, socket_path, command


def written_by_another(ledger: Path) -> bool:
    """Whether a process holds the writer's lock of a ledger in files."""
    try:
        with (ledger / "writer.lock").open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


OWN_OPTIONS = frozenset({"run", "data", "dashboard", "dashboard_port"})


def services(
    arguments: argparse.Namespace, prepared: Prepared, addresses: Addresses, data: Path, token: str
) -> list[Service]:
    """Server first to stop, then the dashboard, `powerd` last: what it serves is restored by then."""
    given = {name: value for name, value in vars(arguments).items() if name not in OWN_OPTIONS}
    given |= {
        "policy": prepared.policy,
        "device": prepared.device,
        "powerd": prepared.powerd,
        "ledger": prepared.ledger,
        "learned": arguments.learned or data / "learned",
        "port": addresses.port,
        "admin_port": addresses.admin_port,
        "policy_note": prepared.override,
    }
    secret = {TOKEN_VARIABLE: token}
    serve = (sys.executable, "-m", "serving.cli", "serve", *options_text(given))
    found = [Service(SERVER, serve, secret, stop_order=0, stop_s=90.0, must_start=True, reloads=True, quiet=True)]
    if prepared.powerd_command is not None:
        found.insert(0, Service(POWERD, prepared.powerd_command, stop_order=2))
    if addresses.dashboard is not None:
        command = (sys.executable, "-m", "dashboard", "--port", str(addresses.dashboard),
                   "--api", url_of(arguments.admin_host, addresses.admin_port),
                   "--inference-api", url_of(arguments.host, addresses.port))  # fmt: skip
        found.append(
            Service(DASHBOARD, command, secret, stop_order=1, stop_s=5.0, after=SERVER, niceness=DASHBOARD_NICENESS)
        )
    return found


def options_text(given: dict[str, object]) -> list[str]:
    """Parsed options as they are written on a command line."""
    words: list[str] = []
    for name, value in given.items():
        option = f"--{name.replace('_', '-')}"
        if value is True:
            words.append(option)
        elif isinstance(value, list):
            words += [word for one in value for word in (option, str(one))]
        elif value is not None and value is not False:
            words += [option, str(value)]
    return words


def choose_addresses(arguments: argparse.Namespace, admin_port: int) -> Addresses:
    """`admin_port`: the usual one. Where a usual port is taken any free one serves; a named one must be free."""
    port = arguments.port or free_port(arguments.host)
    wanted = arguments.admin_port if arguments.admin_port is not None else admin_port
    admin = wanted if arguments.admin_port else free_or(wanted, arguments.admin_host)
    dashboard = None
    if arguments.dashboard and dashboard_installed():
        dashboard = free_or(arguments.dashboard_port, "127.0.0.1") or free_port("127.0.0.1")
    return Addresses(port, admin or free_port(arguments.admin_host), dashboard)


def dashboard_installed() -> bool:
    return all(importlib.util.find_spec(name) is not None for name in ("dashboard", "streamlit"))


def url_of(host: str, port: int) -> str:
    """Where a process on this machine reaches a listener bound to `host`."""
    reached = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - a name to look up, nothing is bound
    return f"http://[{reached}]:{port}" if ":" in reached else f"http://{reached}:{port}"


def working_copy() -> str:
    """The shipped policy with a bundled series for a feed and without the gate."""
    from ruamel.yaml import YAML

    shipped = Path(serving.__file__).parents[1] / "policies" / "follow-the-grid.yaml"
    yaml = YAML()
    yaml.width = 120
    document = yaml.load(shipped.read_text(encoding="utf-8"))
    spec = document["spec"]
    spec.pop("promotion", None)
    series = Path(traces.data.__file__).with_name(SERIES)
    spec["carbon"]["feeds"] = [{"type": "csv", "path": str(series), "replay_from": SERIES_START}]
    spec["carbon"]["boundary"] = "direct"
    text = io.StringIO()
    yaml.dump(document, text)
    body = text.getvalue()
    return BANNER + body[body.index("apiVersion:") :]


def gpu_visible() -> bool:
    """Whether NVML shows a GPU to this process."""
    from power.device import DeviceError
    from power.nvml import visible_uuids

    try:
        return bool(visible_uuids())
    except (DeviceError, OSError):
        return False


def free_port(host: str) -> int:
    """A port that nobody listens on now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def free_or(port: int, host: str) -> int:
    """`port` where it can be listened on, else 0 for any free one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return 0
    return port
