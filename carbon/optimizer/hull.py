"""The program without uncertainty, in the form a solver likes best.

Where quality is certain, all that floors see of a cell is its mean quality, and the least grams for a quality are a
convex, piecewise linear function: the lower hull of its levels. Each edge of the hull is one variable between 0 and 1,
dearer edges come later by convexity, and "probabilities sum to 1" needs no constraint any more.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.optimize import linprog

Array = NDArray[np.float64]
Index = NDArray[np.int64]


def lower_hulls(quality: Array, grams: Array) -> Index:
    """Levels on each cell's lower hull, `[N, L]`, from the cheapest to the best; -1 fills the rest.

    The hull starts at the least grams (the best quality among equals) and walks to better quality along the flattest
    slope; a level that costs more for no more quality is not on it.
    """
    count, levels = quality.shape
    rows = np.arange(count)
    hulls = np.full((count, levels), -1, dtype=np.int64)
    order = np.lexsort((-quality, grams), axis=1)
    current = order[:, 0]
    hulls[:, 0] = current
    for step in range(1, levels):
        gain = quality - quality[rows, current][:, None]
        cost = grams - grams[rows, current][:, None]
        with np.errstate(divide="ignore", invalid="ignore"):
            slope = np.where(gain > 1e-12, cost / gain, np.inf)
        best = slope.min(axis=1)
        # Of levels on one line the farthest is taken, so that slopes strictly rise along the hull.
        reach = np.where(slope <= (best * (1.0 + 1e-12) + 1e-300)[:, None], gain, -np.inf)
        following = reach.argmax(axis=1)
        on = np.isfinite(best) & (hulls[:, step - 1] >= 0)
        hulls[on, step] = following[on]
        current = np.where(on, following, current)
    return hulls


def solve_certain(
    grams: Array, quality: Array, weight: Array, floors: Sequence[Index], needed: Array
) -> tuple[Array, bool]:
    """Mixes `[N, L]` of least grams with `Σ weight * quality >= needed[k]` over the cells of each floor k.

    The second value is False when no mixes meet all floors. Cells of several floors are allowed.
    """
    count, levels = quality.shape
    hulls = lower_hulls(quality, grams)
    x = np.zeros((count, levels))
    rows = np.arange(count)
    start = hulls[:, 0]
    cell, step = np.nonzero(hulls[:, 1:] >= 0)
    below, above = hulls[cell, step], hulls[cell, step + 1]
    gain = weight[cell] * (quality[cell, above] - quality[cell, below])
    cost = weight[cell] * (grams[cell, above] - grams[cell, below])
    first = weight * quality[rows, start]
    edges_of: list[Index] = []
    missing = np.zeros(len(floors))
    member = np.zeros(count, dtype=bool)
    for number, cells in enumerate(floors):
        member[:] = False
        member[cells] = True
        edges_of.append(np.flatnonzero(member[cell]))
        missing[number] = needed[number] - float(first[cells].sum())
    if len(cell) == 0 or np.all(missing <= 0.0):
        x[rows, start] = 1.0
        return x, bool(np.all(missing <= 1e-12 * np.maximum(1.0, np.abs(needed))))
    scale = np.maximum(1e-12, np.array([float(gain[edges].sum()) for edges in edges_of]))
    matrix = sparse.csr_array(
        (
            -np.concatenate([gain[edges] / scale[k] for k, edges in enumerate(edges_of)]),
            np.concatenate(edges_of),
            np.concatenate(([0], np.cumsum([len(edges) for edges in edges_of]))),
        ),
        shape=(len(floors), len(cell)),
    )
    # One dense row is what HiGHS' presolve handles worst: without it the program is solved 30 times faster.
    solved = linprog(
        cost / (cost.max() or 1.0),
        A_ub=matrix,
        b_ub=-missing / scale,
        bounds=(0.0, 1.0),
        method="highs",
        options={"presolve": False},
    )
    if not solved.success:
        return x, False
    filled = np.clip(solved.x, 0.0, 1.0)
    x[rows, start] = 1.0
    # Edges of a cell come in order of their step: each passes what it is given on from the level below it.
    for number in range(levels - 1):
        edges = np.flatnonzero(step == number)
        share = filled[edges] * x[cell[edges], below[edges]]
        x[cell[edges], below[edges]] -= share
        x[cell[edges], above[edges]] += share
    return x, True
