"""The evaluator: SPROUT's schedule to the hour, judges without position bias, early stopping, retention."""

from __future__ import annotations

import itertools
import json
import random
from datetime import UTC, datetime, timedelta

import httpx
import numpy as np
import pytest

from bench._carbon_data import FIRST_HOUR, HOURS, ZONES, read_published, read_year
from bench._carbon_judging import forecast_hours, sprout_hours
from carbon.directives import SPROUT_LEVELS
from carbon.evaluator.endpoints import Answer, ChatEndpoint, EndpointError
from carbon.evaluator.judges import (
    CostCap,
    CostCapReachedError,
    ExactMatchJudge,
    ModelJudge,
    is_right,
    read_verdict,
)
from carbon.evaluator.retention import KeptPrompt, PromptStore, RetentionLimits, make_key
from carbon.evaluator.run import EvaluationPlan, evaluate
from carbon.evaluator.schedule import ForecastSchedule, SproutSchedule
from carbon.evaluator.sequential import LevelTest, Verdict, radius

NOW = datetime(2025, 3, 4, 12, tzinfo=UTC)
YEAR_START = datetime(2023, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize("zone", sorted(ZONES))
def test_sprouts_schedule_is_reproduced_to_the_hour_and_ours_needs_half(carbon_data, zone):
    year = read_year(carbon_data, zone).values()
    published = read_published(carbon_data, zone).assessed_at
    assert sprout_hours(year[FIRST_HOUR : FIRST_HOUR + HOURS]) == list(published)
    ours = forecast_hours(year, YEAR_START, FIRST_HOUR, HOURS)
    assert len(ours) * 2 <= len(published)
    assert max(b - a for a, b in itertools.pairwise(ours)) <= ForecastSchedule().max_age_h


def test_schedules_are_forced_by_age_and_held_by_grace():
    sprout, ours = SproutSchedule(), ForecastSchedule()
    assert sprout.decide([500.0] * 3, 100.0, 72.0).run
    assert not sprout.decide([10.0, 5.0, 6.0], 100.0, 6.0).run
    assert not sprout.decide([10.0, 5.0, 200.0], 100.0, 30.0).run
    assert sprout.decide([10.0, 5.0, 6.0], 100.0, 30.0).run
    assert ours.decide(500.0, [1.0] * 90, 168.0).run
    assert not ours.decide(100.0, [200.0] * 90, 10.0).run
    assert not ours.decide(100.0, [200.0, 50.0], 100.0).run
    assert ours.decide(100.0, [200.0, 99.0], 100.0).run
    # the cleaner hour lies beyond the deadline
    assert ours.decide(100.0, [200.0, 200.0, 50.0], 166.0).run


class Scripted:
    """A served model: what it says depends on the system message, or on the level named in the field."""

    def __init__(self, answers, energy=10.0):
        self.answers, self.energy, self.calls = answers, energy, []

    async def answer(self, messages, *, max_tokens, directive=None):
        self.calls.append((list(messages), max_tokens, directive))
        system = messages[0]["content"] if messages[0]["role"] == "system" else ""
        level = directive or {"": "L0", "Always answer briefly": "L1"}.get(system, "L2")
        text = self.answers("L0" if level == "off" else level, messages[-1]["content"])
        if text is None:
            raise EndpointError("down")
        return Answer(text, 10, len(text.split()), self.energy, self.energy / 1000)


class Biased:
    """A judge model that always prefers the first answer, unless one of them holds the word it likes."""

    def __init__(self, likes=None):
        self.likes, self.prompts = likes, []

    async def answer(self, messages, *, max_tokens, directive=None):
        text = messages[-1]["content"]
        self.prompts.append(text)
        first, second = text.split("Answer A:")[1].split("Answer B:")
        if self.likes and (self.likes in first) != (self.likes in second):
            return Answer("A" if self.likes in first else "B", 100, 1)
        return Answer("A", 100, 1)


async def test_swapping_the_order_cancels_position_bias():
    judge = ModelJudge(Biased())
    judgement = await judge.compare("q", "one", "two", None)
    assert judgement is not None
    assert (judgement.outcome, judgement.consistent) == (0, False)
    liking = ModelJudge(Biased("good"))
    better, worse = await liking.compare("q", "bad", "good", None), await liking.compare("q", "good", "bad", None)
    assert better is not None
    assert worse is not None
    assert (better.outcome, worse.outcome, better.consistent) == (1, -1, True)
    assert judge.cost.calls == 2
    assert judge.cost.unreported == 2
    same = await judge.compare("q", "a  b", "a b\n", None)
    assert same is not None
    assert (same.outcome, judge.cost.calls) == (0, 2)


async def test_the_judges_cap_ends_a_run_with_what_it_has():
    judge = ModelJudge(Biased("yes"), CostCap(max_calls=6))
    prompts = {name: [KeptPrompt(name, ({"role": "user", "content": f"q{i}"},)) for i in range(5)] for name in "ab"}
    served = Scripted(lambda level, _: {"L0": "no", "L1": "yes", "L2": "well, no"}[level])
    result = await evaluate(prompts, SPROUT_LEVELS, served, judge)
    assert "cap of 6 calls" in result.ended_by
    assert len(result.duels) == 3
    assert {duel.key for duel in result.duels} == {"a", "b"}
    money = ModelJudge(Biased(), CostCap(max_money=0.00015, prompt_price=1.0))
    await money.compare("q", "x", "y", None)
    with pytest.raises(CostCapReachedError):
        await money.compare("q", "x", "y", None)


async def test_a_run_judges_every_level_counts_its_cost_and_stops_early():
    random_answers = random.Random(0)

    def say(level, question):
        right = {"L0": 0.9, "L1": 0.95, "L2": 0.2}[level]
        return "it is 42" if random_answers.random() < right else "it is 41"

    prompts = {"math": [KeptPrompt("math", ({"role": "user", "content": f"q{i}"},), "42") for i in range(400)]}
    served = Scripted(say)
    plan = EvaluationPlan(share=0.85, alpha=0.1, max_prompts=400)
    result = await evaluate(prompts, SPROUT_LEVELS, served, ExactMatchJudge(), plan, random.Random(1))
    assert result.verdicts["math", 1] is Verdict.KEEPS
    assert result.verdicts["math", 2] is Verdict.FAILS
    assert result.spared > 200
    assert result.cost.generations == len(served.calls) < 1000
    assert result.cost.energy_j == pytest.approx(10.0 * len(served.calls))
    assert result.cost.grams == pytest.approx(0.01 * len(served.calls))
    assert {g.level for g in result.generations} == {0, 1, 2}
    assert served.calls[0][0][0] == {"role": "user", "content": served.calls[0][0][0]["content"]}


async def test_failures_and_unreadable_verdicts_are_counted_not_guessed():
    prompts = {"a": [KeptPrompt("a", ({"role": "user", "content": f"q{i}"},)) for i in range(4)]}
    served = Scripted(lambda level, question: None if question == "q1" else f"{level} text")
    result = await evaluate(prompts, SPROUT_LEVELS, served, ExactMatchJudge())
    assert (result.cost.failures, result.unreadable, result.duels) == (1, 6, [])


async def test_gridserve_is_told_the_level_by_name():
    prompts = {"a": [KeptPrompt("a", ({"role": "user", "content": "q"},), "L")]}
    served = Scripted(lambda level, _: level)
    await evaluate(prompts, SPROUT_LEVELS, served, ExactMatchJudge(), EvaluationPlan(directive_in_field=True))
    assert [directive for _, _, directive in served.calls] == ["off", "L1", "L2"]
    assert all(len(messages) == 1 for messages, _, _ in served.calls)


@pytest.mark.parametrize(
    ("text", "meaning"),
    [("A", 1), ("b.", -1), ("TIE", 0), ("Answer: B", -1), ("The better one is A", 1), ("neither", None), ("", None)],
)
def test_verdicts_are_read_or_refused(text, meaning):
    assert read_verdict(text) == meaning


@pytest.mark.parametrize(
    ("answer", "known", "right"),
    [
        ("so the total is $1,024.", "1024", True),
        ("12 apples, then 13", "12", False),
        ("The answer is (B).", "B", True),
        ("Because of it", "B", False),
        ("It was Émile Zola who wrote it", "Emile Zola", True),
        ("Zolas", "Zola", False),
        ("-5", "-5.0", True),
    ],
)
def test_known_answers(answer, known, right):
    assert is_right(answer, known) is right


class TestSequential:
    def test_the_bound_holds_at_all_times(self):
        """1000 fair streams: fewer than alpha ever leave the bound, however often one looks."""
        generator = np.random.default_rng(0)
        scores = generator.choice([0.0, 0.5, 1.0], size=(1000, 400), p=[0.3, 0.4, 0.3])
        means = np.cumsum(scores, axis=1) / np.arange(1, 401)
        widths = np.array([radius(n, 0.1) for n in range(1, 401)])
        left = (np.abs(means - 0.5) > widths).any(axis=1).mean()
        assert left < 0.1

    def test_clear_cases_end_early_and_narrow_ones_are_exhausted(self):
        clear, narrow = LevelTest(0.45, 0.1, 300), LevelTest(0.5, 0.1, 100)
        while clear.verdict() is Verdict.OPEN:
            clear.add(1)
        assert clear.verdict() is Verdict.KEEPS
        assert clear.samples < 40
        while narrow.verdict() is Verdict.OPEN:
            narrow.add(0)
        assert narrow.verdict() is Verdict.EXHAUSTED
        assert LevelTest(0.5).score is None

    def test_alpha_is_checked(self):
        with pytest.raises(ValueError, match="alpha"):
            radius(10, 1.5)


def prompt(text, name="math"):
    return KeptPrompt(name, ({"role": "user", "content": text},), "42")


class TestRetention:
    def test_prompts_are_encrypted_bounded_and_aged(self, tmp_path):
        path, key = tmp_path / "prompts.db", make_key()
        store = PromptStore(path, key, RetentionLimits(max_prompts_a_class=3, max_age=timedelta(days=2)))
        for i in range(5):
            assert store.keep(prompt(f"secret question {i}"), opted_in=True, now=NOW + timedelta(minutes=i))
        store.keep(prompt("secret question 4"), opted_in=True, now=NOW)
        assert store.counts() == {"math": 3}
        kept = store.sample("math", 10)
        assert {p.messages[0]["content"] for _, p in kept} == {f"secret question {i}" for i in (2, 3, 4)}
        assert len(store.sample("math", 10, skip=[kept[0][0]])) == 2
        assert b"secret" not in path.read_bytes()
        assert path.stat().st_mode & 0o077 == 0
        store.expire(NOW + timedelta(days=3))
        assert store.counts() == {}
        store.close()

    def test_without_opt_in_only_a_hash_is_kept(self, tmp_path):
        store = PromptStore(tmp_path / "p.db", make_key())
        assert not store.keep(prompt("private"), opted_in=False, now=NOW)
        assert not store.keep(prompt("x" * 70_000), opted_in=True, now=NOW)
        assert store.counts() == {}
        assert b"private" not in (tmp_path / "p.db").read_bytes()
        store.keep(prompt("kept"), opted_in=True, now=NOW)
        store.forget_all()
        assert store.counts() == {}
        store.close()

    def test_another_key_cannot_read(self, tmp_path):
        store = PromptStore(tmp_path / "p.db", make_key())
        store.keep(prompt("secret"), opted_in=True, now=NOW)
        store.close()
        other = PromptStore(tmp_path / "p.db", make_key())
        with pytest.raises(ValueError, match="does not fit"):
            other.sample("math", 1)
        other.close()
        with pytest.raises(ValueError, match="32 bytes"):
            PromptStore(tmp_path / "p.db", b"short")


class TestEndpoint:
    def endpoint(self, handler, **settings):
        async def sleep(seconds):
            self.waits.append(seconds)

        self.waits = []
        transport = httpx.MockTransport(handler)
        return ChatEndpoint("https://judge.example/v1", "m", transport=transport, sleep=sleep, **settings)

    async def test_it_reads_usage_and_energy_and_sends_temperature_zero(self):
        seen = []

        def handler(request):
            seen.append((request.url.path, json.loads(request.content), request.headers.get("authorization")))
            body = {
                "choices": [{"message": {"content": "hi"}}],
                "usage": {"prompt_tokens": 3, "completion_tokens": 4},
                "energy": {"energy_joules": 12.5, "grams_co2e": None},
            }
            return httpx.Response(200, json=body)

        endpoint = self.endpoint(handler, api_key="k")
        answer = await endpoint.answer([{"role": "user", "content": "q"}], max_tokens=5, directive="off")
        assert answer == Answer("hi", 3, 4, 12.5, None)
        path, body, key = seen[0]
        assert (path, key, body["temperature"], body["directive"]) == ("/v1/chat/completions", "Bearer k", 0, "off")
        await endpoint.close()

    async def test_busy_servers_are_retried_and_refusals_are_not(self):
        codes = [503, 429, 200]

        def busy(request):
            return httpx.Response(codes.pop(0), json={"choices": [{"message": {"content": "ok"}}]})

        endpoint = self.endpoint(busy)
        assert (await endpoint.answer([], max_tokens=1)).text == "ok"
        assert len(self.waits) == 2
        refusing = self.endpoint(lambda request: httpx.Response(401))
        with pytest.raises(EndpointError, match="401"):
            await refusing.answer([], max_tokens=1)
        assert self.waits == []
        garbled = self.endpoint(lambda request: httpx.Response(200, text="<html>"))
        with pytest.raises(EndpointError, match="not a chat completion"):
            await garbled.answer([], max_tokens=1)

    def test_plain_http_is_for_loopback_only(self):
        with pytest.raises(ValueError, match="not encrypted"):
            ChatEndpoint("http://judge.example/v1", "m")
        ChatEndpoint("http://127.0.0.1:8000/v1", "m")
