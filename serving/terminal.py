"""What long operations show: a progress bar on a terminal, nothing in a pipe."""

from __future__ import annotations

import sys
from types import TracebackType

from tqdm import tqdm


class Progress:
    """One bar on stderr that changes its label from stage to stage; use as a context manager."""

    def __init__(self) -> None:
        self._bar: tqdm[None] | None = None
        self._stage = ""

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def show(self, stage: str, done: int, total: int) -> None:
        """`done` of `total` bytes; `total` 0 for a stage without a measure."""
        if not sys.stderr.isatty():
            return
        if stage != self._stage or self._bar is None:
            self.close()
            self._stage = stage
            layout = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}" if total else "{desc}"
            self._bar = tqdm(total=total or None, desc=stage, unit="B", unit_scale=True, bar_format=layout, leave=False)
        if total:
            self._bar.total = total
            self._bar.update(done - self._bar.n)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
