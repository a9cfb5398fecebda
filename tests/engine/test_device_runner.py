"""The executor for a GPU without one: rows, padding, launching ahead and drawing on the device, by the definitions.

What the Triton kernels make of the same engine is checked in `tests/kernels/gpu`.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from engine.batch import Batch, ScheduledRequest
from engine.decode_graphs import padded_size, padded_sizes
from engine.decoder import Decoder
from engine.engine import Engine
from engine.random_model import random_model
from engine.request import FinishReason, Guide, GuideKind, Request, SamplingParams
from engine.sampler import Sampler
from kernels.weight_format import WeightFormat
from tests.engine.random_engine import (
    VOCAB,
    device_runner,
    make_engine,
    plain_runner,
    ragged_requests,
    serve,
    small_config,
)

CONFIG = small_config()


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    """bf16, whose rows do not depend on the batch on a CPU; not compiled, so that quantised caches work too."""
    made = Decoder(CONFIG, random_model(CONFIG, seed=5), WeightFormat.BF16)
    made._compiled = None
    return made


SETUPS = [
    pytest.param({}, id="batched"),
    pytest.param({"max_num_batched_tokens": 24}, id="chunked"),
    pytest.param({"num_blocks": 17}, id="preempted"),
    pytest.param({"num_blocks": 17, "max_num_batched_tokens": 33, "max_num_seqs": 5}, id="all at once"),
]


@pytest.mark.parametrize("setup", SETUPS)
def test_greedy_text_is_that_of_the_plain_runner(decoder, setup):
    num_blocks = setup.get("num_blocks", 60)
    plain = make_engine(plain_runner(decoder, num_blocks), **setup)
    engine = make_engine(device_runner(decoder, num_blocks), **setup)
    assert serve(engine, ragged_requests()) == serve(plain, ragged_requests())
    assert engine.scheduler.stats().prefix_hit_tokens > 0
    if "num_blocks" in setup:
        assert engine.scheduler.stats().preemptions > 0


@pytest.mark.parametrize("setup", SETUPS)
def test_drawn_tokens_do_not_depend_on_the_company(decoder, setup):
    params = {"temperature": 0.9, "seed": 7, "top_p": 0.9, "presence_penalty": 0.4, "repetition_penalty": 1.1}
    num_blocks = setup.get("num_blocks", 60)
    together = serve(make_engine(device_runner(decoder, num_blocks), **setup), ragged_requests(**params))
    alone = {}
    for each in ragged_requests(**params):
        alone |= serve(make_engine(device_runner(decoder)), [each])
    assert together == alone


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn], ids=str)
def test_a_quantised_cache_serves(decoder, dtype):
    """The same text whatever the batch; most tokens of the first step as with a bf16 cache."""
    caches = {"num_blocks": 17}
    together = serve(make_engine(device_runner(decoder, 17, dtype), **caches), ragged_requests())
    alone = {}
    for each in ragged_requests():
        alone |= serve(make_engine(device_runner(decoder, 60, dtype)), [each])
    assert together == alone
    exact = serve(make_engine(device_runner(decoder)), ragged_requests())
    assert sum(together[name][0] == exact[name][0] for name in exact) >= len(exact) - 1


def test_steps_run_at_padded_sizes_and_padding_leaves_the_cache_alone(decoder):
    runner = device_runner(decoder)
    sizes = []
    inner = runner._decodes

    class Watched:
        def run(self, step: torch.Tensor) -> torch.Tensor:
            sizes.append(step.shape[1])
            assert (step[0, step[2] == 0] == 9).all()
            return inner.run(step)

    runner._decodes = Watched()
    before = [tuple(cache.clone() for cache in pair) for pair in runner._kv_caches]
    runner.probe()
    assert all(torch.equal(a, b) for left, right in zip(before, runner._kv_caches) for a, b in zip(left, right))
    serve(make_engine(runner), ragged_requests(5))
    assert set(sizes) <= {1, 2, 4, 8, 9}
    assert 8 in sizes, "five decodes run as eight"


def test_padded_sizes_ascend_to_the_largest():
    assert padded_sizes(1) == (1,)
    assert padded_sizes(9) == (1, 2, 4, 8, 9)
    assert padded_sizes(256)[-3:] == (224, 240, 256)
    for largest in range(1, 600):
        sizes = padded_sizes(largest)
        assert list(sizes) == sorted(set(sizes))
        assert sizes[-1] == largest
    assert padded_size((1, 2, 4), 3) == 4
    assert padded_size((1, 2, 4), 5) is None


def schedule(request: Request, start: int, count: int, samples: bool = True) -> ScheduledRequest:
    return ScheduledRequest(request, start, count, samples)


def test_a_step_is_launched_before_the_last_ones_token_is_known(decoder):
    """Step N+1 names a token that only the device has; mixed with a new prompt it finds it too."""
    first, second = ragged_requests(4)[1::2]
    expected = {}
    for each in ragged_requests(4)[1::2]:
        expected |= serve(make_engine(device_runner(decoder)), [each])
    runner = device_runner(decoder)
    first.block_table, second.block_table = [*range(1, 18, 2)], [*range(2, 19, 2)]
    length = first.num_prompt_tokens
    steps = [
        Batch(0, (schedule(first, 0, length),)),
        Batch(1, (schedule(first, length, 1), schedule(second, 0, second.num_prompt_tokens))),
        Batch(2, (schedule(first, length + 1, 1), schedule(second, second.num_prompt_tokens, 1))),
    ]
    launched = [runner.launch(batch) for batch in steps]
    drawn = [[each.token_ids for each in runner.collect(step).sampled] for step in launched]
    assert [step[0][0] for step in drawn] == expected[first.request_id][:3]
    assert [step[1][0] for step in drawn[1:]] == expected[second.request_id][:2]


def test_only_single_tokens_may_be_unknown(decoder):
    request = ragged_requests(1)[0]
    request.block_table = [1, 2]
    batch = Batch(0, (schedule(request, 0, request.num_prompt_tokens + 1),))
    with pytest.raises(ValueError, match="past what is known"):
        device_runner(decoder).launch(batch)


def test_a_block_exchanged_under_a_request_reaches_the_device(decoder):
    """Publishing may swap a request's block for an equal one that another request holds."""
    runner = device_runner(decoder)
    request = ragged_requests(2)[1]
    request.block_table = [3, 5, 7, 9]
    length = request.num_prompt_tokens
    runner.run(Batch(0, (schedule(request, 0, length),)))
    for pair in runner._kv_caches:
        for cache in pair:
            cache[20] = cache[3]
            cache[3] = torch.nan
    request.block_table[0] = 20
    request.token_ids.append(1)
    result = runner.run(Batch(1, (schedule(request, length, 1),)))
    assert result.sampled[0].error is None


def test_draws_follow_their_distribution(decoder):
    """2,000 seeds of one prompt against the softmax of its logits after temperature and top-k."""
    params = {"max_tokens": 1, "temperature": 0.7, "top_k": 8}
    runner = device_runner(decoder, num_blocks=400, max_num_seqs=400)
    prompt = tuple(range(5))
    counts: dict[int, int] = {}
    for chunk in range(5):
        made = [
            Request(f"{chunk}-{seed}", prompt, SamplingParams(seed=400 * chunk + seed, **params), float(seed))
            for seed in range(400)
        ]
        engine = make_engine(runner, 400, max_num_seqs=400, max_num_batched_tokens=2048)
        for tokens in serve(engine, made).values():
            counts[tokens[0]] = counts.get(tokens[0], 0) + 1
        runner._rows.drop([each.request_id for each in made])
    exact = logits_of(decoder, prompt) / 0.7
    kept = torch.topk(exact, 8)
    shares = torch.softmax(kept.values.double(), 0)
    assert set(counts) <= set(kept.indices.tolist())
    observed = [counts.get(int(token), 0) for token in kept.indices]
    assert stats.chisquare(observed, (shares * 2000).numpy()).pvalue > 1e-3


def logits_of(decoder: Decoder, prompt: tuple[int, ...]) -> torch.Tensor:
    """fp32 logits after `prompt`, through the plain runner."""
    seen = []

    class Looking(Sampler):
        def sample(self, logits, requests, drafts=None):
            seen.append(logits.clone())
            return super().sample(logits, requests, drafts)

    request = Request("one", prompt, SamplingParams(max_tokens=1, temperature=0.0), 0.0)
    serve(make_engine(plain_runner(decoder, 8, Looking(VOCAB)), 8), [request])
    return seen[0][0]


def one_of_each() -> list[Request]:
    """A request for each thing that shapes logits, greedy so that two samplers must agree."""
    prompt = tuple(range(20, 40))
    kinds = {
        "plain": SamplingParams(max_tokens=12, temperature=0.0, logprobs=3),
        "bias": SamplingParams(max_tokens=12, temperature=0.0, logit_bias={5: 100.0, 6: 99.5}),
        "presence": SamplingParams(max_tokens=12, temperature=0.0, presence_penalty=2.0, frequency_penalty=1.5),
        "repetition": SamplingParams(max_tokens=12, temperature=0.0, repetition_penalty=1.8, logprobs=0),
        "minimum": SamplingParams(max_tokens=12, min_tokens=6, temperature=0.0, stop_token_ids=tuple(range(0, 300, 2))),
    }
    return [Request(name, prompt, params, float(index)) for index, (name, params) in enumerate(kinds.items())]


def test_bias_penalties_minimum_and_logprobs_agree_with_the_plain_sampler(decoder):
    def collect(engine: Engine) -> dict[str, list]:
        found: dict[str, list] = {}
        for each in one_of_each():
            engine.add(each)
        while engine.has_work:
            for update in engine.step().updates:
                found.setdefault(update.request.request_id, []).append((update.token_ids, update.logprobs))
        return found

    expected = collect(make_engine(plain_runner(decoder)))
    actual = collect(make_engine(device_runner(decoder)))
    assert actual.keys() == expected.keys()
    for name, steps in expected.items():
        assert [tokens for tokens, _ in actual[name]] == [tokens for tokens, _ in steps], name
        for (_, theirs), (_, ours) in zip(steps, actual[name]):
            assert [each.logprob for each in ours] == pytest.approx([each.logprob for each in theirs], abs=1e-5)
            assert [[t for t, _ in each.top] for each in ours] == [[t for t, _ in each.top] for each in theirs]
    assert len(actual["minimum"]) >= 6


def test_guided_output_follows_its_guide(embedded_tokenizer):
    from engine.guided import GuideCompiler

    vocab = embedded_tokenizer.vocab_size if hasattr(embedded_tokenizer, "vocab_size") else 49152
    config = small_config(vocab_size=vocab)
    decoder = Decoder(config, random_model(config, seed=2), WeightFormat.BF16)
    decoder._compiled = None
    compiler = GuideCompiler(embedded_tokenizer.to_json(), vocab, embedded_tokenizer.eos_token_ids)
    runner = device_runner(decoder, 20, max_num_seqs=4, guide_compiler=compiler)
    guide = Guide(GuideKind.REGEX, "(yes|no), [0-9]{3}")
    params = SamplingParams(max_tokens=20, temperature=1.0, seed=3, guide=guide)
    guided = Request("guided", (1, 2, 3), params, 0.0, eos_token_ids=embedded_tokenizer.eos_token_ids)
    broken = SamplingParams(max_tokens=5, temperature=0.0, guide=Guide(GuideKind.REGEX, "(unclosed"))
    failing = Request("failing", (1, 2, 3), broken, 1.0)
    assert runner.needs_host_tokens(guided)
    engine = make_engine(runner, 20, max_num_seqs=4)
    serve(engine, [guided, failing])
    text = embedded_tokenizer.decode([t for t in guided.token_ids[3:] if t not in embedded_tokenizer.eos_token_ids])
    assert text.split(", ")[0] in ("yes", "no")
    assert guided.finish_reason is FinishReason.STOP
    assert failing.finish_reason is FinishReason.ERROR


def test_a_request_without_a_possible_token_fails_alone(decoder):
    class Broken:
        def __init__(self) -> None:
            self.forward = decoder.forward

        def logits(self, hidden: torch.Tensor) -> torch.Tensor:
            logits = decoder.logits(hidden).clone()
            if len(logits) == 3:
                logits[1] = torch.nan
            return logits

    runner = device_runner(decoder)
    runner._model = Broken()
    batch = ragged_requests(3)
    engine = make_engine(runner)
    for each in batch:
        engine.add(each)
    while engine.has_work:
        engine.step()
    assert sorted(each.finish_reason for each in batch) == [
        FinishReason.ERROR,
        FinishReason.LENGTH,
        FinishReason.LENGTH,
    ]


def test_rows_are_given_back(decoder):
    runner = device_runner(decoder, max_num_seqs=3)
    for turn in range(3):
        serve(make_engine(runner, max_num_seqs=3), ragged_requests(5))
        runner._rows.drop([f"r{index}" for index in range(5)])
        assert sorted(runner._rows._free) == [0, 1, 2], turn


def test_warm_up_leaves_no_request_behind(decoder):
    runner = device_runner(decoder)
    seen: list[tuple[int, int]] = []
    runner.warm_up(lambda done, total: seen.append((done, total)))
    assert seen
    assert all(done < total for done, total in seen)
    assert len(runner._rows._free) == 9
    cold = device_runner(decoder)
    assert serve(make_engine(runner), ragged_requests()) == serve(make_engine(cold), ragged_requests())


@pytest.mark.parametrize("seed", [0, 1, 2**63 - 1, 2**64 + 5, -3])
def test_any_integer_is_a_seed(decoder, seed):
    params = SamplingParams(max_tokens=2, temperature=1.0, seed=seed)
    request = Request("r", (1, 2, 3), params, 0.0)
    assert len(serve(make_engine(device_runner(decoder)), [request])["r"]) == 2


def test_the_upload_is_a_copy():
    from engine.transfers import HostTransfers

    values = np.arange(3)
    sent = HostTransfers().upload(values)
    values[:] = 7
    assert sent.tolist() == [0, 1, 2]
