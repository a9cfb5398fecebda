"""Parameter sets of the twin: a GPU's physics and an engine's overheads, as data files with their sources."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import TypeVar

import msgspec

ENGINE_PREFIX = "engine-"

_Profile = TypeVar("_Profile", bound=msgspec.Struct)


class Sensor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The board's sensor: updates every `update_s` with the mean of the last `window_s` (arXiv 2312.02741)."""

    update_s: float = 0.1
    window_s: float = 0.025
    average_s: float = 1.0
    gain_error_percent: float = 5.0
    counter_resolution_j: float = 0.001


class Actuation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Latency of a setter call, lognormal by two quantiles, and how slowly the power-cap governor follows."""

    latency_p50_s: float = 0.0045
    latency_p99_s: float = 0.013
    cap_time_constant_s: float = 0.2
    cap_blind_s: float = 0.04


class Thermal(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """First-order heating: steady temperature is `ambient_c + celsius_per_w * power`."""

    ambient_c: float = 27.0
    celsius_per_w: float = 0.062
    time_constant_s: float = 45.0
    leakage_per_c: float = 0.003
    reference_c: float = 65.0
    slowdown_c: float = 87.0


class GpuProfile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Physics of one GPU model. `f` below is SM clock over `clock_max_mhz`.

    compute time = FLOPs / (compute_efficiency * peak_flops * f); memory time = bytes / (memory_efficiency *
    memory_bytes_per_s * min(1, f / bandwidth_knee)). Power = idle + active idle + s(f) * (active_w * busy +
    compute_w * u_compute) + memory_w * u_memory with s(f) = f * (V(f) / V(1))^2; V is flat at `voltage_floor`
    below `voltage_knee` and linear above it.
    """

    name: str
    product: str
    source: str
    fitted_on: str
    provisional: str = ""
    clock_min_mhz: int
    clock_max_mhz: int
    clock_step_mhz: int = 15
    idle_clock_mhz: int
    memory_clock_mhz: int
    memory_bytes: int
    limit_min_w: float
    limit_max_w: float
    limit_default_w: float
    idle_w: float
    active_idle_w: float
    active_w: float
    compute_w: float
    memory_w: float
    voltage_knee: float
    voltage_floor: float
    peak_flops: float
    memory_bytes_per_s: float
    compute_efficiency: float
    memory_efficiency: float
    bandwidth_knee: float
    overlap_exponent: float = 3.0
    cap_margin: float = 0.985
    sensor: Sensor = Sensor()
    actuation: Actuation = Actuation()
    thermal: Thermal = Thermal()

    def __post_init__(self) -> None:
        if not 0 < self.clock_min_mhz < self.clock_max_mhz:
            raise ValueError(f"profile {self.name}: clocks must satisfy 0 < clock_min_mhz < clock_max_mhz")
        if not 0 < self.limit_min_w <= self.limit_default_w <= self.limit_max_w:
            raise ValueError(f"profile {self.name}: limits must satisfy 0 < min <= default <= max")
        for field in ("voltage_knee", "voltage_floor", "compute_efficiency", "memory_efficiency", "bandwidth_knee"):
            if not 0 < getattr(self, field) <= 1:
                raise ValueError(f"profile {self.name}: {field} must be in (0, 1]")

    @property
    def clocks_mhz(self) -> tuple[int, ...]:
        """Lockable SM clocks, ascending."""
        steps = range(self.clock_max_mhz, self.clock_min_mhz - 1, -self.clock_step_mhz)
        return tuple(reversed(steps))


class EngineProfile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a serving engine adds to the GPU's physics.

    `host_s` and `host_layer_s` (times the layers): the host's own time for each step, which runs beside the GPU's;
    the slower of the two sets the pace. `per_sequence_s` and `per_prefill_s`: GPU
    time for each sequence and each prompt in the step that the FLOP and byte counts do not hold (sampling,
    metadata, launch); the first scales with the SM clock, the second does not. `tensor_parallel_s`: per layer,
    for two all-reduces, when the degree is above 1.
    """

    name: str
    source: str
    fitted_on: str
    host_s: float
    per_sequence_s: float
    host_layer_s: float = 0.0
    per_prefill_s: float = 0.0
    tensor_parallel_s: float = 0.0
    compute_scale: float = 1.0
    memory_scale: float = 1.0


def profile_names() -> list[str]:
    names = [entry.name for entry in resources.files("power.profiles").iterdir()]
    return sorted(
        name.removesuffix(".json") for name in names if name.endswith(".json") and not name.startswith(ENGINE_PREFIX)
    )


def load_profile(name_or_path: str) -> GpuProfile:
    """A shipped GPU profile by name (`h100-sxm`) or one from a JSON file. `ValueError` says what is wrong."""
    return _load(name_or_path, GpuProfile, name_or_path)


def load_engine(name_or_path: str) -> EngineProfile:
    """A shipped engine profile by name (`vllm-0.11`) or one from a JSON file."""
    return _load(name_or_path, EngineProfile, ENGINE_PREFIX + name_or_path)


def _load(given: str, kind: type[_Profile], resource: str) -> _Profile:
    if given.endswith(".json"):
        try:
            text = Path(given).read_bytes()
        except OSError as error:
            raise ValueError(f"cannot read profile {given}: {error.strerror}") from error
    else:
        found = resources.files("power.profiles") / f"{resource}.json"
        if not found.is_file():
            raise ValueError(f"no profile {given!r}; known GPUs: {', '.join(profile_names())}, or give a .json file")
        text = found.read_bytes()
    try:
        return msgspec.json.decode(text, type=kind)
    except msgspec.ValidationError as error:
        raise ValueError(f"profile {given}: {error}") from error
