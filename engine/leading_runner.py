"""The executor of a tensor-parallel engine's first rank: tells the others each step, then takes its own share of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from engine.batch import Batch, DeviceLostError, StepResult
from engine.device_runner import DeviceRunner
from engine.model_runner import ModelRunner
from engine.rank_processes import RankProcesses
from engine.step_frames import Probe, StepWriter, encoder


class LeadingRunner:
    """`inner` in step with the runners of the other ranks.

    Any error may leave the ranks at different operations, so it is final: it and every later call raise
    `DeviceLostError`.
    """

    def __init__(self, inner: ModelRunner | DeviceRunner, ranks: RankProcesses) -> None:
        self._inner = inner
        self._ranks = ranks
        self._writer = StepWriter()
        self._lost: str | None = None

    def run(self, batch: Batch) -> StepResult:
        with self._together():
            self._tell(batch)
            return self._inner.run(batch)

    def launch(self, batch: Batch) -> object:
        assert isinstance(self._inner, DeviceRunner)
        with self._together():
            self._tell(batch)
            return self._inner.launch(batch)

    def collect(self, launched: object) -> StepResult:
        assert isinstance(self._inner, DeviceRunner)
        with self._together():
            return self._inner.collect(launched)

    def probe(self) -> None:
        with self._together():
            self._ranks.send(encoder.encode(Probe()))
            self._inner.probe()

    def _tell(self, batch: Batch) -> None:
        self._ranks.send(encoder.encode(self._writer.step(batch)))

    @contextlib.contextmanager
    def _together(self) -> Iterator[None]:
        if self._lost is not None:
            raise DeviceLostError(self._lost)
        try:
            with self._ranks.timed():
                yield
        except Exception as error:
            self._lost = f"the tensor-parallel group is lost: {type(error).__name__}: {error}"
            raise DeviceLostError(self._lost) from error
