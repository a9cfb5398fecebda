"""`gridserve power`: devices and what holds them, calibration, restore, operator's holds."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serving.commands import CommandError

if TYPE_CHECKING:
    from power.client import PowerdClient
    from power.device import PowerDevice
    from power.messages import Actuation, Status
    from serving.commands import Subparsers

EXAMPLES = """examples:
  gridserve power status                                what is here, what it draws, who controls it
  gridserve power calibrate --out my-h100.json          measure this GPU (read-only, about ten minutes)
  gridserve power calibrate --device simulated:h100-sxm --out twin.json --seconds 2
  gridserve power hold --pin 1200 --minutes 30          an operator's clock, for half an hour
  gridserve power hold                                  panic: driver defaults everywhere, until released
  gridserve power release                               give control back
  gridserve power restore                               undo every clock and limit now
"""


def register(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "power",
        help="GPU power: status, calibration, holds, restore",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)

    status = _verb(verbs, "status", run_status, "devices, capabilities, readings, lease and governor")
    status.add_argument("--device", default="auto", help="what to look at where no powerd answers (default: auto)")

    calibrate = verbs.add_parser("calibrate", help="measure a device and write a profile of it")
    calibrate.set_defaults(run=run_calibrate)
    _common(calibrate)
    calibrate.add_argument("--out", type=Path, required=True, help="profile to write (.json)")
    calibrate.add_argument("--device", default="nvml", help="nvml or simulated:PROFILE (default: nvml)")
    calibrate.add_argument("--model", default="llama-3.1-8b", help="model shape of the load (default: llama-3.1-8b)")
    calibrate.add_argument("--base", help="profile to start from (default: of the same product, else h100-sxm)")
    calibrate.add_argument("--seconds", type=float, default=10.0, help="length of each window (default: 10)")
    calibrate.add_argument("--allow-control", action="store_true", help="sweep the clocks too (through powerd)")

    restore = _verb(verbs, "restore", run_restore, "undo every clock and limit, with or without powerd")
    restore.add_argument("--state-dir", type=Path, help="powerd's state directory, where no powerd answers")
    restore.add_argument(
        "--force", action="store_true", help="without a state file: reset clocks and limits of all GPUs"
    )

    hold = _verb(verbs, "hold", run_hold, "take control from the governor; without options: panic")
    hold.add_argument("--pin", type=int, metavar="MHZ", help="lock this SM clock meanwhile")
    hold.add_argument("--freeze", action="store_true", help="keep what is set now")
    hold.add_argument("--minutes", type=float, help="how long; a panic may do without")
    hold.add_argument("--reason", default="", help="for the status page and the log")

    _verb(verbs, "release", run_release, "end a hold")


def run_status(arguments: argparse.Namespace) -> int:
    status, why = _powerd_status(arguments)
    devices = [] if status is not None else _read_devices(arguments.device)
    if arguments.json:
        _print_json({"powerd": _plain(status), "powerd_error": why, "devices": devices})
        return 0
    if status is None:
        print(f"powerd: {why}")
        for device in devices:
            print(_device_line(device))
        if not devices:
            print("no device here can be read: no NVIDIA driver, no readable powercap tree")
        return 0
    print(f"powerd: running, process {status.pid}, {status.restores} restores")
    print(f"lease: {_lease_line(status)}")
    print(f"hold: {_hold_line(status)}")
    for controlled in status.devices:
        print(_device_line(_plain(controlled)))
    for alarm in status.alarms[-5:]:
        print(f"alarm: {alarm}")
    return 0


def run_calibrate(arguments: argparse.Namespace) -> int:
    import csv

    import msgspec

    from power.calibrate import Calibration, adapted, fit_profile, points_table
    from power.device import DeviceError
    from power.model_shape import model_shape

    def progress(text: str) -> None:
        if sys.stderr.isatty():
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)

    try:
        shape = model_shape(arguments.model)
        device, load, actuator, base, deep_idle_w = _calibration_parts(arguments, shape)
        points = Calibration(device, load, arguments.seconds, progress).sweep(actuator)
        load.close()
        where = f"{device.info.name} ({device.info.uuid})"
        profile, _, error_w = fit_profile(
            adapted(base, device.info), shape, points, deep_idle_w, arguments.out.stem, where
        )
    except (ValueError, DeviceError) as error:
        raise CommandError(str(error)) from error
    progress("")
    arguments.out.write_bytes(msgspec.json.format(msgspec.json.encode(profile), indent=2) + b"\n")
    table = arguments.out.with_suffix(".points.csv")
    with table.open("w", newline="") as file:
        rows = points_table(points)
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    if arguments.json:
        _print_json({"profile": str(arguments.out), "points": rows, "power_rms_w": error_w})
    else:
        print(f"wrote {arguments.out} and {table}; power is met within {error_w:.0f} W (root mean square)")
        print(f"use it: gridserve serve --device simulated:{arguments.out}")
    device.close()
    return 0


def run_restore(arguments: argparse.Namespace) -> int:
    from power.client import ActuatorUnavailableError

    try:
        actions = list(_client(arguments).restore_all("gridserve power restore"))
    except ActuatorUnavailableError as error:
        actions = _restore_directly(arguments, str(error))
    failed = [action for action in actions if not action.outcome.took_effect]
    if arguments.json:
        _print_json({"actions": [_plain(action) for action in actions], "failed": len(failed)})
    else:
        for action in actions:
            print(f"{action.uuid}: {action.action} {action.outcome.value} {action.reason}".rstrip())
        if not actions:
            print("nothing to restore: no clock or limit was changed")
    return 1 if failed else 0


def run_hold(arguments: argparse.Namespace) -> int:
    from power.messages import HoldMode

    if arguments.pin is not None and arguments.freeze:
        raise CommandError("choose one of --pin and --freeze")
    mode = HoldMode.PIN if arguments.pin is not None else HoldMode.FREEZE if arguments.freeze else HoldMode.DEFAULTS
    seconds = arguments.minutes * 60 if arguments.minutes is not None else None
    actions = _asked(lambda client: client.hold(mode, seconds, arguments.pin, arguments.reason), arguments)
    if arguments.json:
        _print_json({"mode": mode.value, "seconds": seconds, "actions": [_plain(action) for action in actions]})
        return 0
    until = f"for {arguments.minutes:g} minutes" if arguments.minutes is not None else "until `gridserve power release`"
    print(f"hold: {mode.value} {until}")
    return 0


def run_release(arguments: argparse.Namespace) -> int:
    _asked(lambda client: client.release_hold(), arguments)
    if arguments.json:
        _print_json({"released": True})
    else:
        print("released: the governor is in control again")
    return 0


def _verb(verbs: Any, name: str, run: Any, help_text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = verbs.add_parser(name, help=help_text, description=help_text)
    parser.set_defaults(run=run)
    _common(parser)
    return parser


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--socket", type=Path, help="powerd's socket (default: /run/gridserve/powerd.sock)")
    parser.add_argument("--json", action="store_true", help="for programs")


def _client(arguments: argparse.Namespace) -> PowerdClient:
    from power.client import PowerdClient
    from power.powerd import DEFAULT_SOCKET

    return PowerdClient(arguments.socket or DEFAULT_SOCKET, holder="gridserve power")


def _asked(question: Any, arguments: argparse.Namespace) -> Any:
    from power.actuator import LeaseError
    from power.client import ActuatorUnavailableError

    try:
        return question(_client(arguments))
    except (ActuatorUnavailableError, LeaseError, ValueError) as error:
        raise CommandError(str(error)) from error


def _powerd_status(arguments: argparse.Namespace) -> tuple[Status | None, str | None]:
    from power.client import ActuatorUnavailableError

    try:
        return _client(arguments).status(), None
    except ActuatorUnavailableError as error:
        return None, str(error)
    except ValueError as error:
        raise CommandError(str(error)) from error


def _read_devices(spec: str) -> list[dict[str, Any]]:
    from power.actuator import reading_status
    from power.device import DeviceError
    from power.model_shape import model_shape
    from power.open import open_devices

    try:
        devices: list[PowerDevice] = open_devices(spec, model_shape("llama-3.1-8b"))
    except (ValueError, DeviceError) as error:
        raise CommandError(str(error)) from error
    found = []
    for device in devices:
        reading, why = reading_status(device)
        info = device.info
        found.append(
            {
                "uuid": info.uuid,
                "name": info.name,
                "capabilities": sorted(info.capabilities),
                "notes": list(info.notes),
                "method": info.method.value,
                "reading": _plain(reading),
                "reading_error": why,
            }
        )
        device.close()
    return found


def _calibration_parts(arguments: argparse.Namespace, shape: Any) -> tuple[Any, Any, Any, Any, float | None]:
    """Device, load, actuator, base profile and deep idle power of a calibration."""
    from power.actuator import Actuator
    from power.calibration_load import TorchLoad, TwinLoad
    from power.client import LocalActuator
    from power.open import open_devices
    from power.profile import load_profile, profile_names
    from power.simulated import SimulatedDevice, simulated_twin

    kind, _, name = arguments.device.partition(":")
    if kind == "simulated":
        twin = simulated_twin(name or "h100-sxm", shape.name)
        load = TwinLoad(lambda clock: SimulatedDevice(twin, clock=clock))
        actuator = LocalActuator(Actuator([load.device], None, clock=load.now)) if arguments.allow_control else None
        base = load_profile(arguments.base) if arguments.base else twin.gpu
        return load.device, load, actuator, base, twin.idle_power_w(active=False)
    if kind != "nvml":
        raise ValueError(f"cannot calibrate {arguments.device!r}: choose nvml or simulated:PROFILE")
    (device,) = open_devices("nvml", shape)
    products = {load_profile(known).product: known for known in profile_names()}
    base = load_profile(arguments.base or products.get(device.info.name, "h100-sxm"))
    deep_idle_w = _deep_idle_w(device, arguments.seconds)
    return device, TorchLoad(shape), _client(arguments) if arguments.allow_control else None, base, deep_idle_w


def _deep_idle_w(device: PowerDevice, seconds: float) -> float | None:
    """Mean power before this process has a CUDA context; `None` when somebody else has one."""
    import time

    begin = device.read()
    if begin.foreign_processes or begin.energy_j is None:
        return None
    time.sleep(max(seconds, 5.0))
    end = device.read()
    if end.energy_j is None:
        return None
    return (end.energy_j - begin.energy_j) / (end.time_s - begin.time_s)


def _restore_directly(arguments: argparse.Namespace, why: str) -> list[Actuation]:
    """No powerd: undo what its state file tells, or with `--force` reset every GPU."""
    from power import powerd
    from power.actuator import Actuator
    from power.controlled import ControlledDevice
    from power.device import DeviceError
    from power.state_file import StateFile

    state_dir = arguments.state_dir or powerd.DEFAULT_STATE_DIR
    print(f"{why}; restoring from {state_dir}", file=sys.stderr)
    try:
        lock = powerd.claim(state_dir)
        devices = powerd.open_devices()
    except (ValueError, DeviceError, OSError) as error:
        raise CommandError(f"cannot restore: {error}") from error
    try:
        actuator = Actuator(devices, StateFile(state_dir))
        actions = actuator.start()
        if arguments.force:
            for device in devices:
                entry = ControlledDevice(device, actuator.clock, lambda: None, powerd.log)
                entry.clocks_touched = True
                limits = device.info.limits
                entry.prior_limit_w = limits.default_w if limits is not None else None
                actions += entry.restore()
        return actions
    finally:
        for device in devices:
            device.close()
        lock.close()


def _lease_line(status: Status) -> str:
    lease = status.lease
    if lease is None:
        return "none; devices are as they were found"
    return f"{lease.holder}, {lease.remaining_s:.1f} of {lease.ttl_s:g} s left"


def _hold_line(status: Status) -> str:
    hold = status.hold
    if hold is None:
        return "none"
    left = f"{hold.remaining_s:.0f} s left" if hold.remaining_s is not None else "until released"
    pin = f" at {hold.pin_mhz} MHz" if hold.pin_mhz is not None else ""
    return f"{hold.mode.value}{pin}, {left}: {hold.reason}"


def _device_line(device: dict[str, Any]) -> str:
    reading = device["reading"]
    shown = device["reading_error"] or "not readable"
    if reading is not None:
        parts = [
            _unit(reading["power_w"], "W"),
            _unit(reading["sm_clock_mhz"], "MHz"),
            _unit(reading["temperature_c"], "°C"),
            _unit(reading["power_limit_w"], "W limit"),
        ]
        shown = ", ".join(part for part in parts if part) + f" ({device['method']})"
    lines = [
        f"{device['uuid']}  {device['name']}",
        f"    can: {', '.join(device['capabilities'])}",
        f"    now: {shown}",
    ]
    if device.get("locked_mhz"):
        low, high = device["locked_mhz"]
        lines.append(f"    locked: {low}-{high} MHz")
    if device.get("limit_w"):
        lines.append(f"    capped: {device['limit_w']:g} W (found at {device['prior_limit_w']:g} W)")
    if device.get("contested_for_s"):
        lines.append(f"    contested: another tool changes it; backing off {device['contested_for_s']:.0f} s")
    lines += [f"    note: {note}" for note in device["notes"]]
    return "\n".join(lines)


def _unit(value: float | None, unit: str) -> str:
    return f"{value:.0f} {unit}" if value is not None else ""


def _plain(value: Any) -> Any:
    import msgspec

    return msgspec.to_builtins(value)


def _print_json(value: Any) -> None:
    json.dump(value, sys.stdout, indent=2)
    print()
