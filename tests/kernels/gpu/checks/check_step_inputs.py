"""Positions, slots and lengths of a step, against their definitions: exact."""

import torch

from kernels.gpu import definitions, ops


def test_a_packed_step(device):
    query_lens = torch.tensor([1, 1, 300, 0, 17, 1], dtype=torch.int32, device=device)
    computed = torch.tensor([15, 16, 0, 4, 1000, 33], dtype=torch.int32, device=device)
    tables = torch.randint(0, 2**31 // 16, (6, 70), dtype=torch.int32, device=device)
    for spare in (0, 1, 400):
        arguments = (computed, query_lens, tables, 16, int(query_lens.sum()) + spare)
        for own, expected in zip(ops.step_inputs(*arguments), definitions.step_inputs(*arguments)):
            assert own.dtype == expected.dtype
            assert torch.equal(own, expected)


def test_slots_past_int32(device):
    computed, query_lens = (torch.tensor([n], dtype=torch.int32, device=device) for n in (5, 2))
    tables = torch.tensor([[2_000_000_000]], dtype=torch.int32, device=device)
    slots = ops.step_inputs(computed, query_lens, tables, 16, 2)[3]
    assert slots.tolist() == [2_000_000_000 * 16 + 5, 2_000_000_000 * 16 + 6]


def test_decodes_advance_by_one_token(device):
    lengths = torch.tensor([1, 16, 0, 31, 200], dtype=torch.int32, device=device)
    tables = torch.randint(0, 99, (5, 14), dtype=torch.int32, device=device)
    own, expected = lengths.clone(), lengths.clone()
    for _ in range(3):
        for got, wanted in zip(ops.advance_decodes(own, tables, 16), definitions.advance_decodes(expected, tables, 16)):
            assert torch.equal(got, wanted)
        assert torch.equal(own, expected)
    assert own.tolist() == [4, 19, 0, 34, 203]
