"""Argmax, Gumbel-max draws, thresholds and penalties, against their definitions."""

import pytest
import torch

from kernels.gpu import definitions, ops

VOCAB = 3001


def thresholds_like(logits, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
    rows, device = logits.shape[0], logits.device

    def column(value, dtype=torch.float32):
        return torch.as_tensor(value, dtype=dtype, device=device).expand(rows).contiguous()

    return column(temperature), column(top_k, torch.int32), column(top_p), column(min_p)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_argmax(device, dtype):
    logits = torch.randn(5, VOCAB + 7, device=device).to(dtype)[:, :VOCAB]
    logits[1, [5, 2900]] = 20.0
    logits[2] = -torch.inf
    logits[3] = 0.0
    assert torch.equal(ops.greedy_argmax(logits), definitions.greedy_argmax(logits))
    assert ops.greedy_argmax(logits)[1:4].tolist() == [5, -1, 0]


@pytest.mark.parametrize("where", [0, 2047, 2048, VOCAB - 1])
def test_a_row_with_nan_has_no_token(device, where):
    logits = torch.randn(3, VOCAB, device=device)
    logits[1, where] = torch.nan
    temperatures, thresholds = torch.ones(3, device=device), torch.full((3,), -torch.inf, device=device)
    keys = torch.arange(3, device=device)
    drawn, expected = draw_both(logits, temperatures, thresholds, keys, keys)
    assert torch.equal(drawn, expected)
    for tokens in (drawn, ops.greedy_argmax(logits)):
        assert (tokens >= 0).tolist() == [True, False, True]


def draw_both(logits, temperatures, thresholds, seeds, positions):
    arguments = (logits, temperatures, thresholds, seeds, positions)
    return ops.gumbel_sample(*arguments), definitions.gumbel_sample(*arguments)


def test_draws_agree_with_the_definition(device):
    rows = 24
    logits = (3 * torch.randn(rows, VOCAB, device=device)).bfloat16()
    temperatures = torch.linspace(0.1, 2.0, rows, device=device)
    temperatures[3] = 0.0
    thresholds = torch.full((rows,), -torch.inf, device=device)
    thresholds[::2] = 2.0
    seeds = torch.randint(-(2**62), 2**62, (rows,), device=device)
    positions = torch.arange(rows, device=device) * 1000
    drawn, expected = draw_both(logits, temperatures, thresholds, seeds, positions)
    assert torch.equal(drawn, expected)
    assert drawn[3] == logits[3].argmax()


def test_the_largest_noise_is_exact(device):
    """It comes from u near 0, where -log(1 - u) in fp32 is off by percents: find the worst u and lean on it."""
    rows = 400
    seeds = torch.zeros(rows, dtype=torch.int64, device=device)
    positions = torch.arange(rows, device=device)
    noise = definitions.gumbel_noise(seeds, positions, VOCAB)
    naive = -torch.log(-torch.log(1.0 - torch.exp(-torch.exp(-noise.double())).neg().add(1.0).float()))
    row, token = divmod(int((naive - noise).abs().argmax()), VOCAB)
    error = float((naive - noise)[row, token].abs())
    assert error > 0.003, "no draw is sensitive to the series; look at more rows"
    rival = int(noise[row].argmin())
    logits = torch.full((2, VOCAB), -torch.inf, device=device)
    logits[:, token] = 0.0
    # The rival loses by half the error in one row and wins by it in the other.
    margin = torch.tensor([-min(error, 1.0) / 2, min(error, 1.0) / 2], device=device)
    logits[:, rival] = noise[row, token] - noise[row, rival] + margin
    temperatures, *_ = thresholds_like(logits)
    thresholds = torch.full_like(temperatures, -torch.inf)
    drawn = ops.gumbel_sample(logits, temperatures, thresholds, seeds[:2], positions[row].expand(2).contiguous())
    assert drawn.tolist() == [token, rival]


def test_filtered_and_impossible_tokens_are_never_drawn(device):
    logits = torch.randn(200, 50, device=device)
    logits[:, 10:] = -torch.inf
    logits[:, 5] = 3.0
    temperatures, *_ = thresholds_like(logits)
    thresholds = torch.full_like(temperatures, 0.0)
    positions = torch.arange(200, device=device)
    drawn = ops.gumbel_sample(logits, temperatures, thresholds, torch.zeros_like(positions), positions)
    assert (logits[positions, drawn] >= 0.0).all()
    assert (drawn < 10).all()


def test_a_draw_does_not_depend_on_its_row(device):
    logits = torch.randn(4, VOCAB, device=device)
    temperatures, *_ = thresholds_like(logits)
    thresholds = torch.full_like(temperatures, -torch.inf)
    seeds = torch.tensor([1, 2, 3, 4], device=device)
    positions = torch.tensor([9, 8, 7, 6], device=device)
    arguments = (logits, temperatures, thresholds, seeds, positions)
    order = torch.tensor([2, 0, 3, 1], device=device)
    assert torch.equal(ops.gumbel_sample(*(each[order] for each in arguments)), ops.gumbel_sample(*arguments)[order])


def test_draws_follow_the_distribution():
    """Chi-square of 40,000 draws from 8 tokens, by the definition: the kernel was shown to draw the same."""
    logits = torch.log(torch.tensor([0.4, 0.2, 0.15, 0.1, 0.08, 0.04, 0.02, 0.01]))
    count = 40_000
    positions = torch.arange(count)
    arguments = (torch.ones(count), torch.full((count,), -torch.inf), torch.full((count,), 7), positions)
    drawn = definitions.gumbel_sample(logits.expand(count, 8), *arguments)
    expected = count * logits.exp()
    statistic = ((torch.bincount(drawn, minlength=8) - expected) ** 2 / expected).sum()
    assert float(statistic) < 24.3  # chi-square, 7 degrees of freedom, p = 0.001


def test_philox_known_answers():
    """Vectors of Random123's kat_vectors for philox4x32-10, of which the counter's upper half is zero."""
    zero = torch.zeros((), dtype=torch.int64)
    words = [int(word) for word in definitions.philox_words(zero, zero, zero)]
    assert words == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]


CASES = [
    {"top_k": 1},
    {"top_k": 40},
    {"top_k": 5000},
    {"top_p": 0.9},
    {"top_p": 0.05, "temperature": 0.7},
    {"top_k": 20, "top_p": 0.8},
    {"min_p": 0.1, "temperature": 1.5},
    {"top_k": 50, "top_p": 0.95, "min_p": 0.05},
    {},
]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_thresholds_agree_with_a_sort(device, case, dtype):
    logits = (2 * torch.randn(3, VOCAB, device=device)).to(dtype)
    logits[1] = logits[1].bfloat16().to(dtype)  # many equal logits
    logits[2, 100:] = -torch.inf
    logits[2, :100] -= 30.0  # negative thresholds
    arguments = thresholds_like(logits, **case)
    found = ops.sampling_thresholds(logits, *arguments)
    expected = definitions.sampling_thresholds(logits, *arguments)
    if "min_p" not in case:
        assert torch.equal(found, expected), "the threshold is a logit, to the last bit"
    scaled = logits.float() / case.get("temperature", 1.0)
    assert torch.equal(scaled >= found[:, None], scaled >= expected[:, None])


def test_ties_at_the_kth_logit_stay_together_and_count_once(device):
    logits = torch.tensor([[3.0, 2.0, 2.0, 2.0, 1.0, 0.0, -0.0, -5.0]], device=device)
    for top_k, top_p in ((2, 1.0), (2, 0.9), (3, 0.5), (7, 0.99), (6, 1.0)):
        arguments = thresholds_like(logits, top_k=top_k, top_p=top_p)
        found, expected = (f.sampling_thresholds(logits, *arguments) for f in (ops, definitions))
        assert torch.equal(logits >= found, logits >= expected), (top_k, top_p)


def test_rows_of_one_call_may_differ(device):
    logits = torch.randn(3, 500, device=device).bfloat16()
    columns = ([0.0, 0.5, 1.0], [0, 5, 0], [1.0, 1.0, 0.5], [0.0, 0.0, 0.2])
    arguments = [torch.tensor(each, device=device) for each in columns]
    arguments[1] = arguments[1].int()
    found = ops.sampling_thresholds(logits, *arguments)
    torch.testing.assert_close(found, definitions.sampling_thresholds(logits, *arguments))
    assert found[0] == -torch.inf


def test_penalties(device):
    rows, slots_available, vocab = 4, 6, 1500
    logits = torch.randn(rows, vocab, device=device)
    slots = torch.tensor([5, 0, 2, 3], dtype=torch.int32, device=device)
    counts = torch.randint(0, 3, (slots_available, vocab), dtype=torch.int32, device=device)
    seen = torch.rand(slots_available, vocab, device=device) < 0.3
    repetition = torch.tensor([1.0, 1.3, 0.8, 1.0], device=device)
    frequency = torch.tensor([0.0, 0.5, -0.2, 0.0], device=device)
    presence = torch.tensor([0.0, 0.0, 1.0, -0.7], device=device)
    expected = logits.clone()
    ops.apply_penalties(logits, slots, counts, seen, repetition, frequency, presence)
    untouched = expected[0].clone()
    definitions.apply_penalties(expected, slots, counts, seen, repetition, frequency, presence)
    torch.testing.assert_close(logits, expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(logits[0], untouched)


def test_counting_tokens(device):
    storage = torch.zeros(5, 10, dtype=torch.int32, device=device)
    counts = storage[1:]
    expected = counts.clone()
    slots = torch.tensor([2, -1, 0], dtype=torch.int32, device=device)
    for token_ids in ([3, 4, 9], [3, 4, 0]):
        tokens = torch.tensor(token_ids, device=device)
        ops.count_tokens(counts, slots, tokens)
        definitions.count_tokens(expected, slots, tokens)
    assert torch.equal(counts, expected)
    assert int(storage.sum()) == 4
