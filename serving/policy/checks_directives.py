"""Cross-checks of directives, quality floors and tenants."""

from __future__ import annotations

import math
from collections.abc import Iterator
from urllib.parse import urlsplit

from serving.policy.directives_section import Directives, Level, Tenant
from serving.policy.findings import Finding, error, warning
from serving.policy.model import Spec
from serving.policy.problems import Path, suggestion

_DIRECTIVES: Path = ("spec", "directives")
_RESERVED = ("auto", "off")
_GRID_OPTIMIZERS = ("sprout", "classed", "quality_budget", "carbon_budget")


def check_directives(spec: Spec) -> list[Finding]:
    found = list(_tenants(spec))
    if spec.directives is not None:
        found += [*_levels(spec.directives), *_optimizer(spec, spec.directives), *_floors(spec, spec.directives)]
        found += _evaluator(spec.directives)
    return found


def _levels(directives: Directives) -> Iterator[Finding]:
    seen: set[str] = set()
    for index, level in enumerate(directives.levels):
        path: Path = (*_DIRECTIVES, "levels", index)
        if level.id in _RESERVED:
            yield error((*path, "id"), f"{level.id!r} is a word of the API; choose another id")
        if level.id in seen:
            yield error((*path, "id"), f"level {level.id!r} exists already")
        seen.add(level.id)
        if index == 0 and level.text is not None:
            yield error((*path, "text"), "the first level is the undirected answer and has no text")
        if index > 0 and level.text is None:
            yield error(path, f"level {level.id!r} needs its text, or it is the same as the first")
    if len(directives.levels) == 1 and directives.chosen_optimizer != "off":
        yield warning((*_DIRECTIVES, "levels"), "one level leaves nothing to choose; add levels or optimizer: off")
    classes: set[str] = set()
    for index, group in enumerate(directives.classes):
        if group.name in classes:
            yield error((*_DIRECTIVES, "classes", index, "name"), f"class {group.name!r} exists already")
        classes.add(group.name)


def _optimizer(spec: Spec, directives: Directives) -> Iterator[Finding]:
    name = directives.chosen_optimizer
    path: Path = (*_DIRECTIVES, "optimizer")
    if name in _GRID_OPTIMIZERS and spec.carbon is None:
        yield error(path, f"{name} weighs levels by grams, and the grid is missing; add spec.carbon or use fixed")
    if name in ("quality_budget", "carbon_budget") and directives.budget is None:
        yield error(path, f"{name} needs directives.budget")
    if name == "carbon_budget" and directives.budget is not None and directives.budget.grams is None:
        yield error((*_DIRECTIVES, "budget"), "carbon_budget needs budget.grams")
    if name == "quality_budget" and directives.budget and directives.budget.quality_target < directives.quality_floor:
        yield warning((*_DIRECTIVES, "budget"), "quality_target below quality_floor: the floor decides")
    if name == "sprout" and "quality_floor" in directives.model_fields_set:
        yield warning((*_DIRECTIVES, "quality_floor"), "sprout keeps no floor a class; use classed")
    if directives.budget is not None and name not in ("quality_budget", "carbon_budget"):
        yield warning((*_DIRECTIVES, "budget"), f"does nothing: optimizer {name} has no budget")
    if name == "fixed":
        yield from _mix(directives)
    elif directives.mix:
        yield warning((*_DIRECTIVES, "mix"), "does nothing: only optimizer: fixed reads it")


def _evaluator(directives: Directives) -> Iterator[Finding]:
    evaluator, path = directives.evaluator, (*_DIRECTIVES, "evaluator")
    endpoint = evaluator.endpoint
    if endpoint is not None:
        url = urlsplit(endpoint.url)
        if url.scheme != "https" and not (url.scheme == "http" and url.hostname in ("127.0.0.1", "::1", "localhost")):
            yield error((*path, "endpoint", "url"), "must be https (http is for loopback only)")
        if evaluator.judge != "endpoint":
            yield warning((*path, "endpoint"), f"does nothing: judge is {evaluator.judge}")


def _mix(directives: Directives) -> Iterator[Finding]:
    path: Path = (*_DIRECTIVES, "mix")
    levels = {level.id: level for level in directives.levels}
    if not directives.mix:
        yield error((*_DIRECTIVES, "optimizer"), "fixed needs directives.mix")
        return
    for index, part in enumerate(directives.mix):
        if part.level not in levels:
            yield error((*path, index, "level"), f"no level {part.level!r}{suggestion(part.level, list(levels))}")
            return
    if len({part.level for part in directives.mix}) < len(directives.mix):
        yield error(path, "a level occurs twice")
    total = math.fsum(part.share for part in directives.mix)
    if abs(total - 1.0) > 1e-6:
        yield error(path, f"the shares sum to {total:g}, not to 1")
        return
    qualities = [_quality(directives, levels[part.level]) for part in directives.mix]
    if any(quality is None for quality in qualities):
        yield warning(path, "the quality of a level is not declared, so the floor cannot be checked against this mix")
        return
    expected = math.fsum(part.share * (quality or 0.0) for part, quality in zip(directives.mix, qualities))
    if expected < directives.quality_floor - 1e-9:
        message = f"infeasible: this mix keeps {expected:.3f} of L0's quality, below {directives.quality_floor:g}"
        yield error(path, message)


def _quality(directives: Directives, level: Level) -> float | None:
    return 1.0 if level is directives.levels[0] else level.quality


def _floors(spec: Spec, directives: Directives) -> Iterator[Finding]:
    qualities = [_quality(directives, level) for level in directives.levels]
    best = max(quality for quality in qualities if quality is not None)
    floors: list[tuple[Path, float | None]] = [((*_DIRECTIVES, "quality_floor"), directives.quality_floor)]
    for index, group in enumerate(directives.classes):
        floors.append(((*_DIRECTIVES, "classes", index, "quality_floor"), group.quality_floor))
    for index, tenant in enumerate(spec.tenants):
        floors.append((("spec", "tenants", index, "quality_floor"), tenant.quality_floor))
    for index, rule in enumerate(spec.rules):
        floors.append((("spec", "rules", index, "set", "quality_floor"), rule.set.quality_floor))
    for path, floor in floors:
        if floor is not None and floor > best + 1e-9:
            yield error(path, f"infeasible: a floor of {floor:g} is above the best quality declared ({best:g} of L0's)")


def _tenants(spec: Spec) -> Iterator[Finding]:
    seen: set[str] = set()
    levels = [level.id for level in spec.directives.levels] if spec.directives is not None else []
    for index, tenant in enumerate(spec.tenants):
        path: Path = ("spec", "tenants", index)
        if tenant.name in seen:
            yield error((*path, "name"), f"tenant {tenant.name!r} exists already")
        seen.add(tenant.name)
        if tenant.directive not in (*_RESERVED, *levels):
            hint = suggestion(tenant.directive, [*_RESERVED, *levels])
            yield error((*path, "directive"), f"no level {tenant.directive!r}{hint}")
        yield from _tenant_budget(spec, tenant, path, len(levels))


def _tenant_budget(spec: Spec, tenant: Tenant, path: Path, levels: int) -> Iterator[Finding]:
    limited = tenant.carbon_budget_g_per_day is not None or tenant.energy_budget_j_per_day is not None
    if tenant.carbon_budget_g_per_day is not None and spec.carbon is None:
        yield error((*path, "carbon_budget_g_per_day"), "grams cannot be counted without a grid; add spec.carbon")
    if tenant.on_exceed == "brief" and levels < 2:
        yield error((*path, "on_exceed"), "brief needs a brief level; add spec.directives.levels")
    if not limited and "on_exceed" in tenant.model_fields_set:
        yield warning((*path, "on_exceed"), "does nothing without a budget")
