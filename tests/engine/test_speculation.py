"""Guessed tokens never change what a request says, only how many steps it takes."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.batch import Batch, SampledTokens, TokenLogprobs
from engine.block_pool import BlockPool
from engine.decoder import Decoder
from engine.engine import Engine, StepOutcome
from engine.outcome import step_record
from engine.random_model import random_model
from engine.request import FinishReason, Request, SamplingParams
from engine.scheduler import Scheduler
from engine.scheduler_config import SchedulerConfig
from engine.speculation import NgramConfig, NgramProposer, accepted_tokens
from kernels.weight_format import WeightFormat
from tests.engine.fake_model import (
    VOCABULARY,
    PagedFakeModel,
    drawn_token,
    prefix_digests,
    published_texts,
    unpressured_tokens,
)
from tests.engine.random_engine import device_runner, make_engine, plain_runner, serve, small_config

BLOCK_SIZE, MAX_MODEL_LEN = 4, 36


def test_the_draft_is_what_followed_the_longest_match():
    proposer = NgramProposer(NgramConfig(max_draft=3, min_ngram=2, max_ngram=3))
    request = Request("r", (1, 2, 3, 4, 5, 9, 2, 3, 8, 1, 2, 3), SamplingParams(), 0.0)
    assert proposer.propose(request, 8) == (4, 5, 9)
    assert proposer.propose(request, 2) == (4, 5)
    request.token_ids += [8, 1]
    assert proposer.propose(request, 8) == (2, 3, 8)
    request.token_ids += [7, 7]
    assert proposer.propose(request, 8) == ()


def test_a_repetition_is_guessed_to_go_on():
    proposer = NgramProposer(NgramConfig(max_draft=5, min_ngram=2, max_ngram=2))
    request = Request("r", (6, 1, 2, 1, 2), SamplingParams(), 0.0)
    assert proposer.propose(request, 5) == (1, 2, 1, 2, 1)


@given(tokens=st.lists(st.integers(0, 3), min_size=1, max_size=60), chunks=st.lists(st.integers(1, 5), max_size=20))
@settings(max_examples=200, deadline=None)
def test_the_index_finds_what_a_search_from_the_start_finds(tokens, chunks):
    proposer = NgramProposer(NgramConfig(max_draft=4, min_ngram=2, max_ngram=4))
    request = Request("r", tuple(tokens[:1]), SamplingParams(), 0.0)
    known = 1
    for chunk in [*chunks, len(tokens)]:
        request.token_ids += tokens[known : known + chunk]
        known = len(request.token_ids)
        text, expected = request.token_ids, ()
        for size in (4, 3, 2):
            starts = [end for end in range(size, len(text)) if text[end - size : end] == text[-size:]]
            if len(text) >= size and starts:
                period = len(text) - starts[-1]
                expected = tuple(text[starts[-1] + index % period] for index in range(4))
                break
        assert proposer.propose(request, 4) == expected


def test_guessing_rests_where_it_does_not_pay_and_comes_back():
    proposer = NgramProposer(NgramConfig(rest=5, window=2, min_acceptance=0.4))
    request = Request("r", (1, 2, 3, 1, 2), SamplingParams(), 0.0)
    tries = []
    for _ in range(30):
        draft = proposer.propose(request, 4)
        tries.append(bool(draft))
        proposer.verified(request, len(draft), 0)
    assert tries[:2] == [True, True]
    assert sum(tries) <= 2 + 30 // 6
    assert any(tries[5:])
    proposer = NgramProposer()
    for _ in range(10):
        assert proposer.propose(request, 4)
        proposer.verified(request, 4, 3)
    proposer.forget(request)
    assert not proposer._histories


@pytest.mark.parametrize(
    "changes", [{"max_draft": 0}, {"min_ngram": 0}, {"min_ngram": 3, "max_ngram": 2}, {"min_acceptance": 1.1}]
)
def test_settings_out_of_range_are_named(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        NgramConfig(**changes)


def test_draws_count_up_to_the_first_wrong_guess():
    def drawn(*tokens: int) -> list[SampledTokens]:
        return [SampledTokens((token,), (TokenLogprobs(-float(token)),)) for token in tokens]

    assert accepted_tokens((7, 8), drawn(7, 8, 9)).token_ids == (7, 8, 9)
    assert accepted_tokens((7, 8), drawn(7, 1, 9)).token_ids == (7, 1)
    assert accepted_tokens((7, 8), drawn(2, 8, 9)) == SampledTokens((2,), (TokenLogprobs(-2.0),))
    broken = [*drawn(7), SampledTokens(error="none"), *drawn(9)]
    assert accepted_tokens((7, 8), broken).token_ids == (7,)
    assert accepted_tokens((7, 8), [SampledTokens(error="none"), *drawn(8, 9)]).error == "none"


class DraftingFakeModel(PagedFakeModel):
    """Draws at every position of a draft, as if it were known, and writes its digests into the cache."""

    def run(self, batch: Batch):
        self.drafts = {each.request: each.draft for each in batch.requests}
        return super().run(batch)

    def _run_one(self, request: Request, start: int, end: int, samples: bool) -> SampledTokens:
        draft = self.drafts[request]
        if not draft:
            return super()._run_one(request, start, end, samples)
        known = list(request.token_ids)
        assert end == len(known) + len(draft)
        request.token_ids = known + list(draft)
        digests = prefix_digests(request)
        request.token_ids = known
        assert self.states.get(request.request_id, start) == start
        for position in range(start, end):
            self.slots[self._slot(request, position)] = digests[position]
        for position in range(end):
            assert self.slots[self._slot(request, position)] == digests[position]
        drawn = [
            SampledTokens(
                (drawn_token(request.request_id, position, digests[position - 1]),), (TokenLogprobs(-float(position)),)
            )
            for position in range(start + 1, end + 1)
        ]
        sampled = accepted_tokens(draft, drawn)
        self.states[request.request_id] = start + len(sampled.token_ids)
        return sampled


class RandomProposer:
    """Knows what will be drawn, and spoils some of it."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.right = self.drafted = 0

    def propose(self, request: Request, most: int) -> tuple[int, ...]:
        future = list(request.token_ids)
        for _ in range(self.rng.randrange(0, min(most, 6) + 1)):
            saved, request.token_ids = request.token_ids, future
            digest = prefix_digests(request)[-1]
            request.token_ids = saved
            token = drawn_token(request.request_id, len(future), digest)
            future.append(token if self.rng.random() < 0.8 else (token + 1) % VOCABULARY)
        return tuple(future[len(request.token_ids) :])

    def verified(self, request: Request, drafted: int, accepted: int) -> None:
        self.right += accepted
        self.drafted += drafted

    def forget(self, request: Request) -> None: ...


@given(
    seed=st.integers(0, 10_000),
    num_blocks=st.integers(9, 14),
    max_num_seqs=st.integers(1, 5),
    budget=st.integers(1, 24),
)
@settings(max_examples=200, deadline=None)
def test_any_guess_gives_the_tokens_of_plain_decoding(seed, num_blocks, max_num_seqs, budget):
    rng = random.Random(seed)
    proposer = RandomProposer(seed)
    config = SchedulerConfig(
        max_model_len=MAX_MODEL_LEN, max_num_seqs=max_num_seqs, max_num_batched_tokens=budget, watermark=0.0
    )
    scheduler = Scheduler(config, BlockPool(num_blocks, BLOCK_SIZE), proposer=proposer)
    engine = Engine(scheduler, DraftingFakeModel(BLOCK_SIZE))
    requests, logprobs, waiting = [], {}, []
    for number in range(8):
        params = SamplingParams(
            max_tokens=rng.randrange(1, 20), min_tokens=1, stop_token_ids=rng.choice([(), (1,), (1, 2)])
        )
        prompt = tuple([rng.randrange(2)] * rng.randrange(14) + [rng.randrange(3)])
        requests.append(Request(f"r{number}", prompt, params, float(number)))
        logprobs[requests[-1]] = []
        waiting.append(requests[-1])
    for number in range(2_000):
        if waiting and rng.random() < 0.3:
            engine.add(waiting.pop(0))
        # Later ones would hide a request that is stuck.
        if number < 60 and rng.random() < 0.02:
            engine.abort([f"r{rng.randrange(8)}"])
        if not engine.has_work and not waiting:
            break
        outcome = engine.step()
        assert outcome.fault is None
        for update in outcome.updates:
            assert len(update.logprobs) == len(update.token_ids)
            logprobs[update.request] += [each.logprob for each in update.logprobs]
        scheduler.check_integrity()
        scheduler.pool.check_cache_integrity()
    assert scheduler.pool.num_used == 0
    for each in requests:
        output, expected = each.token_ids[each.num_prompt_tokens :], unpressured_tokens(each, MAX_MODEL_LEN)
        assert output == (expected[: len(output)] if each.finish_reason is FinishReason.ABORT else expected)
        first = each.num_prompt_tokens
        assert logprobs[each] == [-float(first + index) for index in range(len(output))]
    stats = scheduler.stats()
    assert (stats.drafted_tokens, stats.accepted_tokens) == (proposer.drafted, proposer.right)


def test_the_work_of_a_draft_is_its_requests_own(make_request):
    class Fixed(RandomProposer):
        def propose(self, request: Request, most: int) -> tuple[int, ...]:
            return (3, 3, 3)[:most]

    scheduler = Scheduler(SchedulerConfig(), BlockPool(20, BLOCK_SIZE), proposer=Fixed(0))
    model = DraftingFakeModel(BLOCK_SIZE)
    request = make_request(8, max_tokens=9)
    scheduler.add(request)
    batch = scheduler.schedule()
    scheduler.update(batch, model.run(batch))
    batch = scheduler.schedule()
    assert batch.requests[0].draft == (3, 3, 3)
    (work,) = step_record(batch, model.run(batch)).work
    assert (work.prefill_tokens, work.decode_tokens, work.kv_tokens_read) == (0, 4, 12)


def test_drafts_take_neither_budget_nor_blocks_from_others(make_request):
    class Greedy(RandomProposer):
        def propose(self, request: Request, most: int) -> tuple[int, ...]:
            return (0,) * most

    scheduler = Scheduler(
        SchedulerConfig(max_num_batched_tokens=10, watermark=0.0), BlockPool(4, BLOCK_SIZE), proposer=Greedy(0)
    )
    model = DraftingFakeModel(BLOCK_SIZE)
    first, second = make_request(3, max_tokens=9), make_request(3, max_tokens=2)
    for each in (first, second):
        scheduler.add(each)
    batch = scheduler.schedule()
    scheduler.update(batch, model.run(batch))
    batch = scheduler.schedule()
    drafts = {each.request: len(each.draft) for each in batch.requests}
    # Four blocks of four: a draft of seven needs two more, as many as are free. The other ends with its next token.
    assert drafts == {first: 7, second: 0}
    assert batch.num_tokens == 9
    assert scheduler.stats().preemptions == 0


@pytest.mark.parametrize("num_blocks", [9, 30])
def test_what_others_may_find_is_verified(num_blocks):
    """Keys and values of guesses lie in the cache; none is findable, and none told, before its guess proved right."""
    proposer = RandomProposer(num_blocks)
    config = SchedulerConfig(max_model_len=MAX_MODEL_LEN, max_num_batched_tokens=24, watermark=0.0)
    scheduler = Scheduler(config, BlockPool(num_blocks, BLOCK_SIZE), proposer=proposer)
    engine = Engine(scheduler, DraftingFakeModel(BLOCK_SIZE))
    requests = [
        Request(f"r{index}", (5, index % 2, 5), SamplingParams(max_tokens=20), float(index)) for index in range(12)
    ]
    for each in requests:
        engine.add(each)
    longest = 0
    while engine.has_work:
        for update in engine.step().updates:
            told = update.request.token_ids[update.request.num_prompt_tokens :]
            assert told == unpressured_tokens(update.request, MAX_MODEL_LEN)[: len(told)]
        for text in published_texts(scheduler.pool):
            assert any(tuple(each.token_ids[: len(text)]) == text for each in requests)
            longest = max(longest, len(text))
    assert longest >= 8
    assert proposer.drafted > proposer.right > 0


CONFIG = small_config(architecture="llama", qk_norm=False, vocab_size=64, tie_word_embeddings=True)
VOCAB = CONFIG.vocab_size


@pytest.fixture(scope="module", params=["compiled", "plain"])
def decoder(request) -> Decoder:
    made = Decoder(CONFIG, random_model(CONFIG, seed=5), WeightFormat.BF16)
    if request.param == "plain":
        made._compiled = None
    elif made._compiled is None:
        pytest.skip("no compiled kernels here")
    return made


@pytest.mark.parametrize("on_device", [False, True])
def test_the_real_executors_draw_what_they_draw_without_guessing(decoder, on_device):
    if on_device and decoder._compiled is not None:
        pytest.skip("the device runner is checked on the plain pass")

    def run(proposer: NgramProposer | None) -> tuple[dict[str, tuple], int, int]:
        runner = device_runner(decoder, 40, max_num_seqs=6) if on_device else plain_runner(decoder, 40)
        engine = make_engine(runner, 40, proposer=proposer, max_num_seqs=6, max_num_batched_tokens=64)
        rng = random.Random(3)
        requests = []
        for index in range(12):
            params = SamplingParams(
                max_tokens=60,
                min_tokens=20,
                temperature=0.0 if index % 2 else 0.25,
                seed=index,
                top_p=0.9 if index % 4 == 0 else 1.0,
                frequency_penalty=0.05 if index % 3 == 0 else 0.0,
                repetition_penalty=1.05 if index % 5 == 0 else 1.0,
                stop_token_ids=(7, 11),
                logprobs=2 if index % 3 == 1 else None,
                logit_bias={5: 1.0} if index % 4 == 1 else {},
            )
            phrase = [rng.randrange(VOCAB) for _ in range(9)]
            requests.append(Request(f"r{index}", tuple(phrase * rng.randrange(1, 6)), params, float(index)))
        logprobs: dict[Request, list] = {each: [] for each in requests}
        steps: list[StepOutcome] = []

        def take(outcome: StepOutcome) -> None:
            steps.append(outcome)
            for update in outcome.updates:
                logprobs[update.request] += update.logprobs

        serve(engine, requests, take)
        texts = {each.request_id: (each.token_ids, each.finish_reason, values) for each, values in logprobs.items()}
        return texts, len(steps), engine.scheduler.stats().accepted_tokens

    plain, plain_steps, _ = run(None)
    guessed, steps, accepted = run(NgramProposer(penalised=not on_device))
    assert guessed == plain
    assert accepted > 30
    assert steps < plain_steps
