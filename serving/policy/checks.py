"""What a policy's parts say about each other and about the device, beyond what each part says of itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from serving.policy.carbon_section import Carbon
from serving.policy.checks_carbon import check_carbon
from serving.policy.checks_directives import check_directives
from serving.policy.findings import Finding, error, warning
from serving.policy.model import Policy, Spec
from serving.policy.power_section import ClockBand
from serving.policy.problems import Path, suggestion
from serving.policy.reach import TooManyCellsError, dead_settings, settings_of
from serving.policy.rules import UNKNOWN_BAND, Rule

SECTION_READERS = {
    "static": {"static"},
    "phase_aware": {"phase_aware"},
    "slo_slack": {"slo_slack", "phase_aware"},
}
"""Governors that read each section of parameters; phase_aware chooses its decode clock by slo_slack."""


@dataclass(frozen=True, slots=True)
class DeviceRange:
    """What the device at hand can be set to. Empty `clocks_mhz` or `None` limits: it does not say."""

    name: str
    clocks_mhz: tuple[int, ...] = ()
    limit_min_w: float | None = None
    limit_max_w: float | None = None


def check(policy: Policy, device: DeviceRange | None = None) -> list[Finding]:
    """Everything found, in no particular order."""
    spec = policy.spec
    found = [*_governors(spec), *_clock_bands(spec), *_row(spec), *_rules(spec), *_promotion(spec)]
    found += check_carbon(spec.carbon)
    found += check_directives(spec)
    if device is not None:
        found += _device(spec, device)
    return found


def _promotion(spec: Spec) -> Iterator[Finding]:
    if spec.promotion is not None and spec.slo is None:
        yield error(("spec", "promotion"), "counts violations of an SLO that is missing; add spec.slo")


def governors_used(spec: Spec) -> list[tuple[Path, str]]:
    """Every governor the policy may choose, with the path that chooses it."""
    used: list[tuple[Path, str]] = [(("spec", "power", "governor"), spec.power.governor)]
    for index, rule in enumerate(spec.rules):
        if rule.set.governor is not None:
            used.append((("spec", "rules", index, "set", "governor"), rule.set.governor))
    return used


def _governors(spec: Spec) -> Iterator[Finding]:
    power = spec.power
    used = governors_used(spec)
    names = {name for _, name in used}
    for path, name in used:
        needs_slo = name == "slo_slack" or (name == "phase_aware" and power.phase_aware.decode_mhz is None)
        if needs_slo and spec.slo is None:
            yield error(path, f"{name} chooses clocks by SLO slack, and the SLO is missing; add spec.slo")
        if name == "static" and power.static is None:
            yield error(path, "static needs its clock; add power.static.clock_mhz")
    for section, readers in SECTION_READERS.items():
        if section in power.model_fields_set and not names & readers:
            yield warning(("spec", "power", section), f"does nothing: no governor that reads {section} is chosen")
    if power.carbon_follow is not None and spec.carbon is None:
        yield error(("spec", "power", "carbon_follow"), "follows a grid that is missing; add spec.carbon")


def _clocks_named(spec: Spec) -> Iterator[tuple[Path, int]]:
    base: Path = ("spec", "power")
    power = spec.power
    if power.static is not None:
        yield (*base, "static", "clock_mhz"), power.static.clock_mhz
    for name in ("prefill_mhz", "decode_mhz"):
        clock = getattr(power.phase_aware, name)
        if clock is not None:
            yield (*base, "phase_aware", name), clock


def _bands_named(spec: Spec) -> Iterator[tuple[Path, ClockBand]]:
    yield ("spec", "power", "clock_mhz"), spec.power.clock_mhz
    for index, rule in enumerate(spec.rules):
        if rule.set.clock_mhz is not None:
            yield ("spec", "rules", index, "set", "clock_mhz"), rule.set.clock_mhz


def _clock_bands(spec: Spec) -> Iterator[Finding]:
    band = spec.power.clock_mhz
    for path, clock in _clocks_named(spec):
        if (band.min is not None and clock < band.min) or (band.max is not None and clock > band.max):
            low, high = band.min or "the lowest", band.max or "the highest"
            yield error(path, f"{clock} MHz is outside power.clock_mhz ({low} to {high})")


def _row(spec: Spec) -> Iterator[Finding]:
    for index, rule in enumerate(spec.rules):
        if rule.set.row_budget_w is not None and spec.power.row_budget is None:
            path: Path = ("spec", "rules", index, "set", "row_budget_w")
            yield error(path, "there is no row budget to change; add power.row_budget")


def _rules(spec: Spec) -> Iterator[Finding]:
    bands = [band.name for band in spec.carbon.bands] if spec.carbon is not None else []
    levels = [level.id for level in spec.directives.levels] if spec.directives is not None else []
    seen: dict[str, int] = {}
    for index, rule in enumerate(spec.rules):
        base: Path = ("spec", "rules", index)
        if rule.name in seen:
            yield error((*base, "name"), f"rule {rule.name!r} exists already as number {seen[rule.name] + 1}")
        seen.setdefault(rule.name, index)
        yield from _rule_names(rule, base, bands, levels, spec.carbon)
        if rule.when.tenants is not None and rule.set.touches_devices:
            yield error((*base, "set"), "a rule for tenants cannot set clocks, limits or admission: a GPU serves all")
    yield from _unreachable(spec, bands)


def _rule_names(
    rule: Rule, base: Path, bands: Sequence[str], levels: Sequence[str], carbon: Carbon | None
) -> Iterator[Finding]:
    for position, band in enumerate(rule.when.bands or ()):
        if band not in (*bands, UNKNOWN_BAND):
            where = (*base, "when", "bands", position)
            yield error(where, f"no band {band!r} in carbon.bands{suggestion(band, [*bands, UNKNOWN_BAND])}")
    if rule.when.zones is not None and carbon is None:
        yield error((*base, "when", "zones"), "there is no zone to compare with; add spec.carbon")
    choice = rule.set.directive
    if choice is not None and choice not in ("auto", "off", *levels):
        yield error((*base, "set", "directive"), f"no level {choice!r}{suggestion(choice, ['auto', 'off', *levels])}")


def _unreachable(spec: Spec, bands: Sequence[str]) -> Iterator[Finding]:
    try:
        dead = dead_settings(spec.rules, bands)
    except TooManyCellsError:
        yield warning(("spec", "rules"), "too many combinations of conditions to look for unreachable rules")
        return
    for index, settings in dead.items():
        rule = spec.rules[index]
        if len(settings) == len(settings_of(rule)):
            yield error(("spec", "rules", index), f"rule {rule.name!r} is unreachable: earlier rules set all it sets")
        else:
            path: Path = ("spec", "rules", index, "set", settings[0])
            yield warning(path, f"never takes effect: earlier rules set {', '.join(settings)} whenever this rule holds")


def _device(spec: Spec, device: DeviceRange) -> Iterator[Finding]:
    clocks = [*_clocks_named(spec)]
    for path, band in _bands_named(spec):
        clocks += [((*path, name), clock) for name in ("min", "max") if (clock := getattr(band, name)) is not None]
    if device.clocks_mhz:
        low, high = device.clocks_mhz[0], device.clocks_mhz[-1]
        for path, clock in clocks:
            if not low <= clock <= high:
                yield error(path, f"{clock} MHz is outside what {device.name} can be locked to ({low} to {high} MHz)")
            elif clock not in device.clocks_mhz:
                yield warning(path, f"{device.name} has no clock of {clock} MHz; the nearest within the band is used")
    yield from _device_limits(spec, device)


def _device_limits(spec: Spec, device: DeviceRange) -> Iterator[Finding]:
    low, high = device.limit_min_w, device.limit_max_w
    limits: list[tuple[Path, float | None]] = [
        (("spec", "power", "power_limit_w", "max"), spec.power.power_limit_w.max)
    ]
    for index, rule in enumerate(spec.rules):
        if rule.set.power_limit_w is not None:
            limits.append((("spec", "rules", index, "set", "power_limit_w", "max"), rule.set.power_limit_w.max))
    for path, watts in limits:
        if watts is not None and low is not None and watts < low:
            yield error(path, f"{watts:g} W is below the least limit {device.name} takes ({low:g} W)")
        if watts is not None and high is not None and watts > high:
            yield warning(path, f"{watts:g} W is above what {device.name} may draw ({high:g} W) and never binds")
    row = spec.power.row_budget
    if row is not None and low is not None and row.watts < low:
        yield error(("spec", "power", "row_budget", "watts"), f"{row.watts:g} W is less than one {device.name} needs")
