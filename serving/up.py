"""What `gridserve up` sets up so that the whole loop runs on any machine, and what it says about that.

A working copy of the shipped policy is put into the data folder, to be edited there. Two things differ from the
shipped file so that it works offline and at once: the intensity is a bundled synthetic series, replayed, and the
promotion gate is left out. Where no GPU can be measured the power device is simulated, so nothing real is touched.
"""

from __future__ import annotations

import io
import os
import socket
from dataclasses import dataclass
from pathlib import Path

import platformdirs

import serving
import traces.data
from serving.policy.load import load_policy

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
    """`notes`: what differs from a server in earnest, one line each."""

    policy: Path
    data: Path
    device: str
    override: str | None
    notes: tuple[str, ...]


def data_folder(given: Path | None) -> Path:
    """Where `up` keeps its ledger, policy and knowledge."""
    named = os.environ.get(DATA_VARIABLE)
    return given or (Path(named) if named else platformdirs.user_state_path("gridserve"))


def prepare(data: Path, policy: Path | None, device: str) -> Prepared:
    """Lay out the data folder. Raises `PolicyError` or `OSError`."""
    data.mkdir(parents=True, exist_ok=True)
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
    return Prepared(policy, data, device, override, tuple(notes))


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
