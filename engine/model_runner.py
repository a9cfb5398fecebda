"""The executor that runs the model: pack a batch, compute it, draw the next tokens."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from engine.batch import Batch, SampledTokens, StepResult
from engine.batch_inputs import pack
from engine.sampler import Sampler
from engine.speculation import draw_rows, per_request
from kernels.metadata import AttentionMetadata

KVCaches = Sequence[tuple[torch.Tensor, torch.Tensor]]


class Model(Protocol):
    """What the runner needs of a decoder."""

    def step_logits(
        self, token_ids: torch.Tensor, metadata: AttentionMetadata, kv_caches: KVCaches, rows: torch.Tensor
    ) -> torch.Tensor:
        """Run packed tokens `[T]`, write their keys and values, return the logits `[R, V]` fp32 of `rows` `[R]`."""
        ...


class ModelRunner:
    """Runs batches on one device; the engine's `Executor` in production."""

    def __init__(
        self,
        model: Model,
        kv_caches: KVCaches,
        sampler: Sampler,
        device: torch.device,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._model = model
        self._kv_caches = kv_caches
        self._sampler = sampler
        self._device = device
        self._clock = clock
        self._block_size = kv_caches[0][0].shape[2]

    @torch.inference_mode()
    def run(self, batch: Batch) -> StepResult:
        """Compute keys and values of the batch's tokens and draw the next ones. An exception fails the batch."""
        started_s = self._clock()
        self._sampler.drop(batch.retired)
        sampled = self._compute(batch) if batch.requests else ()
        return StepResult(sampled, started_s, self._clock())

    @torch.inference_mode()
    def probe(self) -> None:
        """Run one token through the model without touching the cache: proof that the device answers."""
        one = torch.ones(1, dtype=torch.int32, device=self._device)
        metadata = AttentionMetadata(
            query_start=torch.tensor([0, 1], dtype=torch.int32, device=self._device),
            context_lens=one,
            block_tables=torch.zeros((1, 1), dtype=torch.int32, device=self._device),
            slot_mapping=torch.full((1,), -1, dtype=torch.int64, device=self._device),
            positions=torch.zeros(1, dtype=torch.int64, device=self._device),
            max_query_len=1,
            max_context_len=1,
            num_decodes=1,
        )
        zero = torch.zeros(1, dtype=torch.int64, device=self._device)
        self._model.step_logits(zero, metadata, self._kv_caches, zero)

    def _compute(self, batch: Batch) -> tuple[SampledTokens, ...]:
        inputs = pack(batch, self._block_size, self._device)
        logits = self._model.step_logits(inputs.token_ids, inputs.metadata, self._kv_caches, inputs.sample_rows)
        rows = draw_rows(batch)
        if not rows:
            return (SampledTokens(),) * len(batch.requests)
        drawn = self._sampler.sample(logits, [each.request for each, _ in rows], [draft for _, draft in rows])
        return per_request(batch, drawn)
