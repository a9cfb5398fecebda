"""Sampling against brute-force definitions, and its independence of whatever shares the batch."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.request import Request, SamplingParams
from engine.sampler import Sampler, draw, keep_threshold, uniform

VOCAB = 50


def request(prompt=(1, 2, 3), output=(), name="r", eos=frozenset({0}), **params) -> Request:
    made = Request(name, tuple(prompt), SamplingParams(**({"max_tokens": 100} | params)), 0.0, eos_token_ids=eos)
    made.token_ids.extend(output)
    return made


def random_logits(rows: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed)) * 3


def sample_one(logits: torch.Tensor, made: Request) -> int:
    (sampled,) = Sampler(VOCAB).sample(logits.clone(), [made])
    assert sampled.error is None
    return sampled.token_ids[0]


def kept_by_definition(logits: torch.Tensor, top_k: int, top_p: float) -> set[int]:
    """Top-k, then top-p over the renormalised rest, one token at a time."""
    order = sorted(range(len(logits)), key=lambda token: -float(logits[token]))
    if 0 < top_k < len(order):
        order = order[:top_k]
    mass = [math.exp(float(logits[token])) for token in order]
    total, running, kept = sum(mass), 0.0, set()
    for token, weight in zip(order, mass):
        kept.add(token)
        running += weight
        if running >= top_p * total:
            break
    return kept


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, VOCAB + 5), st.floats(0.05, 0.99))
def test_threshold_keeps_what_the_definition_keeps(seed, top_k, top_p):
    logits = random_logits(seed=seed)[0]
    kept = set(torch.nonzero(logits >= keep_threshold(logits, top_k, top_p)).flatten().tolist())
    assert kept == kept_by_definition(logits, top_k, top_p)


def test_top_p_beyond_the_sorted_head_sorts_the_whole_row():
    logits = torch.linspace(0.0, 0.1, 5000)
    kept = int((logits >= keep_threshold(logits, 0, 0.9)).sum())
    assert kept == len(kept_by_definition(logits, 0, 0.9))


def test_greedy_is_exact_argmax_and_takes_the_first_of_equals():
    logits = torch.zeros(1, VOCAB)
    logits[0, 7] = logits[0, 9] = 5.0
    assert sample_one(logits, request(temperature=0.0)) == 7


def test_draws_follow_the_softmax():
    logits = random_logits(seed=3)
    expected = torch.softmax(logits[0], dim=-1)
    draws = 20_000
    tokens = draw(logits.expand(draws, -1), [uniform(11, position) for position in range(draws)])
    observed = torch.bincount(torch.tensor(tokens), minlength=VOCAB) / draws
    # Five standard deviations of a binomial share, for each token.
    assert ((observed - expected).abs() <= 5 * (expected * (1 - expected) / draws).sqrt() + 1e-4).all()


@pytest.mark.parametrize("u", [0.0, 0.5, math.nextafter(1.0, 0.0)])
def test_draw_never_takes_an_excluded_token(u):
    logits = torch.full((1, VOCAB), -torch.inf)
    logits[0, 20:23] = 0.0
    assert draw(logits, [u])[0] in {20, 21, 22}


def test_uniform_depends_on_seed_and_position_alone_and_fills_the_interval():
    values = [uniform(seed, position) for seed in range(50) for position in range(200)]
    assert all(0.0 <= value < 1.0 for value in values)
    assert abs(sum(values) / len(values) - 0.5) < 0.01
    assert len(set(values)) == len(values)
    assert uniform(5, 6) == uniform(5, 6) != uniform(6, 5)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_same_seed_same_token_whatever_shares_the_batch(kinds, rng):
    variants = [
        {"temperature": 0.0},
        {"temperature": 0.8, "seed": 1},
        {"temperature": 1.3, "seed": 2, "top_k": 5},
        {"temperature": 1.0, "seed": 3, "top_p": 0.7},
        {"temperature": 1.0, "seed": 4, "min_p": 0.1, "presence_penalty": 0.5},
        {"temperature": 1.0, "seed": 5, "repetition_penalty": 1.3, "logit_bias": {4: 2.0}},
    ]
    logits = random_logits(len(variants), seed=rng.randrange(1000))
    alone = {kind: sample_one(logits[kind : kind + 1], request(**variants[kind])) for kind in set(kinds)}
    batch = [request(name=f"r{index}", **variants[kind]) for index, kind in enumerate(kinds)]
    together = Sampler(VOCAB).sample(logits[kinds].clone(), batch)
    assert [sampled.token_ids[0] for sampled in together] == [alone[kind] for kind in kinds]


def test_penalties_follow_their_definitions():
    logits = random_logits(seed=9)
    made = request(
        prompt=(1, 2), output=(5, 5, 6), presence_penalty=0.5, frequency_penalty=0.25, repetition_penalty=1.5
    )
    row = logits[0].clone()
    for token in (1, 2, 5, 6):
        row[token] = row[token] / 1.5 if row[token] > 0 else row[token] * 1.5
    row[5] -= 0.5 + 2 * 0.25
    row[6] -= 0.5 + 0.25
    shaped = logits.clone()
    sampler = Sampler(VOCAB)
    sampler.sample(shaped, [made])
    torch.testing.assert_close(shaped[0], row)


def test_penalties_keep_counting_between_steps_and_survive_resumption():
    sampler, made = Sampler(VOCAB), request(temperature=0.0, frequency_penalty=1.0, presence_penalty=2.0)
    logits = torch.zeros(1, VOCAB)
    logits[0, 30], logits[0, 31], logits[0, 32] = 9.0, 8.2, 7.5
    drawn = []
    for step in range(6):
        if step == 3:
            sampler.drop([made.request_id])
        token = sampler.sample(logits.clone(), [made])[0].token_ids[0]
        made.token_ids.append(token)
        drawn.append(token)
    assert drawn == [30, 31, 32, 30, 31, 30]


def test_min_tokens_holds_back_every_ending():
    logits = torch.zeros(1, VOCAB)
    logits[0, 0], logits[0, 1], logits[0, 2] = 9.0, 8.0, 7.0
    assert sample_one(logits, request(temperature=0.0, min_tokens=2, stop_token_ids=(1,))) == 2
    assert sample_one(logits, request(temperature=0.0, min_tokens=2, output=(5, 5), stop_token_ids=(1,))) == 0


def test_logit_bias_moves_the_choice_and_logprobs_report_the_model():
    logits = random_logits(seed=4)
    (sampled,) = Sampler(VOCAB).sample(
        logits.clone(), [request(temperature=0.0, logit_bias={17: 100.0}, logprobs=3, max_tokens=5)]
    )
    raw = torch.log_softmax(logits[0], dim=-1)
    assert sampled.token_ids == (17,)
    (reported,) = sampled.logprobs
    assert reported.logprob == pytest.approx(float(raw[17]))
    assert [token for token, _ in reported.top] == torch.topk(raw, 3).indices.tolist()


def test_a_request_with_no_possible_token_fails_alone():
    logits = torch.zeros(2, VOCAB)
    logits[0] = -torch.inf
    failed, sound = Sampler(VOCAB).sample(logits, [request(name="a"), request(name="b", temperature=0.0)])
    assert failed.error is not None
    assert "no token is possible" in failed.error
    assert sound.token_ids == (0,)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"temperature": -0.1}, "temperature must be between 0 and 2"),
        ({"temperature": math.nan}, "temperature"),
        ({"top_p": 0.0}, "use temperature=0"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"min_p": 2.0}, "min_p"),
        ({"presence_penalty": 3.0}, "presence_penalty"),
        ({"frequency_penalty": -3.0}, "frequency_penalty"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 3, "min_tokens": 4}, "min_tokens"),
        ({"logprobs": 21}, "logprobs"),
        ({"logit_bias": {3: 101.0}}, r"logit_bias\[3\]"),
    ],
)
def test_values_out_of_range_are_refused_by_name(params, message):
    with pytest.raises(ValueError, match=message):
        SamplingParams(**params)
