"""The scheduler for a caller that takes decode steps itself: virtual-time simulation, which jumps over runs of them."""

from __future__ import annotations

from collections.abc import Iterable

from engine.batch import Batch, ScheduledRequest
from engine.outcome import length_limit
from engine.request import FinishReason, Request
from engine.scheduler import Scheduler


class SchedulerBeside(Scheduler):
    """`Scheduler` and what admits and ends requests beside decode steps that it did not hand out."""

    def schedule_beside(self, decodes: int, owed_blocks: int) -> Batch | None:
        """Admit what waits into a step in which all of the `decodes` running requests compute one token each, without
        handing out those: for a caller that takes them itself (virtual-time simulation), and still has to take at most
        `owed_blocks` blocks for them. `update` it like any batch.

        None, and nothing changed, where nobody is admitted, or where blocks are so few that `schedule` must decide.
        """
        budget, waiting, pool = self._token_budget - decodes, self._waiting, self.pool
        plain = self._drafting is None and not self._runs_ahead and not pool.prefix_caching
        most_blocks = waiting.num_tokens // pool.block_size + len(waiting)
        if self._paused or not plain or budget <= 0 or not waiting:
            return None
        if most_blocks + owed_blocks + self._watermark_blocks >= pool.num_free:
            return None
        admitted: list[ScheduledRequest] = []
        longer: list[ScheduledRequest] = []
        self._admit_waiting(budget, admitted, longer)
        admitted.extend(longer)
        return self._in_flight(admitted) if admitted else None

    def complete(self, requests: Iterable[Request]) -> None:
        """End running requests that have their full length, for a caller that took their decode steps itself.

        Raises `ValueError` where one does not run or may still draw a token.
        """
        for request in requests:
            if request not in self._running or len(request.token_ids) < length_limit(
                request, self.config.max_model_len
            ):
                raise ValueError(f"request {request.request_id!r} does not run, or has not drawn its last token")
            self._finish(request, FinishReason.LENGTH)
        self._drop_finished()
