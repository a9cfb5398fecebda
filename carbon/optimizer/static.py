"""The yardstick: the cheapest mix that ignores the grid and keeps the same quality.

What a carbon-aware result saves beyond this is what carbon awareness adds; the rest is plain brevity.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from carbon.optimizer.program import Cells, Floor, solve
from carbon.quality import QualityEstimate

Array = NDArray[np.float64]


def static_mixes(
    grams: Array, volumes: Array, estimates: Sequence[QualityEstimate], groups: Sequence[Sequence[int]], share: Array
) -> tuple[Array, Array]:
    """Mixes `[M, L]` fixed for the whole window, and the mask `[G]` of groups whose quality they reach.

    `grams` `[H, M, L]`, `volumes` `[H, M]`: as the window turned out. `groups`: estimates that share a quality, and
    `share` `[G]` the quality relative to L0 that the result to be compared with had. Groups no static mix can serve
    (only a moving mix of classes could) stay at L0 and are false in the mask.
    """
    total = volumes.sum(axis=0)
    average = np.einsum("hm,hml->ml", volumes, grams) / np.maximum(total, 1e-12)[:, None]
    cells = Cells(average, total, np.arange(len(total)))
    floors = [Floor(np.asarray(group, dtype=np.int64), float(part)) for group, part in zip(groups, share)]
    solution = solve(cells, estimates, floors)
    reached = np.ones(len(floors), dtype=bool)
    reached[list(solution.unmet)] = False
    return solution.x, reached
