"""Launching a step before the last one's result is known changes no request's tokens, whatever happens between."""

from __future__ import annotations

import itertools
import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.batch import Batch, StepResult
from engine.block_pool import BlockPool
from engine.decoder import Decoder
from engine.engine import Engine, OverlappedEngine, StepOutcome
from engine.guided import GuideCompiler
from engine.pace import PacedLaunchingExecutor
from engine.random_model import random_model
from engine.request import FinishReason, Guide, GuideKind, Request, SamplingParams
from engine.scheduler import Scheduler
from engine.scheduler_config import SchedulerConfig
from kernels.weight_format import WeightFormat
from tests.engine.fake_model import PagedFakeModel, published_texts, unpressured_tokens
from tests.engine.random_engine import VOCAB, device_runner, make_engine, serve, small_config

BLOCK_SIZE, MAX_MODEL_LEN = 4, 36


class LaunchingFakeModel(PagedFakeModel):
    """Computes a step when it is collected, with the block tables as they were at its launch, as a device would."""

    def __init__(self, block_size: int) -> None:
        super().__init__(block_size)
        self.launched: list[tuple[Batch, dict[Request, list[int]], float]] = []
        self.tables: dict[Request, list[int]] = {}
        self.fail_at: set[str] = set()
        self.ahead = 0
        self.surplus = 0

    def launch(self, batch: Batch) -> object:
        if "launch" in self.fail_at:
            self.fail_at.clear()
            raise RuntimeError("no launch")
        assert len(self.launched) <= 1
        self.ahead += any(each.end > each.request.num_tokens for each in batch.requests)
        tables = {each.request: each.request.block_table for each in batch.requests}
        self.launched.append((batch, tables, self.clock_s))
        return self.launched[-1]

    def collect(self, launched: object) -> StepResult:
        assert self.launched[0] is launched
        batch, self.tables, launched_s = self.launched.pop(0)
        self.surplus += sum(each.request.finished for each in batch.requests)
        result = self.run(batch)
        if "collect" in self.fail_at:
            self.fail_at.clear()
            raise RuntimeError("lost")
        return StepResult(result.sampled, launched_s, result.ended_s)

    def _slot(self, request: Request, position: int) -> int:
        return self.tables[request][position // self.block_size] * self.block_size + position % self.block_size


def make(num_blocks: int = 9, **limits: object) -> tuple[OverlappedEngine, LaunchingFakeModel]:
    config = SchedulerConfig(**{"max_model_len": MAX_MODEL_LEN, "watermark": 0.0} | limits)  # type: ignore[arg-type]
    model = LaunchingFakeModel(BLOCK_SIZE)
    return OverlappedEngine(Scheduler(config, BlockPool(num_blocks, BLOCK_SIZE), runs_ahead=True), model), model


def drain(engine: Engine) -> list[Request]:
    ended = []
    for _ in range(2_000):
        if not engine.has_work:
            return ended
        ended += [update.request for update in engine.step().updates if update.finish_reason is not None]
        engine.scheduler.check_integrity()
    raise AssertionError("work is left")


PROMPTS = st.builds(
    lambda letter, length, tail: [letter] * length + tail,
    st.integers(0, 1),
    st.integers(0, 14),
    st.lists(st.integers(0, 2), min_size=1, max_size=4),
)
EVENTS = st.one_of(
    st.tuples(st.just("add"), PROMPTS, st.integers(1, 16), st.sampled_from([(), (1,), (1, 2)])),
    st.tuples(st.just("abort"), st.integers(0, 12)),
    st.tuples(st.just("pause"), st.booleans()),
    st.tuples(st.just("fail"), st.sampled_from(["launch", "collect"])),
    st.just(("step",)),
    st.just(("step",)),
    st.just(("step",)),
)


@given(
    events=st.lists(EVENTS, max_size=60),
    num_blocks=st.integers(9, 14),
    max_num_seqs=st.integers(1, 5),
    budget=st.integers(1, 24),
)
@settings(max_examples=200, deadline=None)
def test_any_history_gives_the_tokens_of_plain_decoding(events, num_blocks, max_num_seqs, budget):
    engine, model = make(num_blocks, max_num_seqs=max_num_seqs, max_num_batched_tokens=budget)
    requests: list[Request] = []
    received: dict[Request, list[int]] = {}

    def step() -> None:
        outcome = engine.step()
        for update in outcome.updates:
            received[update.request] += update.token_ids
        if outcome.record is not None:
            assert outcome.record.started_s <= outcome.record.ended_s
        engine.scheduler.check_integrity()

    for event in events:
        match event:
            case ("add", prompt, max_tokens, stop):
                params = SamplingParams(max_tokens=max_tokens, stop_token_ids=stop)
                made = Request(f"r{len(requests)}", tuple(prompt), params, float(len(requests)))
                engine.add(made)
                requests.append(made)
                received[made] = []
            case ("abort", number):
                engine.abort([f"r{number}"])
            case ("pause", paused):
                (engine.scheduler.pause if paused else engine.scheduler.resume)()
            case ("fail", where):
                model.fail_at = {where}
            case _:
                step()
    model.fail_at.clear()
    engine.scheduler.resume()
    for _ in range(2_000):
        if not engine.has_work:
            break
        step()
    assert not engine.has_work
    engine.scheduler.pool.check_cache_integrity()
    assert engine.scheduler.pool.num_used == 0
    for each in requests:
        expected = unpressured_tokens(each, MAX_MODEL_LEN)
        output = each.token_ids[each.num_prompt_tokens :]
        assert received[each] == output
        if each.finish_reason in {FinishReason.STOP, FinishReason.LENGTH}:
            assert output == expected
        else:
            assert output == expected[: len(output)]


def test_steps_are_launched_ahead_and_a_late_stop_costs_one_token_that_nobody_sees(make_request):
    engine, model = make(20)
    stopping = make_request([5, 6], max_tokens=16)
    stop = unpressured_tokens(stopping, MAX_MODEL_LEN)[4]
    stopping = make_request([5, 6], request_id=stopping.request_id, max_tokens=16, stop_token_ids=(stop,))
    expected = unpressured_tokens(stopping, MAX_MODEL_LEN)
    engine.add(stopping)
    works = []
    while engine.has_work:
        outcome = engine.step()
        if outcome.record is not None:
            works.append([share.request_id for share in outcome.record.work])
    assert stopping.token_ids[2:] == expected
    assert model.ahead == len(expected)
    assert model.surplus == 1
    # The surplus token is in no one's account.
    assert works == [[stopping.request_id]] * len(expected) + [[]]


def test_a_request_that_must_end_is_not_run_ahead(make_request):
    engine, model = make(20)
    engine.add(make_request([5, 6], max_tokens=5))
    drain(engine)
    assert model.surplus == 0


def test_records_of_steps_in_flight_do_not_overlap(make_request):
    engine, _ = make(20)
    engine.add(make_request([5, 6], max_tokens=6))
    engine.add(make_request([5, 7], max_tokens=6))
    spans = []
    while engine.has_work:
        record = engine.step().record
        if record is not None:
            spans.append((record.started_s, record.ended_s))
    assert all(earlier[1] <= later[0] for earlier, later in itertools.pairwise(spans))
    assert all(end > start for start, end in spans)


@pytest.mark.parametrize("where", ["launch", "collect"])
def test_a_failing_step_ends_its_own_requests_and_no_other(where, make_request):
    engine, model = make(20)
    doomed = make_request([5, 6], max_tokens=12)
    engine.add(doomed)
    for _ in range(3):
        engine.step()
    model.fail_at = {where}
    assert engine.step().fault is not None
    assert doomed.finish_reason is FinishReason.ERROR
    later = make_request([5, 6], max_tokens=4)
    engine.add(later)
    assert drain(engine) == [later]
    assert later.token_ids[2:] == unpressured_tokens(later, MAX_MODEL_LEN)


def test_pacing_stretches_a_step_not_its_wait_behind_another():
    class Stub:
        def run(self, batch: Batch) -> StepResult:
            raise NotImplementedError

        def launch(self, batch: Batch) -> object:
            return None

        def collect(self, launched: object) -> StepResult:
            return next(results)

    results = iter([StepResult((), 0.0, 1.0), StepResult((), 0.5, 5.0)])
    slept: list[float] = []
    now = [3.0]
    paced = PacedLaunchingExecutor(Stub(), lambda: now[0], slept.append)
    paced.factor = 3.0
    assert paced.collect(None).ended_s == 3.0
    now[0] = 9.0
    assert paced.collect(None).started_s == 3.0
    assert slept == [2.0, 4.0]


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    config = small_config()
    made = Decoder(config, random_model(config, seed=5), WeightFormat.BF16)
    made._compiled = None
    return made


@pytest.mark.parametrize("num_blocks", [60, 17])
def test_the_device_runner_takes_the_token_from_the_device(decoder, num_blocks):
    """The real executor: a launched step never waits for the host, penalties, seeds and stop tokens included."""

    def texts(overlap: bool) -> dict[str, list[int]]:
        runner = device_runner(decoder, num_blocks, max_num_seqs=6)
        engine = make_engine(runner, num_blocks, overlap=overlap, max_num_seqs=6, max_num_batched_tokens=64)
        rng = random.Random(1)
        requests = []
        for index in range(12):
            params = SamplingParams(
                max_tokens=rng.randrange(1, 40),
                min_tokens=1,
                temperature=0.0 if index % 2 else 0.9,
                seed=index,
                presence_penalty=0.4 if index % 3 == 0 else 0.0,
                stop_token_ids=tuple(range(0, VOCAB, 25)),
                logprobs=2 if index % 4 == 0 else None,
            )
            prompt = tuple(rng.randrange(VOCAB) for _ in range(rng.choice([1, 15, 17, 60])))
            requests.append(Request(f"r{index}", prompt, params, float(index)))
        found = serve(engine, requests)
        assert {each.finish_reason for each in requests} == {FinishReason.STOP, FinishReason.LENGTH}
        return found

    assert texts(overlap=True) == texts(overlap=False)


def test_a_token_under_way_at_preemption_is_drawn_again_and_told_once(make_request):
    engine, model = make(9, max_num_seqs=3, max_num_batched_tokens=24)
    requests = [make_request([5, index], max_tokens=24) for index in range(3)]
    received: dict[Request, list[int]] = {each: [] for each in requests}
    for each in requests:
        engine.add(each)
    thrown_away = 0
    while engine.has_work:
        before = {each: (each.num_pending_tokens, each.num_preemptions, each.num_tokens) for each in requests}
        for update in engine.step().updates:
            received[update.request] += update.token_ids
        for each in requests:
            pending, preemptions, known = before[each]
            if pending and each.num_preemptions > preemptions:
                # What the step in flight draws for it reads blocks that have a new owner by now.
                assert each.num_tokens == known
                assert each.num_pending_tokens == 0
                thrown_away += 1
            # What clients have is what the request knows: a token in flight is neither.
            assert received[each] == each.token_ids[each.num_prompt_tokens :]
        engine.scheduler.check_integrity()
    assert thrown_away > 0, "no request was preempted while its token was in flight"
    assert model.ahead > 0
    assert all(each.token_ids[2:] == unpressured_tokens(each, MAX_MODEL_LEN) for each in requests)


def test_a_token_that_is_being_drawn_is_not_published(make_request):
    """A block is shared when all of its tokens are known, not a step earlier."""
    engine, _ = make(20)
    requests = [make_request([5, 6, 5], max_tokens=16), make_request([5, 6, 5], max_tokens=16)]
    for each in requests:
        engine.add(each)
    longest = 0
    while engine.has_work:
        engine.step()
        for text in published_texts(engine.scheduler.pool):
            assert any(tuple(each.token_ids[: len(text)]) == text for each in requests)
            longest = max(longest, len(text))
    assert longest >= 12


def test_guided_output_is_the_same_launched_ahead_or_not(embedded_tokenizer):
    """A guided request waits for its token, its neighbours do not; a guide that fails takes nobody along."""
    vocab = embedded_tokenizer.vocab_size
    config = small_config(vocab_size=vocab)
    model = Decoder(config, random_model(config, seed=2), WeightFormat.BF16)
    model._compiled = None
    eos = embedded_tokenizer.eos_token_ids
    compiler = GuideCompiler(embedded_tokenizer.to_json(), vocab, eos)
    guides = ["(yes|no), [0-9]{3}", "[a-f]{12}", "(unclosed"]

    def texts(overlap: bool) -> tuple[dict[str, list[int]], list[FinishReason | None], int]:
        runner = device_runner(model, 40, max_num_seqs=6, guide_compiler=compiler)
        engine = make_engine(runner, 40, overlap=overlap, max_num_seqs=6, max_num_batched_tokens=32)
        requests = []
        for index in range(8):
            guide = Guide(GuideKind.REGEX, guides[index // 2 % 3]) if index % 2 else None
            params = SamplingParams(
                max_tokens=20, temperature=0.0 if index % 4 == 3 else 1.0, seed=index, guide=guide, ignore_eos=not guide
            )
            requests.append(Request(f"r{index}", (1, 2, 3 + index), params, float(index), eos_token_ids=eos))
        steps: list[StepOutcome] = []
        found = serve(engine, requests, steps.append)
        return found, [each.finish_reason for each in requests], len(steps)

    ahead, plain = texts(overlap=True), texts(overlap=False)
    assert ahead[:2] == plain[:2]
    assert ahead[1].count(FinishReason.STOP) >= 2
    assert ahead[1].count(FinishReason.ERROR) == 1
    answer = embedded_tokenizer.decode([token for token in ahead[0]["r1"] if token not in eos])
    assert re.fullmatch(guides[0], answer)
