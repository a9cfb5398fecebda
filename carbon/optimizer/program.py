"""The linear program behind `classed` and `budgeted`: least grams under floors of quality, some of them uncertain.

A cell is a set of requests that share one mix (a class in an hour, or a band of it). A floor ties cells together:

    sum_n w_n (q_n x_n - f_n q_n0) + balance  -  z * sd  >=  0

where sd is the standard deviation of that sum, given the covariance of the quality estimates. Cells that use the same
estimate err together, different estimates err apart. The deviation is convex in x, so the floor is met by Kelley's
cutting planes: solve, linearise the deviation where the floor fails, solve again. Every step is a linear program for
HiGHS.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.optimize import linprog

from carbon.optimizer.hull import solve_certain
from carbon.quality import QualityEstimate

Array = NDArray[np.float64]
Index = NDArray[np.int64]

FLOOR_TOLERANCE = 1e-5
MAX_ROUNDS = 25


@dataclass(frozen=True, slots=True)
class Cells:
    """`grams` `[N, L]` of one request at each level; `weight` `[N]` expected requests; `estimate` `[N]` index of the
    cell's quality estimate."""

    grams: Array
    weight: Array
    estimate: Index

    def __post_init__(self) -> None:
        if self.grams.ndim != 2 or self.weight.shape != (len(self.grams),) or self.estimate.shape != self.weight.shape:
            raise ValueError(f"cells disagree in shape: {self.grams.shape}, {self.weight.shape}, {self.estimate.shape}")
        if not (np.all(np.isfinite(self.grams)) and np.all(np.isfinite(self.weight)) and np.all(self.weight >= 0.0)):
            raise ValueError("grams and weights must be finite, weights at least 0")


@dataclass(frozen=True, slots=True)
class Floor:
    """Cells that together keep `share` of L0's quality (`share`: one number, or one a cell).

    `past` `[M, L]`: weight already spent at each level minus `share` times all of it at L0, by estimate; it brings the
    balance of hours gone by, and its uncertainty.
    """

    cells: Index
    share: float | Array
    past: Array | None = None


@dataclass(frozen=True, slots=True)
class Solution:
    """`x` `[N, L]`; `unmet`: index of each floor that no mix could meet, whose cells are at L0."""

    x: Array
    unmet: tuple[int, ...] = ()
    rounds: int = 1


@dataclass(slots=True)
class _Program:
    cells: Cells
    estimates: Sequence[QualityEstimate]
    floors: Sequence[Floor]
    z: float
    mean: Array = field(init=False)
    covariance: Array = field(init=False)

    def __post_init__(self) -> None:
        self.mean = np.array([estimate.mean for estimate in self.estimates])
        self.covariance = np.array([estimate.covariance for estimate in self.estimates])

    def contrast(self, floor: Floor, x: Array) -> Array:
        """`[M, L]`: summed weight at each level minus `share` at L0, by estimate; affine in x."""
        cells = self.cells
        index, weight = cells.estimate[floor.cells], cells.weight[floor.cells]
        total = np.zeros_like(self.mean) if floor.past is None else floor.past.astype(np.float64).copy()
        np.add.at(total, index, weight[:, None] * x[floor.cells])
        np.add.at(total[:, 0], index, -weight * floor.share)
        return total

    def value(self, floor: Floor, x: Array, z: float) -> tuple[float, Array]:
        """The floor's left side at x, and its gradient `[n, L]` over the floor's cells."""
        cells = self.cells
        contrast = self.contrast(floor, x)
        mean = float(np.einsum("ml,ml->", contrast, self.mean))
        pull = np.einsum("mij,mj->mi", self.covariance, contrast)
        variance = float(np.einsum("ml,ml->", contrast, pull))
        index, weight = cells.estimate[floor.cells], cells.weight[floor.cells]
        slope = self.mean[index]
        if z > 0.0 and variance > 0.0:
            deviation = variance**0.5
            mean -= z * deviation
            slope = slope - z * pull[index] / deviation
        return mean, weight[:, None] * slope

    def scale(self, floor: Floor) -> float:
        """L0's quality of the floor's cells: what the tolerance is relative to."""
        index = self.cells.estimate[floor.cells]
        return max(float(self.cells.weight[floor.cells] @ self.mean[index, 0]), 1e-12)


def solve(
    cells: Cells, estimates: Sequence[QualityEstimate], floors: Sequence[Floor], z: float = 0.0, *, joint: bool = False
) -> Solution:
    """Least-gram mixes. Floors that cannot be met leave their cells at L0 and are named in `unmet`.

    `joint`: floors share cells; where they cannot be met together every cell stays at L0 and all are `unmet`.
    Cells without a floor, or of weight 0, are the caller's choice to make and come back at L0.
    """
    program = _Program(cells, estimates, floors, z)
    unmet = [] if joint else [i for i, floor in enumerate(floors) if not _possible(program, floor)]
    live = [i for i in range(len(floors)) if i not in set(unmet)]
    x = _at_l0(cells)
    solved = _solve(program, live)
    if solved is None:
        if joint:
            return Solution(x, tuple(range(len(floors))))
        pieces = [(i, _solve(program, [i])) for i in live]
        for i, piece in pieces:
            if piece is None:
                unmet.append(i)
            else:
                x[floors[i].cells] = piece[0][floors[i].cells]
        return Solution(x, tuple(sorted(unmet)))
    touched = np.unique(np.concatenate([floors[i].cells for i in live])) if live else np.array([], dtype=np.int64)
    x[touched] = solved[0][touched]
    return Solution(x, tuple(unmet), solved[1])


def _at_l0(cells: Cells) -> Array:
    x = np.zeros_like(cells.grams)
    x[:, 0] = 1.0
    return x


def _possible(program: _Program, floor: Floor) -> bool:
    """Whether a mix can meet the floor: L0 for a share of at most 1, else the best means if they were exact.

    For such a share L0 meets the floor in truth; where its bound does not, so little is known of the class that no
    mix is worth looking for.
    """
    if floor.past is None and np.all(np.asarray(floor.share) <= 1.0):
        return _met(program, floor, _at_l0(program.cells))
    x = np.zeros_like(program.cells.grams)
    best = program.mean[program.cells.estimate[floor.cells]].argmax(axis=1)
    x[floor.cells, best] = 1.0
    contrast = program.contrast(floor, x)
    return bool((contrast * program.mean).sum() >= -FLOOR_TOLERANCE * program.scale(floor))


def _met(program: _Program, floor: Floor, x: Array) -> bool:
    return program.value(floor, x, program.z)[0] >= -FLOOR_TOLERANCE * program.scale(floor)


def _towards_l0(program: _Program, floors: Sequence[Floor], x: Array) -> Array | None:
    """x moved towards L0 just far enough to meet all `floors`; None when L0 does not meet them."""
    plain = _at_l0(program.cells)

    def met(moved: Array) -> bool:
        return all(_met(program, floor, moved) for floor in floors)

    if not met(plain):
        return None
    low, high = 0.0, 1.0
    for _ in range(30):
        middle = (low + high) / 2.0
        if met((1.0 - middle) * x + middle * plain):
            high = middle
        else:
            low = middle
    return np.asarray((1.0 - high) * x + high * plain)


def _solve(program: _Program, live: Sequence[int]) -> tuple[Array, int] | None:
    cells, floors = program.cells, program.floors
    n, levels = cells.grams.shape
    if not live:
        return _at_l0(cells), 0
    used = np.unique(np.concatenate([floors[i].cells for i in live]))
    position = np.full(n, -1)
    position[used] = np.arange(len(used))
    certain = _certain(program, live, used)
    if certain is None or program.z == 0.0:
        return None if certain is None else (certain, 1)
    spend = (cells.weight[used, None] * (cells.grams[used] - cells.grams[used].min(axis=1, keepdims=True))).ravel()
    spend = spend / (spend.max() or 1.0)
    one_mix = sparse.kron(sparse.eye_array(len(used)), np.ones((1, levels)), format="csr")
    rows: list[Array] = []
    columns: list[Index] = []
    bounds: list[float] = []
    x = certain
    # The mean alone is the first cut, and the deviation where the mean alone would go the second.
    current = {i: program.value(floors[i], _at_l0(cells), 0.0) for i in live}
    _add_cuts(program, current, _at_l0(cells), position, rows, columns, bounds)
    checked = {i: program.value(floors[i], x, program.z) for i in live}
    current = {i: c for i, c in checked.items() if c[0] < -FLOOR_TOLERANCE * program.scale(floors[i])}
    if not current:
        return x, 1
    for rounds in range(1, MAX_ROUNDS + 1):
        _add_cuts(program, current, x, position, rows, columns, bounds)
        matrix = sparse.csr_array(
            (
                -np.concatenate(rows),
                np.concatenate(columns),
                np.concatenate(([0], np.cumsum([len(row) for row in rows]))),
            ),
            shape=(len(rows), spend.size),
        )
        solved = linprog(
            spend, A_ub=matrix, b_ub=bounds, A_eq=one_mix, b_eq=np.ones(len(used)), bounds=(0.0, 1.0), method="highs"
        )
        if not solved.success:
            return None
        x = _at_l0(cells)
        x[used] = np.clip(solved.x.reshape(-1, levels), 0.0, 1.0)
        x[used] /= x[used].sum(axis=1, keepdims=True)
        checked = {i: program.value(floors[i], x, program.z) for i in live}
        current = {i: c for i, c in checked.items() if c[0] < -FLOOR_TOLERANCE * program.scale(floors[i])}
        if not current:
            return x, rounds
    return _finish(program, list(current), x)


def _certain(program: _Program, live: Sequence[int], used: Index) -> Array | None:
    """The program with the means taken for exact; None when its floors cannot be met."""
    cells = program.cells
    position = np.full(len(cells.weight), -1)
    position[used] = np.arange(len(used))
    nothing = np.zeros_like(cells.grams)
    needed = [-float((program.contrast(program.floors[i], nothing) * program.mean).sum()) for i in live]
    solved, met = solve_certain(
        cells.grams[used],
        program.mean[cells.estimate[used]],
        cells.weight[used],
        [position[program.floors[i].cells] for i in live],
        np.array(needed),
    )
    if not met:
        return None
    x = _at_l0(cells)
    x[used] = solved
    return x


def _add_cuts(
    program: _Program,
    found: Mapping[int, tuple[float, Array]],
    x: Array,
    position: Index,
    rows: list[Array],
    columns: list[Index],
    bounds: list[float],
) -> None:
    """Append `value + slope (x' - x) >= 0` for each floor, in units of its L0 quality."""
    levels = x.shape[1]
    for number, (value, slope) in found.items():
        floor = program.floors[number]
        scale = program.scale(floor)
        rows.append(slope.ravel() / scale)
        columns.append((position[floor.cells][:, None] * levels + np.arange(levels)).ravel())
        bounds.append((value - float((slope * x[floor.cells]).sum())) / scale)


def _finish(program: _Program, open_floors: Sequence[int], x: Array) -> tuple[Array, int] | None:
    """Floors the cuts have not settled in `MAX_ROUNDS` are met by moving towards L0: each floor's cells alone, or
    everything at once where floors share cells."""
    everything = np.concatenate([floor.cells for floor in program.floors])
    if len(np.unique(everything)) < len(everything):
        moved = _towards_l0(program, program.floors, x)
        return None if moved is None else (moved, MAX_ROUNDS)
    for number in open_floors:
        floor = program.floors[number]
        moved = _towards_l0(program, [floor], x)
        if moved is None:
            return None
        x[floor.cells] = moved[floor.cells]
    return x, MAX_ROUNDS
