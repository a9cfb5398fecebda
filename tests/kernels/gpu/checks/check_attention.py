"""Paged attention against its definition: ragged, permuted, poisoned, split, windowed, quantised."""

import dataclasses
import itertools

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from kernels.gpu import definitions, ops, tuning
from kernels.metadata import AttentionMetadata


@dataclasses.dataclass
class Case:
    q: torch.Tensor
    k_cache: torch.Tensor
    v_cache: torch.Tensor
    metadata: AttentionMetadata
    scales: definitions.KVScales | None = None

    def run(self, function=ops.paged_attention, window=None):
        extra = {} if self.scales is None else {"scales": self.scales}
        scale = self.q.shape[-1] ** -0.5
        return function(self.q, self.k_cache, self.v_cache, self.metadata, scale, window, **extra)

    def expected(self, window=None):
        """The definition in fp64, on a cache whose poison was replaced: nothing of it may reach the result."""
        clean = dataclasses.replace(self, q=self.q.double())
        for name in ("k_cache", "v_cache"):
            cache = getattr(self, name)
            if self.scales is None:
                setattr(clean, name, cache.double().nan_to_num(0.0))
        if self.scales is not None:
            clean.scales = definitions.KVScales(self.scales.k.nan_to_num(0.0), self.scales.v.nan_to_num(0.0))
        return clean.run(definitions.paged_attention, window)


def make_case(device, lengths, heads=4, kv_heads=2, head_dim=64, page=16, dtype=torch.bfloat16, cache_dtype=None):
    """`lengths`: (query tokens, context) of each request. Pages are scattered, and what no request owns is NaN."""
    pages_of = [-(-context // page) for _, context in lengths]
    num_blocks = sum(pages_of) + 3
    order = torch.randperm(num_blocks - 1, device=device).int() + 1
    tables = torch.zeros((len(lengths), max(1, *pages_of)), dtype=torch.int32, device=device)
    # Keys and values of one layer interleave, so that the outer strides are not those of a dense tensor.
    both = torch.full((num_blocks, 2, kv_heads, page, head_dim), torch.nan, dtype=dtype, device=device)
    caches = [both[:, 0], both[:, 1]]
    taken, slots, positions, starts = 0, [], [], [0]
    for row, (count, context) in enumerate(lengths):
        own = order[taken : taken + pages_of[row]]
        taken += pages_of[row]
        tables[row, : len(own)] = own
        at = torch.arange(context, device=device)
        for cache in caches:
            cache[own[at // page].long(), :, at % page] = torch.randn(
                (context, kv_heads, head_dim), dtype=torch.float32, device=device
            ).to(dtype)
        positions.append(at[context - count :])
        slots.append(own[at[context - count :] // page].long() * page + at[context - count :] % page)
        starts.append(starts[-1] + count)
    num_decodes = 0
    while num_decodes < len(lengths) and lengths[num_decodes][0] == 1:
        num_decodes += 1
    metadata = AttentionMetadata(
        query_start=torch.tensor(starts, dtype=torch.int32, device=device),
        context_lens=torch.tensor([context for _, context in lengths], dtype=torch.int32, device=device),
        block_tables=tables,
        slot_mapping=torch.cat(slots),
        positions=torch.cat(positions),
        max_query_len=max(count for count, _ in lengths),
        max_context_len=max(context for _, context in lengths),
        num_decodes=num_decodes,
    )
    # A slice of a wider tensor, as q is of the fused projection.
    q = torch.randn((starts[-1], heads + 2, head_dim), device=device).to(dtype)[:, 1:-1]
    case = Case(q, *caches, metadata)
    return case if cache_dtype is None else quantized(case, cache_dtype)


def quantized(case, dtype):
    """The same cache as codes and scales; the poison moves into the scales."""

    def codes(cache):
        # Each (block, head, slot) is one head of one token.
        values, scale = definitions.quantize_heads(cache.float().nan_to_num(0.0).flatten(0, 1), dtype)
        scale = torch.where(cache.isnan().any(-1).flatten(0, 1), torch.nan, scale)
        return values.unflatten(0, cache.shape[:2]), scale.unflatten(0, cache.shape[:2])

    k_codes, k_scales = codes(case.k_cache)
    v_codes, v_scales = codes(case.v_cache)
    return Case(case.q, k_codes, v_codes, case.metadata, definitions.KVScales(k_scales, v_scales))


MIXED = [(1, 1), (1, 33), (1, 16), (5, 5), (7, 40), (1, 17), (3, 130)]
DECODES = [(1, 1), (1, 15), (1, 16), (1, 17), (1, 200)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_a_mixed_batch_agrees_with_the_definition(device, close, dtype):
    case = make_case(device, MIXED, dtype=dtype)
    close(case.run(), case.expected())


@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 2), (9, 3), (8, 2), (8, 1)])
def test_every_group_size(device, close, heads, kv_heads):
    case = make_case(device, [(1, 37), (1, 64), (11, 50)], heads, kv_heads)
    close(case.run(), case.expected())


@pytest.mark.parametrize(("head_dim", "page"), [(128, 16), (80, 16), (64, 32), (64, 8), (32, 128), (256, 16)])
def test_head_dimensions_and_pages(device, close, head_dim, page):
    case = make_case(device, [(1, 70), (9, 45)], head_dim=head_dim, page=page)
    close(case.run(), case.expected())


@pytest.mark.parametrize("window", [1, 16, 50, 1000])
def test_a_sliding_window(device, close, window):
    case = make_case(device, [(1, 3), (1, 150), (30, 30), (40, 170)], dtype=torch.float32)
    close(case.run(window=window), case.expected(window))


@pytest.mark.parametrize("fixed", [False, True])
def test_pages_that_left_the_window_are_not_read(device, close, monkeypatch, fixed):
    monkeypatch.setattr(tuning, "_deterministic", fixed)
    case = make_case(device, [(1, 150), (20, 150)])  # tiles larger than a page
    expected = case.expected(32)
    for row, first_seen in ((0, 150 - 32), (1, 130 - 31)):
        gone = case.metadata.block_tables[row, : first_seen // 16].long()
        case.k_cache[gone] = torch.nan
        case.v_cache[gone] = torch.nan
    close(case.run(window=32), expected)


@pytest.mark.parametrize("cache_dtype", [torch.int8, torch.float8_e4m3fn], ids=str)
def test_a_quantised_cache(device, close, cache_dtype):
    plain = make_case(device, MIXED)
    case = quantized(plain, cache_dtype)
    close(case.run(), case.expected())
    close(case.run(), plain.expected(), 5e-2)


@pytest.mark.parametrize("splits", [1, 2, 5, 16])
def test_split_counts_agree(device, close, monkeypatch, splits):
    case = make_case(device, [(1, 700), (1, 64), (1, 65), (1, 1)], dtype=torch.float32)
    monkeypatch.setattr(tuning, "num_splits", lambda *_: splits)
    close(case.run(), case.expected())
    close(case.run(window=100), case.expected(100))


def test_padding_requests_of_a_graph_get_zeros(device, monkeypatch):
    case = make_case(device, DECODES)
    case.metadata.context_lens[-2:] = 0
    for splits, fixed in ((1, False), (4, False), (1, True)):
        monkeypatch.setattr(tuning, "num_splits", lambda *_, splits=splits: splits)
        monkeypatch.setattr(tuning, "_deterministic", fixed)
        out = case.run()
        assert (out[-2:] == 0).all()
        assert out.isfinite().all()


def only(case, rows):
    """The same requests without their neighbours; decodes only."""
    tables = case.metadata.block_tables[rows]
    lengths = case.metadata.context_lens[rows]
    metadata = dataclasses.replace(
        case.metadata,
        query_start=torch.arange(len(rows) + 1, dtype=torch.int32, device=tables.device),
        context_lens=lengths,
        block_tables=tables,
        max_context_len=int(lengths.max()),
        num_decodes=len(rows),
    )
    return dataclasses.replace(case, q=case.q[rows], metadata=metadata)


def cut(case, ranges):
    """The same requests with only the query tokens `begin..end` of each; None leaves a request out."""
    starts = case.metadata.query_start.tolist()
    lengths = case.metadata.context_lens.tolist()
    kept = [row for row, each in enumerate(ranges) if each is not None]
    device = case.q.device
    counts = [ranges[row][1] - ranges[row][0] for row in kept]
    tokens = torch.cat([starts[row] + torch.arange(*ranges[row], device=device) for row in kept])
    ends = [lengths[row] - (starts[row + 1] - starts[row]) + ranges[row][1] for row in kept]
    decodes = next((index for index, count in enumerate(counts) if count > 1), len(counts))
    metadata = dataclasses.replace(
        case.metadata,
        query_start=torch.tensor([0, *itertools.accumulate(counts)], dtype=torch.int32, device=device),
        context_lens=torch.tensor(ends, dtype=torch.int32, device=device),
        block_tables=case.metadata.block_tables[kept],
        max_query_len=max(counts),
        max_context_len=max(ends),
        num_decodes=decodes,
    )
    return dataclasses.replace(case, q=case.q[tokens], metadata=metadata)


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize(("cache_dtype", "window"), [(None, None), (None, 70), (torch.int8, 70)], ids=str)
def test_deterministic_results_depend_on_the_request_alone(device, close, monkeypatch, cache_dtype, window):
    """Bit for bit: whole prompts, chunks, single tokens, with and without neighbours, workspace whole or in pieces."""
    monkeypatch.setattr(tuning, "SEGMENT", 128)
    case = make_case(device, [(150, 150), (40, 300), (1, 290)], cache_dtype=cache_dtype)
    together = case.run(window=window)
    close(together, case.expected(window))
    first, second = together[:150], together[150:190]
    for begin, end in ((0, 40), (40, 41), (41, 107), (107, 150)):
        assert torch.equal(cut(case, [(begin, end), None, None]).run(window=window), first[begin:end])
    assert torch.equal(cut(case, [None, (39, 40), (0, 1)]).run(window=window)[0], second[39])
    assert torch.equal(cut(case, [None, None, (0, 1)]).run(window=window), together[190:])
    monkeypatch.setattr(tuning, "SEGMENT_WORKSPACE_BYTES", 1)
    assert torch.equal(case.run(window=window), together)


def test_block_offsets_past_int32(device, close):
    """Strides that put the last pages more than 2^31 elements away; the memory in between is never touched."""
    case = make_case(device, [(1, 20), (4, 30)], kv_heads=1, heads=2, cache_dtype=torch.int8)
    expected = case.expected()
    blocks = case.k_cache.shape[0]
    far = 2**31 // (blocks - 3)
    storage = torch.empty(far * blocks, dtype=torch.int8, device=device)
    for index, name in enumerate(("k_cache", "v_cache")):
        view = storage[index * 4096 :].as_strided((blocks, 1, 16, 64), (far, 16 * 64, 64, 1))
        view.copy_(getattr(case, name))
        setattr(case, name, view)
    assert int(case.metadata.block_tables.max()) * far > 2**31
    close(case.run(), expected)


def layouts():
    """Requests in the scheduler's order, decodes first; lengths around the edges of pages and tiles."""
    lengths = st.one_of(st.sampled_from([1, 15, 16, 17, 31, 33, 63, 64, 65, 128]), st.integers(1, 150))
    decodes = st.lists(lengths.map(lambda context: (1, context)), max_size=3)
    chunks = st.lists(
        st.tuples(st.integers(2, 70), st.integers(0, 90)).map(lambda pair: (pair[0], sum(pair))), max_size=2
    )
    return st.tuples(decodes, chunks).map(lambda both: both[0] + both[1]).filter(bool)


@settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    lengths=layouts(),
    heads=st.sampled_from([(2, 2), (3, 1), (8, 2)]),
    page=st.sampled_from([16, 32]),
    window=st.one_of(st.none(), st.integers(1, 100)),
    fixed=st.booleans(),
)
def test_any_layout(device, close, lengths, heads, page, window, fixed):
    case = make_case(device, lengths, *heads, head_dim=32, page=page, dtype=torch.float32)
    tuning.set_deterministic(fixed)
    try:
        close(case.run(window=window), case.expected(window))
    finally:
        tuning.set_deterministic(False)


@pytest.mark.slow
def test_long_contexts(device, close, monkeypatch):
    case = make_case(device, [(1, 5000), (1, 3), (1, 4097), (100, 3000)])
    for splits in (1, 13):
        monkeypatch.setattr(tuning, "num_splits", lambda *_, splits=splits: splits)
        close(case.run(), case.expected())


def test_fp8_needs_a_card_that_has_it(device, monkeypatch):
    case = make_case(device, [(1, 20)], cache_dtype=torch.float8_e4m3fn)
    monkeypatch.setattr(tuning, "traits", lambda _: tuning.DeviceTraits(80, 108))
    with pytest.raises(ValueError, match="use int8"):
        case.run()


def test_bad_arguments_are_refused(device):
    case = make_case(device, [(1, 20)])
    with pytest.raises(ValueError, match="contiguous"):
        dataclasses.replace(case, k_cache=case.k_cache.transpose(2, 3).contiguous().transpose(2, 3)).run()
    with pytest.raises(ValueError, match="needs scales"):
        dataclasses.replace(case, k_cache=case.k_cache.to(torch.int8), v_cache=case.v_cache.to(torch.int8)).run()
    with pytest.raises(ValueError, match="do not divide"):
        dataclasses.replace(case, q=case.q[:, :3]).run()
    with pytest.raises(ValueError, match="window"):
        case.run(window=0)
