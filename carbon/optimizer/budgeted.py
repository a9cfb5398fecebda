"""Spending a budget over a window: quality is given up in dirty hours and earned back in clean ones.

Receding horizon: each hour the rest of the horizon is planned with the forecast, the first hour is carried out, and
what it spent is booked. The books (`Exposure`) hold what was done, not what it was thought to be worth, so a better
quality estimate later re-values the past as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.optimize import linprog

from carbon.optimizer.program import Cells, Floor, solve
from carbon.quality import QualityEstimate, z_score

Array = NDArray[np.float64]


@dataclass(slots=True)
class Exposure:
    """Requests served so far in the window, `served` `[M, L]` by estimate (class or band) and level."""

    served: Array

    @classmethod
    def empty(cls, estimates: int, levels: int) -> Exposure:
        return cls(np.zeros((estimates, levels)))

    def add(self, estimate: int, level: int, requests: float = 1.0) -> None:
        self.served[estimate, level] += requests

    def contrast(self, share: float) -> Array:
        past = self.served.copy()
        past[:, 0] -= share * self.served.sum(axis=1)
        return past

    def quality(self, estimates: Sequence[QualityEstimate]) -> float | None:
        """Quality of what was served relative to L0, as now estimated; None before the first request."""
        mean = np.array([estimate.mean for estimate in estimates])
        base = float(self.served.sum(axis=1) @ mean[:, 0])
        return float((self.served * mean).sum()) / base if base > 0.0 else None


@dataclass(frozen=True, slots=True)
class Plan:
    """`x` `[H, M, L]`: mixes for each hour of the horizon and each estimate; `note`: why they are not as asked."""

    x: Array
    grams: float
    quality: float | None
    note: str | None = None


def plan_quality_budget(
    grams: Array,
    volumes: Array,
    estimates: Sequence[QualityEstimate],
    classes: Sequence[int],
    *,
    target: float = 1.0,
    class_floor: float | Sequence[float] | None = None,
    fair: bool = False,
    past: Exposure | None = None,
    confidence: float = 0.5,
) -> Plan:
    """Least grams over the horizon such that quality, past included, stays at `target` of L0's.

    `grams` `[H, M, L]` of one request; `volumes` `[H, M]` expected requests; `classes` `[M]` the class of each
    estimate (bands of one class share its number). `fair`: every class has a budget of its own; otherwise one is
    pooled over all classes. `class_floor`: no class falls below this share over the horizon, whatever the pool has;
    one number, or one for each class in ascending order.
    """
    hours, count, levels = grams.shape
    owners = np.asarray(classes)
    cells = Cells(grams.reshape(-1, levels), volumes.ravel(), np.tile(np.arange(count), hours))
    of_class = [np.flatnonzero(owners[cells.estimate] == owner) for owner in np.unique(owners)]
    books = past or Exposure.empty(count, levels)
    floors: list[Floor] = []
    lowest = _floors(class_floor, len(of_class))
    if fair:
        for owner, member, floor in zip(np.unique(owners), of_class, lowest):
            share = max(target, floor)
            own = np.where((owners == owner)[:, None], books.contrast(share), 0.0)
            floors.append(Floor(member, share, own))
    else:
        floors.append(Floor(np.arange(hours * count), target, books.contrast(target)))
        if class_floor is not None:
            floors += [Floor(member, floor) for member, floor in zip(of_class, lowest)]
    solution = solve(cells, estimates, floors, z_score(confidence), joint=not fair)
    note = None
    if solution.unmet:
        note = f"no mix keeps {target:g} of L0's quality over the window at confidence {confidence:g}; L0 is used"
    return _plan(solution.x, cells, estimates, (hours, count, levels), note)


def plan_carbon_budget(
    grams: Array,
    volumes: Array,
    estimates: Sequence[QualityEstimate],
    classes: Sequence[int],
    *,
    budget_g: float,
    class_floor: float | Sequence[float] = 0.0,
) -> Plan:
    """Best quality over the horizon for at most `budget_g` grams, every class above `class_floor` (as above).

    Where even the briefest mix above the floors exceeds the budget, that mix is returned and the note says by how
    much it exceeds. Quality is counted relative to each estimate's own L0, so that no class counts for more.
    """
    hours, count, levels = grams.shape
    owners = np.asarray(classes)
    cells = Cells(grams.reshape(-1, levels), volumes.ravel(), np.tile(np.arange(count), hours))
    mean = np.array([estimate.mean / max(estimate.mean[0], 1e-9) for estimate in estimates])[cells.estimate]
    n = len(cells.weight)
    gain = (cells.weight[:, None] * mean).ravel()
    spend = (cells.weight[:, None] * cells.grams).ravel()
    rows = [sparse.csr_array(spend[None, :] / max(budget_g, 1e-12))]
    bounds = [1.0]
    lowest = _floors(class_floor, len(np.unique(owners)))
    for owner, floor in zip(np.unique(owners), lowest):
        member = owners[cells.estimate] == owner
        total = float(cells.weight[member].sum())
        if total > 0.0:
            rows.append(sparse.csr_array(-np.where(np.repeat(member, levels), gain, 0.0)[None, :] / total))
            bounds.append(-floor)
    equal = sparse.kron(sparse.eye_array(n), np.ones((1, levels)), format="csr")
    solved = linprog(
        -gain / (gain.max() or 1.0),
        A_ub=sparse.vstack(rows, format="csr"),
        b_ub=bounds,
        A_eq=equal,
        b_eq=np.ones(n),
        bounds=(0.0, 1.0),
        method="highs",
    )
    if solved.success:
        return _plan(solved.x.reshape(n, levels), cells, estimates, (hours, count, levels), None)
    briefest = plan_quality_budget(grams, volumes, estimates, classes, target=0.0, class_floor=lowest, fair=True)
    if briefest.note is not None:
        return briefest
    note = f"the carbon budget of {budget_g:.6g} g is exceeded: {briefest.grams:.6g} g is the least above the floor"
    return Plan(briefest.x, briefest.grams, briefest.quality, note)


def _floors(class_floor: float | Sequence[float] | None, classes: int) -> list[float]:
    if class_floor is None:
        return [0.0] * classes
    given = [class_floor] * classes if isinstance(class_floor, int | float) else list(class_floor)
    if len(given) != classes:
        raise ValueError(f"class_floor has {len(given)} entries for {classes} classes")
    return given


def _plan(
    x: Array, cells: Cells, estimates: Sequence[QualityEstimate], shape: tuple[int, int, int], note: str | None
) -> Plan:
    mean = np.array([estimate.mean for estimate in estimates])[cells.estimate]
    total = float((cells.weight[:, None] * cells.grams * x).sum())
    base = float(cells.weight @ mean[:, 0])
    quality = float((cells.weight[:, None] * mean * x).sum()) / base if base > 0.0 else None
    return Plan(x.reshape(shape), total, quality, note)
