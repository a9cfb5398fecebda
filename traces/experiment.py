"""Experiment files: which policies meet which traffic at which loads, in which zones, with which seeds."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from traces.reader import TraceFile
from traces.simulate_grid import Grid, read_grid
from traces.simulate_policy import SimulationPolicy
from traces.simulate_settings import SimulationSettings
from traces.synthesis import synthesize
from traces.synthesis_spec import spec_from
from traces.workload import Workload

BUNDLED = Path(__file__).parent / "data"
SHIPPED = Path(__file__).parent / "experiments"
DATA_VARIABLE = "GRIDSERVE_SHARED_DATA"
FORMAT = 3
"""Raised when the same settings give other results, so that no kept run is mixed with new ones."""


class TraceSource(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`file`: a public trace, relative to the data folder; `bundled`: the synthetic one used where it is absent;
    `spec`: a synthesis spec written here (paths in it are relative to the data folder).

    `start_s`, `span_s`: the part used; with `windows`, seed `n` takes the `n`-th of so many equal parts of the trace.
    `split_rows`: even judged rows teach the directive policies, odd ones are served. `loads`, `settings`: instead of,
    and on top of, the experiment's own.
    """

    name: str
    file: str | None = None
    bundled: str | None = None
    spec: Mapping[str, Any] | None = None
    bundled_spec: Mapping[str, Any] | None = None
    start_s: float = 0.0
    span_s: float | None = None
    windows: int | None = None
    split_rows: bool = False
    loads: tuple[float, ...] = ()
    settings: Mapping[str, Any] = msgspec.field(default_factory=dict)


class Zone(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An intensity series: `file` relative to the data folder, else `bundled`. `start`: moment of virtual second 0."""

    name: str
    file: str | None = None
    bundled: str | None = None
    start: str | None = None


class Variant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A load, or a size of the row: `load` multiplies the requests (thinning below 1, copies above), `settings`
    overrides those of the experiment."""

    name: str
    load: float = 1.0
    settings: Mapping[str, Any] = msgspec.field(default_factory=dict)


class Experiment(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`baseline`: the policy all others are compared with, at equal load. `study` chooses the report's own section.

    `training_seed` is used to learn directive mixes, and never evaluated.
    """

    name: str
    title: str
    description: str
    policies: tuple[SimulationPolicy, ...]
    traces: tuple[TraceSource, ...]
    baseline: str
    study: Literal["dvfs", "row", "directives", "together", "plain"] = "plain"
    seeds: tuple[int, ...] = (1, 2, 3)
    loads: tuple[float, ...] = ()
    variants: tuple[Variant, ...] = ()
    zones: tuple[Zone, ...] = ()
    settings: Mapping[str, Any] = msgspec.field(default_factory=dict)
    training_seed: int = 1000
    load_jitter_s: float = 30.0

    def __post_init__(self) -> None:
        names = [policy.name for policy in self.policies]
        if len(set(names)) != len(names):
            raise ValueError("policies need distinct names")
        if self.baseline not in names:
            raise ValueError(f"baseline {self.baseline!r} is none of the policies: {', '.join(names)}")
        if self.loads and self.variants:
            raise ValueError("give loads or variants, not both")
        if not (self.policies and self.traces and self.seeds):
            raise ValueError("an experiment needs policies, traces and seeds")
        if self.training_seed in self.seeds:
            raise ValueError("training_seed must not be one of the seeds that are evaluated")

    def variants_of(self, trace: TraceSource) -> Sequence[Variant]:
        if self.variants:
            return self.variants
        return [Variant(f"{load:g}x", load) for load in trace.loads or self.loads or (1.0,)]

    @property
    def all_variants(self) -> Sequence[Variant]:
        """Of all traces, each name once."""
        named = {variant.name: variant for trace in self.traces for variant in self.variants_of(trace)}
        return list(named.values())

    def settings_of(self, variant: Variant, trace: TraceSource | None = None) -> SimulationSettings:
        own = trace.settings if trace is not None else {}
        return msgspec.convert({**self.settings, **own, **variant.settings}, SimulationSettings)

    def trace_named(self, name: str) -> TraceSource:
        return next(trace for trace in self.traces if trace.name == name)


class Cell(msgspec.Struct, frozen=True):
    """One run of the grid."""

    policy: str
    trace: str
    variant: str
    zone: str | None
    seed: int

    @property
    def key(self) -> str:
        parts = (self.policy, self.trace, self.variant, self.zone or "-", f"s{self.seed}")
        return "__".join("".join(c if c.isalnum() or c in "+-.%" else "_" for c in part) for part in parts)


def read_experiment(path: Path) -> Experiment:
    """Raises `ValueError` naming the file and what is wrong. A bare name is looked for among the shipped ones."""
    found = path if path.is_file() else SHIPPED / path.name
    if not found.is_file():
        shipped = ", ".join(sorted(entry.name for entry in SHIPPED.glob("*.yaml")))
        raise ValueError(f"{path}: no such file; shipped experiments: {shipped}")
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        tree = YAML(typ="safe").load(found.read_text(encoding="utf-8"))
        experiment = msgspec.convert(tree, Experiment)
        for trace in experiment.traces:
            for variant in experiment.variants_of(trace):
                experiment.settings_of(variant, trace)
    except (YAMLError, msgspec.ValidationError, ValueError) as error:
        raise ValueError(f"{found}: {error}") from None
    return experiment


def data_folder(given: str | None) -> Path | None:
    """The folder of public data: `--data`, else the environment; None uses what is bundled."""
    text = given or os.environ.get(DATA_VARIABLE)
    if not text:
        return None
    folder = Path(text)
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder; --data takes the folder that holds traces/ and carbon/")
    return folder


def cells(experiment: Experiment) -> Iterator[Cell]:
    zones: Sequence[str | None] = [zone.name for zone in experiment.zones] or [None]
    for trace in experiment.traces:
        for variant in experiment.variants_of(trace):
            for zone in zones:
                for seed in experiment.seeds:
                    for policy in experiment.policies:
                        yield Cell(policy.name, trace.name, variant.name, zone, seed)


def fingerprint(experiment: Experiment, cell: Cell, data: Path | None) -> str:
    """Changes whenever the cell's result could: the experiment without the axes it is only one point of."""
    policy = next(policy for policy in experiment.policies if policy.name == cell.policy)
    trace = experiment.trace_named(cell.trace)
    variant = next(variant for variant in experiment.all_variants if variant.name == cell.variant)
    zone = next((zone for zone in experiment.zones if zone.name == cell.zone), None)
    public = (data is not None, experiment.training_seed, experiment.load_jitter_s)
    parts = (FORMAT, policy, trace, variant, zone, cell.seed, experiment.settings_of(variant, trace), public)
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()[:16]


def workload_of(source: TraceSource, seed: int, load: float, jitter_s: float, data: Path | None) -> Workload:
    """The traffic of a cell. Seeds choose the window, the draw of a spec, and which requests are thinned or copied."""
    workload = _read(source, seed, data)
    if source.windows is not None:
        assert source.span_s is not None
        start_s = source.start_s + (seed - 1) % source.windows * source.span_s
        workload = workload.select(start_s, start_s + source.span_s).from_zero()
    elif source.span_s is not None or source.start_s:
        end_s = source.start_s + (source.span_s if source.span_s is not None else float("inf"))
        workload = workload.select(source.start_s, end_s).from_zero()
    if load < 1.0:
        return workload.thin(load, seed)
    return workload.amplify(load, seed, jitter_s) if load > 1.0 else workload


def _read(source: TraceSource, seed: int, data: Path | None) -> Workload:
    if source.file is not None and data is not None and (data / source.file).is_file():
        return Workload.from_file(TraceFile(data / source.file))
    judged_here = data is not None and source.spec is not None and _judged_present(source.spec, data)
    if source.spec is not None and (judged_here or not _judged(source.spec)):
        return synthesize(spec_from({**source.spec, "seed": seed}, data or BUNDLED))
    if source.bundled_spec is not None:
        return synthesize(spec_from({**source.bundled_spec, "seed": seed}, BUNDLED))
    if source.bundled is None:
        raise ValueError(f"trace {source.name}: {source.file} needs --data or {DATA_VARIABLE}, nothing is bundled")
    return Workload.from_file(TraceFile(BUNDLED / source.bundled))


def _judged(spec: Mapping[str, Any]) -> list[str]:
    return [part["judged"] for part in spec["classes"] if part.get("judged")]


def _judged_present(spec: Mapping[str, Any], data: Path) -> bool:
    return all((data / path).is_file() for path in _judged(spec))


def grid_of(zone: Zone, data: Path | None) -> Grid:
    from datetime import datetime

    if zone.file is not None and data is not None and (data / zone.file).is_file():
        return read_grid(data / zone.file, datetime.fromisoformat(zone.start) if zone.start else None)
    if zone.bundled is None:
        raise ValueError(f"zone {zone.name}: {zone.file} needs --data or {DATA_VARIABLE}, nothing is bundled")
    return read_grid(BUNDLED / zone.bundled, None)
