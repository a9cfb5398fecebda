"""Joules of each request, from a device's energy counter and the work of the engine's steps.

The rule, for each interval between two movements of the counter:
1. the counter's delta is spread over the interval by the instant power samples (see `power.spread`);
2. of each step's energy the idle share (idle power times its duration) is taken out;
3. the rest is dynamic and goes to the requests of the step by modelled work (`power.work`), prefill and decode apart;
4. idle energy is split equally among the requests resident at each moment; with none resident it is `idle`;
5. what lies above idle outside any step is `unattributed` and reported.
So requests + idle + unattributed = delta, always. A pause between two steps shorter than the sensor's window cannot
be told from the steps by that sensor and counts to the step after it.

Pure bookkeeping: no threads, no clock, no device. All times are monotonic seconds of one clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from power.accounts import Account, request_energy
from power.books import Books, EnergySample, Meter, RequestEnergy
from power.division import Cohort, Division, Step, divide, share_idle
from power.idle import IdleBaseline
from power.spread import Interval, integral
from power.work import Share, WorkModel

PATIENCE_S = 30.0
GAP_S = 1.0
STUCK_S = 5.0
LEARNING = 0.2
HORIZON_S = 120.0
"""Without any sample for so long, steps are dropped and finished requests given out unsettled."""


class Attributor:
    """`model_scale`: joules for each of the work model's where its GPU is the one measured (1.0), else unknown until
    the counter has told.

    Feed `on_sample`, `on_step`, `admit` and `retire` as they happen; take finished requests from `settled()`."""

    def __init__(
        self, meter: Meter, work_model: WorkModel, idle: IdleBaseline, *, model_scale: float | None = None
    ) -> None:
        self.meter = meter
        self.books = Books()
        self.idle = idle
        self._work_model = work_model
        self._model_scale = model_scale
        self._accounts: dict[str, Account] = {}
        self._cohort = Cohort([])
        self._steps: deque[Step] = deque()
        self._intervals: deque[Interval] = deque()
        self._done: list[RequestEnergy] = []
        self._sample: EnergySample | None = None
        self._counter: EnergySample | None = None
        self._open: Interval | None = None
        self._advance_credit_j = 0.0
        self._stepped_until_s = float("-inf")
        self._settled_until_s = float("-inf")
        self._last_step_end_s = float("-inf")

    def admit(self, request_id: str, time_s: float) -> None:
        """From now on the request is resident: idle energy is shared with it."""
        self._accounts.setdefault(request_id, Account(time_s))

    def on_step(self, started_s: float, ended_s: float, work: Sequence[Share]) -> None:
        """One step and whose work it held. Unknown requests are admitted at its start."""
        weights = self._cohort.continued(work)
        if weights is None:
            self._gather([share.request_id for share in work], started_s)
            weights = self._work_model.weigh(work)
            self._cohort.begin(weights)
        if started_s - self._stepped_until_s < self.meter.window_s:
            started_s = self._stepped_until_s
        self._steps.append(Step(started_s, ended_s, self._cohort, weights))
        self._stepped_until_s = max(self._stepped_until_s, ended_s)
        self._last_step_end_s = ended_s
        if self._steps[0].ended_s < ended_s - HORIZON_S:
            self._give_up(ended_s - HORIZON_S)
        self._settle()

    def retire(self, request_id: str, time_s: float) -> None:
        """The request has left; its figure follows in `settled()` once the counter has caught up."""
        account = self._accounts.get(request_id)
        if account is not None and account.retired_s is None:
            account.retired_s = time_s
            self._settle()
            self._release(self._settled_until_s)

    def on_sample(self, sample: EnergySample, *, foreign: bool = False) -> None:
        """A look at the sensor; `foreign` when other processes use the board. Samples must come in time order."""
        previous, self._sample = self._sample, sample
        if foreign:
            self.books.foreign_samples += 1
        self._watch_idle(sample)
        if previous is None:
            self._counter = sample if sample.energy_j is not None else None
            self._open = Interval(sample.time_s, sample.time_s, 0.0)
            return
        current = self._open
        assert current is not None
        if sample.time_s <= previous.time_s:
            return
        current.foreign |= foreign
        if sample.time_s - previous.time_s > GAP_S:
            self.books.gaps += 1
            current.gap = True
        power = sample.power_w if sample.power_w is not None else previous.power_w
        current.times.append(sample.time_s)
        current.powers.append(power if power is not None else 1.0)
        self._close_interval(current, sample, known_power=power is not None)
        self._settle()

    def settled(self) -> list[RequestEnergy]:
        """Requests whose whole life the counter has covered since the last call."""
        done, self._done = self._done, []
        return done

    def request_energy(self, request_id: str, now_s: float) -> RequestEnergy | None:
        """The figure of a request as known now, its unsettled tail estimated; `None` if unknown."""
        account = self._accounts.get(request_id)
        if account is None:
            return None
        tail = Account(account.admitted_s, account.retired_s)
        for interval in self._intervals:
            self._preview(interval, request_id, account, tail)
        settled_s = self._intervals[-1].end_s if self._intervals else self._settled_until_s
        frontier = max(settled_s, account.admitted_s)
        if now_s > frontier:
            self._price(Interval(frontier, now_s, 0.0), request_id, account, tail)
        whole = Account(
            account.admitted_s,
            account.retired_s,
            account.prefill_j + tail.prefill_j,
            account.decode_j + tail.decode_j,
            account.idle_j + tail.idle_j,
            account.estimated,
            account.gap,
            account.foreign,
        )
        return self._give(request_id, whole, account.retired_s or now_s, settled=False)

    @property
    def resident_requests(self) -> int:
        return sum(account.retired_s is None for account in self._accounts.values())

    @property
    def settled_until_s(self) -> float | None:
        """Up to when energy has been handed out; `None` before the first interval."""
        return self._settled_until_s if self._settled_until_s > float("-inf") else None

    def _close_interval(self, current: Interval, sample: EnergySample, *, known_power: bool) -> None:
        integrated_j = integral(current)
        counter = self._counter
        if counter is None or counter.energy_j is None:
            if sample.energy_j is not None:
                self._counter = sample
            if known_power:
                self._finish_interval(sample, integrated_j, estimated=True)
            return
        if sample.energy_j is None:
            return
        delta = sample.energy_j - counter.energy_j
        if delta > 0:
            self._align(current, sample)
            credit = min(self._advance_credit_j, delta)
            self._advance_credit_j -= credit
            self._finish_interval(sample, delta - credit, estimated=False)
            self._counter = sample
        elif delta < 0:
            self.books.counter_resets += 1
            self._advance_credit_j = 0.0
            self._finish_interval(sample, integrated_j if known_power else 0.0, estimated=True)
            self._counter = sample
        elif known_power and integrated_j > 0 and sample.time_s - current.start_s > STUCK_S:
            self.books.stuck += 1
            self._advance_credit_j += integrated_j
            self._finish_interval(sample, integrated_j, estimated=True)

    def _align(self, current: Interval, sample: EnergySample) -> None:
        """The counter moved somewhere between the last two looks: halfway is right on average. With looks further
        apart than its updates there is nothing to gain."""
        before = current.times[-2] if len(current.times) > 1 else current.start_s
        if sample.time_s - before < self.meter.update_s:
            current.times[-1] = (before + sample.time_s) / 2

    def _finish_interval(self, sample: EnergySample, joules: float, *, estimated: bool) -> None:
        current = self._open
        assert current is not None
        end = current.times[-1]
        current.end_s, current.joules, current.estimated = end, joules, estimated
        self._intervals.append(current)
        self._open = Interval(end, end, 0.0)
        if end < sample.time_s:
            self._open.times.append(sample.time_s)
            self._open.powers.append(current.powers[-1])

    def _watch_idle(self, sample: EnergySample) -> None:
        if self._accounts or sample.power_w is None:
            self.idle.busy(sample.time_s)
        else:
            self.idle.observe(sample.time_s, sample.power_w)

    def _settle(self) -> None:
        """Hand out every interval whose steps are all known: a later step has ended, or nothing is running."""
        while self._intervals:
            interval = self._intervals[0]
            if self._last_step_end_s < interval.end_s and self._running_in(interval):
                newest = self._intervals[-1].end_s
                if newest - interval.end_s < PATIENCE_S:
                    return
            self._intervals.popleft()
            books = self.books
            books.counter_j += interval.joules
            if interval.estimated:
                books.estimated_j += interval.joules
            self._hand_out(interval)
            self._settled_until_s = interval.end_s
            while self._steps and self._steps[0].ended_s <= interval.end_s:
                self._steps.popleft()
            self._release(interval.end_s)

    def _running_in(self, interval: Interval) -> bool:
        return any(
            account.admitted_s < interval.end_s and account.retired_s is None for account in self._accounts.values()
        )

    def _release(self, until_s: float) -> None:
        done = [
            request_id
            for request_id, account in self._accounts.items()
            if account.retired_s is not None and account.retired_s <= until_s
        ]
        for request_id in done:
            account = self._close(request_id)
            assert account.retired_s is not None
            self._done.append(self._give(request_id, account, account.retired_s, settled=True))

    def _close(self, request_id: str) -> Account:
        """Take an account out; a later step with its request opens a new one."""
        if request_id in self._cohort.request_ids:
            self._cohort = Cohort([])
        return self._accounts.pop(request_id)

    def _gather(self, request_ids: list[str], started_s: float) -> None:
        """A cohort of these requests, the present one if it is that; each has an account."""
        if request_ids != self._cohort.request_ids:
            for request_id in request_ids:
                if request_id not in self._accounts:
                    self._accounts[request_id] = Account(started_s)
            self._cohort = Cohort(request_ids)

    def _preview(self, interval: Interval, request_id: str, account: Account, tail: Account) -> None:
        """What an interval would bring a request, into `tail`."""
        division = self._division(interval)
        prefill_j, decode_j = division.of_request(request_id)
        tail.prefill_j += prefill_j
        tail.decode_j += decode_j
        tail.idle_j += share_idle(interval, division.idle_j, self._accounts.values()).of_account(account)

    def _price(self, stretch: Interval, request_id: str, account: Account, tail: Account) -> None:
        """Estimate a stretch no counter has covered: by the work model, scaled to what the counter last said of it;
        before that is known, by the last measured power."""
        start, end = stretch.start_s, stretch.end_s
        power = self._sample.power_w if self._sample is not None else None
        if self._model_scale is None:
            if power is not None:
                self._preview(Interval(start, end, power * (end - start), [end], [power]), request_id, account, tail)
            return
        for step in self._steps:
            seconds = min(step.ended_s, end) - max(step.started_s, start)
            if seconds <= 0.0 or step.duration_s <= 0.0:
                continue
            scale = self._model_scale * seconds / step.duration_s
            prefill, decode = step.weight_of(request_id)
            tail.prefill_j += prefill * scale
            tail.decode_j += decode * scale
        idle_j = (self.idle.power_w or 0.0) * (end - start)
        tail.idle_j += share_idle(stretch, idle_j, self._accounts.values()).of_account(account)

    def _give_up(self, before_s: float) -> None:
        """The sensor has been silent: do not gather steps for ever."""
        while self._steps and self._steps[0].ended_s < before_s:
            self._steps.popleft()
            self.books.dropped_steps += 1
        for request_id, account in list(self._accounts.items()):
            if account.retired_s is not None and account.retired_s < before_s:
                self._close(request_id).gap = True
                self._done.append(self._give(request_id, account, account.retired_s, settled=False))

    def _division(self, interval: Interval) -> Division:
        return divide(interval, self._steps, self.idle.power_w or 0.0, self._model_scale)

    def _hand_out(self, interval: Interval) -> None:
        """Put an interval's joules into the accounts and the books."""
        books, accounts, division = self.books, self._accounts, self._division(interval)
        books.unattributed_j += division.unattributed_j
        for request_ids, prefill_j, decode_j in division.runs():
            self._book(request_ids, decode_j, prefill=False)
            if prefill_j is not None:
                self._book(request_ids, prefill_j, prefill=True)
        shares = share_idle(interval, division.idle_j, accounts.values())
        for account in shares.whole:
            account.idle_j += shares.each_j
        for account, joules in shares.others:
            account.idle_j += joules
        books.request_idle_j += shares.joules
        books.idle_j += division.idle_j - shares.joules
        if interval.estimated or interval.gap or interval.foreign:
            for account in (*shares.whole, *(account for account, _ in shares.others)):
                account.estimated |= interval.estimated
                account.gap |= interval.gap
                account.foreign |= interval.foreign
        self._learn(division.weighed_j, division.modelled_j)

    def _book(self, request_ids: list[str], joules: list[float], *, prefill: bool) -> None:
        """Joules of requests into their accounts; those of a request that has none are nobody's."""
        booked = ownerless = 0.0
        for request_id, part in zip(request_ids, joules, strict=True):
            account = self._accounts.get(request_id)
            if account is None:
                ownerless += part
            elif prefill:
                account.prefill_j += part
                booked += part
            else:
                account.decode_j += part
                booked += part
        self.books.unattributed_j += ownerless
        if prefill:
            self.books.prefill_j += booked
        else:
            self.books.decode_j += booked

    def _learn(self, joules: float, modelled: float) -> None:
        """How many real joules one of the work model's is worth."""
        if modelled <= 0.0 or joules <= 0.0:
            return
        scale = joules / modelled
        before = self._model_scale if self._model_scale is not None else scale
        self._model_scale = before + LEARNING * (scale - before)

    def _give(self, request_id: str, account: Account, ended_s: float, *, settled: bool) -> RequestEnergy:
        return request_energy(request_id, account, ended_s, self.meter, self.idle.power_w, settled=settled)
