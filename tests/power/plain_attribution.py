"""Attribution as it is defined: every step and every request of it, one after the other. What `Attributor` must equal.

Only the counter's side (which interval closes when) is inherited; weights, division and idle shares are stated anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from power.accounts import Account
from power.attribution import Attributor

SMALLEST_W = 1e-3


@dataclass
class PlainStep:
    started_s: float
    ended_s: float
    weights: list[tuple[str, float, float]]

    @property
    def total(self):
        return sum(prefill + decode for _, prefill, decode in self.weights)


class PlainAttributor(Attributor):
    def on_step(self, started_s, ended_s, work):
        for share in work:
            self._accounts.setdefault(share.request_id, Account(started_s))
        if started_s - self._stepped_until_s < self.meter.window_s:
            started_s = self._stepped_until_s
        self._steps.append(PlainStep(started_s, ended_s, plain_weights(self._work_model, work)))
        self._stepped_until_s = max(self._stepped_until_s, ended_s)
        self._last_step_end_s = ended_s
        if self._steps[0].ended_s < ended_s - 120.0:
            self._give_up(ended_s - 120.0)
        self._settle()

    def _hand_out(self, interval):
        found = self._plain(interval)
        books = self.books
        for request_id, (prefill_j, decode_j) in found.requests.items():
            account = self._accounts.get(request_id)
            if account is None:
                books.unattributed_j += prefill_j + decode_j
                continue
            account.prefill_j += prefill_j
            account.decode_j += decode_j
            books.prefill_j += prefill_j
            books.decode_j += decode_j
        shared = 0.0
        for request_id, joules in self._plain_idle(interval, found.idle_j).items():
            account = self._accounts[request_id]
            account.idle_j += joules
            shared += joules
            account.estimated |= interval.estimated
            account.gap |= interval.gap
            account.foreign |= interval.foreign
        books.request_idle_j += shared
        books.idle_j += found.idle_j - shared
        books.unattributed_j += found.unattributed_j
        self._learn(found.weighed_j, found.modelled_j)

    def _preview(self, interval, request_id, account, tail):
        found = self._plain(interval)
        prefill_j, decode_j = found.requests.get(request_id, (0.0, 0.0))
        tail.prefill_j += prefill_j
        tail.decode_j += decode_j
        tail.idle_j += self._plain_idle(interval, found.idle_j).get(request_id, 0.0)

    def _price(self, stretch, request_id, account, tail):
        start, end = stretch.start_s, stretch.end_s
        power = self._sample.power_w if self._sample is not None else None
        if self._model_scale is None:
            if power is not None:
                whole = type(stretch)(start, end, power * (end - start), [end], [power])
                self._preview(whole, request_id, account, tail)
            return
        for step in self._steps:
            seconds = min(step.ended_s, end) - max(step.started_s, start)
            if seconds > 0.0 and step.ended_s > step.started_s:
                part = self._model_scale * seconds / (step.ended_s - step.started_s)
                tail.prefill_j += part * sum(prefill for name, prefill, _ in step.weights if name == request_id)
                tail.decode_j += part * sum(decode for name, _, decode in step.weights if name == request_id)
        idle_j = (self.idle.power_w or 0.0) * (end - start)
        tail.idle_j += self._plain_idle(stretch, idle_j).get(request_id, 0.0)

    def _plain(self, interval):
        idle_w = self.idle.power_w or 0.0
        pieces, covered = [], interval.start_s
        for step in self._steps:
            begin, stop = max(step.started_s, covered), min(step.ended_s, interval.end_s)
            if step.started_s >= interval.end_s or stop <= begin:
                continue
            covered = stop
            known = self._model_scale is not None and step.total > 0.0
            expected_w = idle_w + self._model_scale * step.total / (step.ended_s - step.started_s) if known else 1.0
            pieces.append((step, begin, stop, expected_w))
        found = Found()
        stepped_j = stepped_s = 0.0
        for (step, begin, stop, _), energy in zip(pieces, plain_spread(interval, pieces), strict=True):
            idle = min(energy, idle_w * (stop - begin))
            stepped_j += energy
            stepped_s += stop - begin
            found.idle_j += idle
            if step.total <= 0.0:
                found.unattributed_j += energy - idle
                continue
            found.weighed_j += energy - idle
            found.modelled_j += step.total * (stop - begin) / (step.ended_s - step.started_s)
            for request_id, prefill, decode in step.weights:
                before = found.requests.get(request_id, (0.0, 0.0))
                unit = (energy - idle) / step.total
                found.requests[request_id] = (before[0] + prefill * unit, before[1] + decode * unit)
        outside_j = interval.joules - stepped_j
        outside_idle_j = min(max(outside_j, 0.0), idle_w * max(0.0, interval.end_s - interval.start_s - stepped_s))
        found.idle_j += outside_idle_j
        found.unattributed_j += outside_j - outside_idle_j
        return found

    def _plain_idle(self, interval, idle_j):
        start, end = interval.start_s, interval.end_s
        stays = {}
        for request_id, account in self._accounts.items():
            retired = end if account.retired_s is None else account.retired_s
            begin, stop = max(account.admitted_s, start), min(retired, end)
            if stop > begin:
                stays[request_id] = (begin, stop)
        parts = dict.fromkeys(stays, 0.0)
        edges = sorted({start, end, *(edge for stay in stays.values() for edge in stay)})
        for left, right in pairwise(edges):
            present = [request_id for request_id, (begin, stop) in stays.items() if begin <= left and stop >= right]
            for request_id in present:
                parts[request_id] += idle_j * (right - left) / (end - start) / len(present)
        return parts


class Found:
    def __init__(self):
        self.requests = {}
        self.idle_j = self.unattributed_j = self.weighed_j = self.modelled_j = 0.0


def plain_weights(model, work):
    """Each request's prefill and decode weight, by the definition in `power.work`."""
    decoding = sum(share.decode_tokens > 0 for share in work)
    prompt_tokens = sum(share.prefill_tokens for share in work)
    found = []
    for share in work:
        tokens, context = share.prefill_tokens, share.kv_tokens_read
        prefill = decode = 0.0
        if tokens:
            pairs = tokens * max(context - tokens / 2, tokens / 2)
            prefill = tokens * model.token_cost + pairs * model.pair_cost + context * model.kv_cost
            if not decoding:
                prefill += model.weights_cost * tokens / prompt_tokens
        if share.decode_tokens:
            decode = share.decode_tokens * model.token_cost + model.weights_cost / decoding
            if not tokens:
                decode += context * (model.kv_cost + model.pair_cost)
        found.append((share.request_id, prefill, decode))
    return found


def plain_spread(interval, pieces):
    """Joules of each piece: a span between two samples has its power's part of the interval's joules, its steps the
    part of it that they cover in time, each of them by its expected energy."""
    powers = [1.0] * len(interval.powers) if max(interval.powers, default=0.0) < SMALLEST_W else interval.powers
    spans = list(zip([interval.start_s, *interval.times], interval.times, powers, strict=False))
    total = sum(power * (right - left) for left, right, power in spans)
    joules = [0.0] * len(pieces)
    if total <= 0.0:
        return joules
    for left, right, power in spans:
        seconds = [max(0.0, min(stop, right) - max(begin, left)) for _, begin, stop, _ in pieces]
        expected = [part * watts for part, (_, _, _, watts) in zip(seconds, pieces, strict=True)]
        if sum(expected) > 0.0:
            here_j = interval.joules * power / total * sum(seconds)
            joules = [before + here_j * (part / sum(expected)) for before, part in zip(joules, expected, strict=True)]
    return joules
