"""The description a synthetic workload is drawn from, as read from YAML or JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from traces.arrivals import SECONDS_AN_HOUR
from traces.lengths import LengthDistribution, distribution_from


@dataclass(frozen=True, slots=True)
class PrefixSharing:
    """How prompts of a class share their beginnings.

    A share `shared` of them starts with one of `prompts` system prompts of `tokens` tokens (the first is the most
    common, Zipf). A session has `turns_mean` turns on average (1: no sessions); each turn's prompt is the whole
    conversation so far and a new message, and comes at least `think_s` seconds after the last one.
    """

    prompts: int = 1
    tokens: int = 0
    shared: float = 1.0
    block_tokens: int = 16
    turns_mean: float = 1.0
    think_s: float = 20.0

    def __post_init__(self) -> None:
        if self.prompts < 1 or self.tokens < 0 or self.block_tokens < 1:
            raise ValueError("prefix: prompts and block_tokens must be at least 1, tokens at least 0")
        if not 0.0 <= self.shared <= 1.0:
            raise ValueError(f"prefix: shared must be between 0 and 1, got {self.shared:g}")
        if not (1.0 <= self.turns_mean < math.inf and 0.0 <= self.think_s < math.inf):
            raise ValueError("prefix: turns_mean must be at least 1 and think_s at least 0")


@dataclass(frozen=True, slots=True)
class LevelSpec:
    """Answers at a directive level: mean length over the baseline's, its spread, and how often a judge prefers it."""

    output_ratio: float
    ratio_cv: float = 0.0
    preferred_share: float = 0.0

    def __post_init__(self) -> None:
        if not (0.0 < self.output_ratio < math.inf and 0.0 <= self.ratio_cv < math.inf):
            raise ValueError("levels: output_ratio must be above 0 and ratio_cv at least 0")
        if not 0.0 <= self.preferred_share <= 1.0:
            raise ValueError(f"levels: preferred_share must be between 0 and 1, got {self.preferred_share:g}")


@dataclass(frozen=True, slots=True)
class PromptClass:
    """One kind of request. Lengths of `input_tokens` are of the user's message: shared prefixes come on top."""

    task: str
    share: float
    input_tokens: LengthDistribution
    output_tokens: LengthDistribution
    prefix: PrefixSharing | None = None
    levels: Mapping[str, LevelSpec] = field(default_factory=dict)
    judged: Path | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.share) and self.share > 0):
            raise ValueError(f"class {self.task}: share must be above 0, got {self.share:g}")
        if self.levels and self.judged:
            raise ValueError(f"class {self.task}: give levels or judged rows, not both")
        if sum(level.preferred_share for level in self.levels.values()) > 1.0 + 1e-9:
            raise ValueError(f"class {self.task}: the preferred shares of its levels sum to more than 1")


@dataclass(frozen=True, slots=True)
class SynthesisSpec:
    """`rates_rps`: one rate for each hour of the day, repeated; one entry is a constant rate. `rates_period_s`: how
    long each of them lasts, for a day compressed in time."""

    name: str
    seed: int
    duration_s: float
    rates_rps: Sequence[float]
    classes: Sequence[PromptClass]
    interarrival_cv: float = 1.0
    started_at: datetime | None = None
    window_tokens: int | None = None
    rates_period_s: float = SECONDS_AN_HOUR

    def __post_init__(self) -> None:
        if not (math.isfinite(self.duration_s) and self.duration_s > 0):
            raise ValueError(f"duration_s must be above 0, got {self.duration_s:g}")
        if not (math.isfinite(self.rates_period_s) and self.rates_period_s > 0):
            raise ValueError(f"rates_period_s must be above 0, got {self.rates_period_s:g}")
        if not self.classes:
            raise ValueError("classes: give at least one prompt class")
        if not self.rates_rps or any(not (math.isfinite(rate) and rate >= 0) for rate in self.rates_rps):
            raise ValueError("rates_rps: give one rate, or one for each hour of the day, each at least 0")


_TOP = {
    "name",
    "seed",
    "duration_s",
    "rate_rps",
    "rates_rps",
    "rates_period_s",
    "classes",
    "interarrival_cv",
    "started_at",
    "window_tokens",
}
_CLASS = {"task", "share", "input_tokens", "output_tokens", "prefix", "levels", "judged"}


def read_spec(path: Path) -> SynthesisSpec:
    """Read a spec from a YAML or JSON file. Raises `ValueError` naming file and field."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    text = path.read_text(encoding="utf-8")
    try:
        tree = json.loads(text) if path.suffix == ".json" else _yaml(text)
        return spec_from(tree, path.parent)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _yaml(text: str) -> Any:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        return YAML(typ="safe").load(text)
    except YAMLError as error:
        raise ValueError(f"not YAML: {error}") from None


def spec_from(tree: Any, folder: Path) -> SynthesisSpec:
    """Build a spec from parsed YAML or JSON; paths in it are relative to `folder`."""
    _check_keys(tree, _TOP, "the spec", ("name", "seed", "duration_s", "classes"))
    if ("rate_rps" in tree) == ("rates_rps" in tree):
        raise ValueError("give either rate_rps (one number) or rates_rps (a list, one for each hour of the day)")
    rates = [tree["rate_rps"]] if "rate_rps" in tree else list(tree["rates_rps"])
    started = tree.get("started_at")
    if isinstance(started, str):
        started = datetime.fromisoformat(started)
    if started is not None and (not isinstance(started, datetime) or started.tzinfo is None):
        raise ValueError(f"started_at: give a date and time with an offset, got {started!r}")
    if not isinstance(tree["classes"], Sequence) or isinstance(tree["classes"], str):
        raise ValueError("classes: give a list of prompt classes")
    return SynthesisSpec(
        name=str(tree["name"]),
        seed=_whole(tree["seed"], "seed"),
        duration_s=_number(tree["duration_s"], "duration_s"),
        rates_rps=[_number(rate, f"rates_rps[{index}]") for index, rate in enumerate(rates)],
        classes=[_class_from(part, f"classes[{index}]", folder) for index, part in enumerate(tree["classes"])],
        interarrival_cv=_number(tree.get("interarrival_cv", 1.0), "interarrival_cv"),
        started_at=started,
        rates_period_s=_number(tree.get("rates_period_s", SECONDS_AN_HOUR), "rates_period_s"),
        window_tokens=None if tree.get("window_tokens") is None else _whole(tree["window_tokens"], "window_tokens"),
    )


def _class_from(tree: Any, where: str, folder: Path) -> PromptClass:
    _check_keys(tree, _CLASS, where, ("task", "input_tokens", "output_tokens"))
    prefix = tree.get("prefix")
    if prefix is not None:
        _check_keys(prefix, set(PrefixSharing.__slots__), f"{where}.prefix", ())
    levels = tree.get("levels") or {}
    for level, part in levels.items():
        _check_keys(part, set(LevelSpec.__slots__), f"{where}.levels.{level}", ("output_ratio",))
    try:
        return PromptClass(
            task=str(tree["task"]),
            share=_number(tree.get("share", 1.0), "share"),
            input_tokens=distribution_from(tree["input_tokens"], "input_tokens"),
            output_tokens=distribution_from(tree["output_tokens"], "output_tokens"),
            prefix=None if prefix is None else PrefixSharing(**prefix),
            levels={str(level): LevelSpec(**part) for level, part in levels.items()},
            judged=folder / tree["judged"] if tree.get("judged") else None,
        )
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from None


def _check_keys(tree: Any, known: set[str], where: str, needed: Sequence[str]) -> None:
    if not isinstance(tree, Mapping):
        raise ValueError(f"{where} must be a mapping of {', '.join(sorted(known))}")
    if unknown := sorted(str(key) for key in tree if key not in known):
        raise ValueError(f"{where} has no {', '.join(unknown)}; known: {', '.join(sorted(known))}")
    if missing := [key for key in needed if key not in tree]:
        raise ValueError(f"{where} needs {', '.join(missing)}")


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{where} must be a number, got {value!r}")
    return float(value)


def _whole(value: Any, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{where} must be a whole number, got {value!r}")
    return value
