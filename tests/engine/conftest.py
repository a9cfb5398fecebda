"""Helpers to run a decoder over a paged cache and to write models in the formats we read."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from engine.checkpoint import Checkpoint, open_checkpoint
from engine.decoder import Decoder
from engine.model_config import ModelConfig
from engine.tokenizer import Tokenizer
from engine.weights import gguf_name
from kernels.metadata import AttentionMetadata
from tests.engine.fake_model import expected_output, make_request, make_rig

__all__ = ["expected_output", "make_request", "make_rig"]


class PagedRun:
    """Requests on one decoder: caches full of noise, block tables shuffled, so only what is written may be read."""

    def __init__(self, decoder: Decoder, block_size: int = 4, num_blocks: int = 96) -> None:
        config = decoder.config
        self.decoder = decoder
        self.block_size = block_size
        shape = (num_blocks, config.num_kv_heads, block_size, config.head_dim)
        generator = torch.Generator().manual_seed(7)
        self.caches = [
            tuple(torch.randn(shape, generator=generator).to(decoder.dtype) * 10 for _ in range(2))
            for _ in range(config.num_layers)
        ]
        self.free = list(range(num_blocks))
        random.Random(3).shuffle(self.free)
        self.tables: dict[int, list[int]] = {}
        self.lengths: dict[int, int] = {}

    def step(self, chunks: Mapping[int, list[int]]) -> dict[int, torch.Tensor]:
        """Run some tokens of some requests; returns the logits of every token, `[tokens, V]`, by request."""
        order = sorted(chunks, key=lambda request: (len(chunks[request]) > 1, request))
        starts, positions, slots = [0], [], []
        for request in order:
            table, first = self.tables.setdefault(request, []), self.lengths.get(request, 0)
            last = first + len(chunks[request])
            while len(table) * self.block_size < last:
                table.append(self.free.pop())
            positions += range(first, last)
            slots += [table[p // self.block_size] * self.block_size + p % self.block_size for p in range(first, last)]
            self.lengths[request] = last
            starts.append(starts[-1] + len(chunks[request]))
        width = max(len(self.tables[request]) for request in order)
        rows = [self.tables[request] + [0] * (width - len(self.tables[request])) for request in order]
        metadata = AttentionMetadata(
            query_start=torch.tensor(starts, dtype=torch.int32),
            context_lens=torch.tensor([self.lengths[request] for request in order], dtype=torch.int32),
            block_tables=torch.tensor(rows, dtype=torch.int32),
            slot_mapping=torch.tensor(slots),
            positions=torch.tensor(positions),
            max_query_len=max(map(len, chunks.values())),
            max_context_len=max(self.lengths[request] for request in order),
            num_decodes=sum(len(chunk) == 1 for chunk in chunks.values()),
        )
        tokens = torch.tensor([token for request in order for token in chunks[request]])
        logits = self.decoder.logits(self.decoder.forward(tokens, metadata, self.caches))
        return {request: logits[starts[row] : starts[row + 1]] for row, request in enumerate(order)}

    def prompt_logits(self, prompts: Mapping[int, list[int]], chunk: int) -> dict[int, torch.Tensor]:
        """Prefill all prompts together, at most `chunk` tokens of each in a step."""
        parts: dict[int, list[torch.Tensor]] = {request: [] for request in prompts}
        while pending := {
            request: prompt[self.lengths.get(request, 0) :][: chunk + request]
            for request, prompt in prompts.items()
            if self.lengths.get(request, 0) < len(prompt)
        }:
            for request, logits in self.step(pending).items():
                parts[request].append(logits)
        return {request: torch.cat(logits) for request, logits in parts.items()}

    def greedy(self, last_logits: Mapping[int, torch.Tensor], steps: int) -> dict[int, list[int]]:
        """Continue every request by its likeliest token."""
        drawn = {request: [int(logits.argmax())] for request, logits in last_logits.items()}
        for _ in range(steps - 1):
            for request, logits in self.step({request: [ids[-1]] for request, ids in drawn.items()}).items():
                drawn[request].append(int(logits[-1].argmax()))
        return drawn


@pytest.fixture(scope="session")
def paged_run() -> type[PagedRun]:
    return PagedRun


@pytest.fixture(scope="session")
def transformers() -> Iterator[Any]:
    """The transformers library, quiet and offline."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import transformers as library
    library.utils.logging.set_verbosity_error()
    library.utils.logging.disable_progress_bar()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        yield library


@pytest.fixture(scope="session")
def embedded(embedded_model: Path) -> Checkpoint:
    return open_checkpoint(embedded_model)


@pytest.fixture(scope="session")
def embedded_tokenizer(embedded: Checkpoint) -> Tokenizer:
    return embedded.load_tokenizer()


def permute_rows(weight: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Halves to neighbouring pairs, as converters to GGUF reorder the llama architecture's query and key rows."""
    return weight.view(-1, 2, head_dim // 2, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)


@pytest.fixture(scope="session")
def write_gguf() -> Callable[..., Path]:
    """Writes a model as a GGUF file, matrices as `kind`, or as `kinds` says for one by its name."""

    def write(
        path: Path,
        config: ModelConfig,
        tensors: Mapping[str, torch.Tensor],
        kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
        extra_tensors: Mapping[str, torch.Tensor] | None = None,
        skip: tuple[str, ...] = (),
        kinds: Mapping[str, gguf.GGMLQuantizationType] | None = None,
    ) -> Path:
        name = config.architecture
        writer = gguf.GGUFWriter(path, name)
        writer.add_block_count(config.num_layers)
        writer.add_context_length(config.max_position_embeddings)
        writer.add_embedding_length(config.hidden_size)
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count(config.num_heads)
        writer.add_head_count_kv(config.num_kv_heads)
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
        writer.add_rope_freq_base(config.rope_theta)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        if config.layer_windows[0] is not None:
            writer.add_sliding_window(config.layer_windows[0])
        if config.rope_scaling is not None and config.rope_scaling.kind == "linear":
            writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
            writer.add_rope_scaling_factor(config.rope_scaling.factor)
        for hf_name, tensor in {**tensors, **(extra_tensors or {})}.items():
            if hf_name in skip:
                continue
            if name == "llama" and (".q_proj." in hf_name or ".k_proj." in hf_name):
                tensor = permute_rows(tensor, config.head_dim)
            data: np.ndarray = tensor.float().numpy()
            chosen = (kinds or {}).get(hf_name, kind)
            if tensor.dim() == 2 and chosen != gguf.GGMLQuantizationType.F32:
                writer.add_tensor(gguf_name(hf_name), gguf.quants.quantize(data, chosen), raw_dtype=chosen)
            else:
                writer.add_tensor(gguf_name(hf_name), data)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write
