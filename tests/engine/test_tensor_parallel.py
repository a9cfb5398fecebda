"""A model shared among ranks says what the whole model says, and never outlives one of them."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import gguf
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from engine.batch import Batch, ScheduledRequest, StepResult
from engine.config import EngineConfig
from engine.gguf_file import GgufFile
from engine.random_model import random_model, weight_shapes
from engine.request import Request, SamplingParams
from engine.safetensors_folder import SafetensorsWeights
from engine.shard import Shard, ShardedWeights, fits
from engine.step_frames import Probe, StepReader, StepWriter, decoder, encoder
from engine.weights import GgufWeights, TensorWeights
from tests.engine.fake_model import PagedFakeModel, Rig
from tests.engine.random_engine import small_config
from tests.engine.two_ranks import MODELS, texts

ROOT = Path(__file__).parents[2]
SUMMED = ("o_proj.weight", "down_proj.weight")


def joined(name: str, parts: list[torch.Tensor], whole: torch.Tensor) -> torch.Tensor:
    """The ranks' parts of a weight put together again."""
    if name.endswith(("o_proj.bias", "down_proj.bias")):
        return torch.stack(parts).sum(0)
    if "norm" in name:
        return parts[-1]
    return torch.cat(parts, dim=1 if name.endswith(SUMMED) else 0)[: len(whole)]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_the_ranks_parts_are_the_whole(name, ranks):
    config = MODELS[name]
    weights = random_model(config)
    shards = [Shard(config, rank, ranks) for rank in range(ranks)]
    stored = weight_shapes(shards[0].local)
    for weight, whole in weights.tensors.items():
        parts = [ShardedWeights(weights, shard).dense(weight, torch.float32) for shard in shards]
        if weight not in ("model.embed_tokens.weight", "lm_head.weight"):
            assert {tuple(part.shape) for part in parts} == {stored[weight]}
        if (".k_proj" in weight or ".v_proj" in weight) and ranks > config.num_kv_heads:
            repeats = ranks // config.num_kv_heads
            assert all(torch.equal(parts[rank], parts[rank // repeats * repeats]) for rank in range(ranks))
            parts = parts[::repeats]
        assert torch.equal(joined(weight, parts, whole), whole), weight


def test_sizes_that_cannot_be_shared_out_are_named_with_what_can():
    config = small_config(num_heads=6, num_kv_heads=3)
    with pytest.raises(
        ValueError, match=r"4 ranks: 6 attention heads, 3 KV heads .* use --tensor-parallel 1 or 3 or 6"
    ):
        Shard(config, 0, 4)
    assert not fits(config, 2), "three KV heads neither divide by two nor divide two"
    assert not fits(small_config(intermediate_size=97), 2)


def kept(weights: TensorWeights, shard: Shard) -> dict[str, torch.Tensor]:
    return {name: ShardedWeights(weights, shard).dense(name, torch.float32) for name in weights.tensors}


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_reads_only_its_part_of_a_safetensors_file(tmp_path, rank, monkeypatch):
    config = MODELS["qwen3, head norms"]
    weights = random_model(config, seed=1)
    save_file(weights.tensors, tmp_path / "model.safetensors")
    shard = Shard(config, rank, 2)
    opened = SafetensorsWeights(tmp_path)
    wholes: list[str] = []

    class Watched:
        def __init__(self, file) -> None:
            self.file = file
            self.get_slice = file.get_slice

        def get_tensor(self, name: str) -> torch.Tensor:
            wholes.append(name)
            return self.file.get_tensor(name)

    monkeypatch.setattr(opened, "_owner", {name: Watched(file) for name, file in opened._owner.items()})
    ours = ShardedWeights(opened, shard)
    for name, expected in kept(weights, shard).items():
        assert torch.equal(ours.dense(name, torch.float32), expected), name
    assert all("norm" in name for name in wholes)
    matrices = [name for name in weights.tensors if "norm" not in name]
    assert all(ours.nbytes(name) * 2 == opened.nbytes(name) for name in matrices)


@pytest.mark.parametrize("kind", [gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.Q8_0])
@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_a_rank_reads_only_its_part_of_a_gguf_file(tmp_path, write_gguf, kind, architecture):
    """The bytes of the other rank's rows and columns are destroyed: they must not matter."""
    config = small_config(
        architecture=architecture, qk_norm=False, qkv_bias=architecture == "qwen2", intermediate_size=128,
        layer_windows=(None, None),
    )  # fmt: skip
    path = write_gguf(tmp_path / "model.gguf", config, random_model(config, seed=1).tensors, kind)
    whole = GgufWeights(GgufFile(path), config)
    names = list(weight_shapes(config))
    shards = [Shard(config, rank, 2) for rank in (0, 1)]
    expected = [{name: ShardedWeights(whole, shard).dense(name, torch.float32) for name in names} for shard in shards]
    for name in names:
        full = whole.dense(name, torch.float32)
        assert torch.equal(joined(name, [each[name] for each in expected], full), full), name
    for rank, shard in enumerate(shards):
        file = GgufFile(path)
        damaged = GgufWeights(file, config)
        for name in names:
            part = shards[1 - rank].part(name)
            if part is not None and shard.part(name) is not None:
                damaged._raw(damaged._tensor(name), part).fill_(255)
        for name in names:
            assert torch.equal(ShardedWeights(damaged, shard).dense(name, torch.float32), expected[rank][name]), name
            blocks = ShardedWeights(damaged, shard).blocks(name)
            if blocks is not None:
                assert torch.equal(blocks.dequantize(), expected[rank][name]), name


def test_columns_that_cut_a_gguf_block_are_read_whole(tmp_path, write_gguf):
    """Q4_K keeps 256 columns together; half of 256 is cut out after they are read, and is no blocks any more."""
    config = small_config(architecture="llama", qk_norm=False, intermediate_size=256, layer_windows=(None, None))
    name = "model.layers.0.mlp.down_proj.weight"
    kinds = {name: gguf.GGMLQuantizationType.Q8_0}
    path = write_gguf(tmp_path / "model.gguf", config, random_model(config).tensors, kinds=kinds)
    whole = GgufWeights(GgufFile(path), config)
    cut = small_config(architecture="llama", qk_norm=False, intermediate_size=96)
    part = Shard(cut, 1, 2).part(name)
    assert (part.start, part.stop) == (48, 96)
    assert torch.equal(whole.dense(name, torch.float32, part), whole.dense(name, torch.float32)[:, 48:96])
    assert whole.blocks(name, part) is None


class Mirrored(PagedFakeModel):
    """Runs each batch, then the mirror of it that went over the wire, on a cache of its own."""

    def __init__(self, block_size: int) -> None:
        super().__init__(block_size)
        self.other = PagedFakeModel(block_size)
        self.writer, self.reader = StepWriter(), StepReader()
        self.frame_bytes = 0

    def run(self, batch: Batch) -> StepResult:
        frame = encoder.encode(self.writer.step(batch))
        self.frame_bytes += len(frame)
        mirror = self.reader.batch(decoder.decode(frame))
        assert (mirror.step_id, mirror.retired) == (batch.step_id, batch.retired)
        for ours, theirs in zip(mirror.requests, batch.requests, strict=True):
            assert ours.request.token_ids == theirs.request.token_ids
            assert ours.request.block_table == theirs.request.block_table
            assert ours.request.sampling == theirs.request.sampling
            assert ours.request.eos_token_ids == theirs.request.eos_token_ids
            assert (ours.samples, ours.draft) == (theirs.samples, theirs.draft)
        result = super().run(batch)
        assert self.other.run(mirror).sampled == result.sampled
        return result


@given(seed=st.integers(0, 10_000), num_blocks=st.integers(9, 14), running=st.integers(1, 5), budget=st.integers(1, 24))
@settings(max_examples=100, deadline=None)
def test_a_mirror_follows_any_history(seed, num_blocks, running, budget):
    """Preemption, aborts, prefix hits, exchanged blocks, ids used twice: the other rank draws the same."""
    rng = random.Random(seed)
    rig = Rig(num_blocks, 4, max_model_len=36, max_num_seqs=running, max_num_batched_tokens=budget)
    rig.model = Mirrored(4)
    for number in range(200):
        if number < 60 and rng.random() < 0.2:
            params = SamplingParams(max_tokens=rng.randrange(1, 20), stop_token_ids=rng.choice([(), (1,)]), seed=number)
            prompt = tuple([rng.randrange(2)] * rng.randrange(14) + [rng.randrange(3)])
            name = f"r{rng.randrange(6)}"
            rig.scheduler.abort([name])
            rig.scheduler.add(Request(name, prompt, params, float(number), eos_token_ids=frozenset({2})))
        if rng.random() < 0.03:
            rig.scheduler.abort([f"r{rng.randrange(6)}"])
        if rig.scheduler.has_work:
            rig.step()
    rig.run_all()


def test_what_changes_under_a_request_reaches_its_mirror():
    """A block exchanged for an equal one, a table that shrinks, an id that comes back without having been retired."""
    writer, reader = StepWriter(), StepReader()

    def mirrored(request: Request, start: int) -> Request:
        batch = Batch(start, (ScheduledRequest(request, start, 1, True),))
        (scheduled,) = reader.batch(decoder.decode(encoder.encode(writer.step(batch)))).requests
        assert scheduled.request.block_table == request.block_table
        assert scheduled.request.token_ids == request.token_ids
        return scheduled.request

    first = Request("r", (1, 2, 3), SamplingParams(), 0.0)
    tables = ([4, 5, 6], [4, 9, 6], [4, 9], [4, 9, 7, 8], [1])
    seen = []
    for start, table in enumerate(tables):
        first.block_table = list(table)
        first.token_ids.append(start)
        seen.append(mirrored(first, start))
    assert len(set(map(id, seen))) == 1
    again = Request("r", (7, 8), SamplingParams(max_tokens=3), 0.0)
    again.block_table = [2]
    assert mirrored(again, 1).sampling.max_tokens == 3


def test_a_step_of_a_decode_is_a_small_frame():
    """What was said once is not said again: a long prompt, then one token a step."""
    rig = Rig(40, 16, max_model_len=400)
    model = rig.model = Mirrored(16)
    rig.scheduler.add(Request("r", tuple(range(300)), SamplingParams(max_tokens=20, stop_token_ids=()), 0.0))
    rig.step()
    assert model.frame_bytes > 300
    model.frame_bytes = 0
    batches = rig.run_all()
    assert model.frame_bytes / len(batches) < 60
    assert decoder.decode(encoder.encode(Probe())) == Probe()


def run_two_ranks(folder: Path, device: str) -> list[dict]:
    """What each of two processes printed."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, ROOT / "tests" / "engine" / "two_ranks.py", folder / "rendezvous"]
    processes = [
        subprocess.Popen([*command, str(rank), device], stdout=subprocess.PIPE, env=environment, cwd=ROOT, text=True)
        for rank in (0, 1)
    ]
    printed = [process.communicate(timeout=240)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    return [json.loads(each) for each in printed]


@pytest.fixture(scope="module")
def both_ranks(tmp_path_factory) -> list[dict]:
    return run_two_ranks(tmp_path_factory.mktemp("ranks"), "cpu")


@pytest.mark.parametrize("name", MODELS)
def test_two_ranks_draw_the_tokens_of_one(both_ranks, name):
    """fp32, where the order of sums differs by less than any two tokens do; greedy and drawn, on both runners."""
    alone = texts(MODELS[name], None)
    assert both_ranks[0][name] == alone
    assert both_ranks[1][name] == alone


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_draw_the_tokens_of_one(tmp_path):
    """NCCL, its operations inside CUDA graphs."""
    first, second = run_two_ranks(tmp_path, "cuda")
    for name, config in MODELS.items():
        assert first[name] == second[name] == texts(config, None, torch.device("cuda")), name


def test_settings_that_cannot_be_are_named():
    with pytest.raises(ValueError, match="tensor_parallel must be at least 1"):
        EngineConfig("m", "m", tensor_parallel=0)
    with pytest.raises(ValueError, match="more than two ranks"):
        EngineConfig("m", "m", tensor_parallel=4, deterministic=True)
    with pytest.raises(ValueError, match="rank_timeout_s"):
        EngineConfig("m", "m", rank_timeout_s=0.0)
