"""The executor for a GPU: requests keep their rows on the device, a step sends one small array and copies one back.

`launch` enqueues a step and returns at once; `collect` waits for its result. Between the two nothing reads the device,
so a further step may be launched before the last one's result is known: a token that only the device knows is taken
from the request's row. Decode steps run at padded sizes (`engine.decode_graphs`), all others as they are.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import torch

from engine.batch import Batch, StepResult
from engine.decode_graphs import DecodeGraphs, DecodeSteps, EagerDecodes, padded_size, padded_sizes
from engine.device_inputs import StepArrays, padded_decodes, step_arrays
from engine.device_sampler import DeviceSampler, Drawn
from engine.guided import GuideCompiler
from engine.request import Request, SamplingParams
from engine.request_rows import RequestRows
from engine.speculation import per_request
from engine.transfers import Transfers, make_transfers
from kernels import ops
from kernels.gpu.definitions import KVScales
from kernels.metadata import AttentionMetadata

KVCaches = Sequence[tuple[torch.Tensor, torch.Tensor]]
# Larger batches of decodes are rare, and long enough to launch kernel by kernel.
MAX_GRAPH_SIZE = 512
# Lengths of chunks that make every tile of the linear and attention kernels compile before the first request does.
WARM_UP_CHUNKS = (2, 17, 65, 256)


class DeviceModel(Protocol):
    """What the runner needs of a decoder."""

    def forward(
        self,
        token_ids: torch.Tensor,
        metadata: AttentionMetadata,
        kv_caches: KVCaches,
        kv_scales: Sequence[KVScales] | None = None,
    ) -> torch.Tensor:
        """Run packed tokens `[T]`, write their keys and values, return the normed hidden states `[T, H]`."""
        ...

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """fp32 `[R, V]` for hidden states `[R, H]`."""
        ...


@dataclass(frozen=True, slots=True)
class Limits:
    """Most requests at once, and the longest context in tokens: the sizes of what stays on the device."""

    max_num_seqs: int
    max_model_len: int


@dataclass(frozen=True, slots=True)
class Launched:
    """A step under way. `drawn` is None where no request of the batch samples."""

    batch: Batch
    drawn: Drawn | None
    started_s: float


class DeviceRunner:
    """Runs batches on a GPU; the engine's `Executor` there. Call from one thread."""

    def __init__(
        self,
        model: DeviceModel,
        kv_caches: KVCaches,
        kv_scales: Sequence[KVScales] | None,
        vocab_size: int,
        limits: Limits,
        device: torch.device,
        guide_compiler: GuideCompiler | None = None,
        transfers: Transfers | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._model = model
        self._kv_caches = kv_caches
        self._kv_scales = kv_scales
        self._limits = limits
        self._device = device
        self._clock = clock
        self._block_size = kv_caches[0][0].shape[2]
        self._transfers = transfers or make_transfers(device)
        max_blocks = -(-limits.max_model_len // self._block_size)
        self._rows = RequestRows(limits.max_num_seqs, max_blocks, device, self._transfers)
        self._sampler = DeviceSampler(vocab_size, self._rows, self._transfers, guide_compiler)
        self._sizes = padded_sizes(min(limits.max_num_seqs, MAX_GRAPH_SIZE))
        self._decodes: DecodeSteps = EagerDecodes(self._decode)

    def run(self, batch: Batch) -> StepResult:
        """Compute keys and values of the batch's tokens and draw the next ones. An exception fails the batch."""
        return self.collect(self.launch(batch))

    @torch.inference_mode()
    def launch(self, batch: Batch) -> Launched:
        """Enqueue a step; does not wait for the device."""
        started_s = self._clock()
        self._rows.drop(batch.retired)
        return Launched(batch, self._enqueue(batch) if batch.requests else None, started_s)

    def collect(self, launched: object) -> StepResult:
        """The result of a launched step; collect in the order of launching."""
        assert isinstance(launched, Launched)
        drawn = launched.drawn.wait() if launched.drawn is not None else ()
        return StepResult(per_request(launched.batch, drawn), launched.started_s, self._clock())

    @staticmethod
    def needs_host_tokens(request: Request) -> bool:
        """Whether a step of `request` may be launched only when its last token is known on the host."""
        return request.sampling.guide is not None

    @torch.inference_mode()
    def probe(self) -> None:
        """Run padding through the model without touching the cache: proof that the device answers."""
        hidden = self._decodes.run(self._padding(self._sizes[0]))
        self._transfers.download([self._model.logits(hidden[:1])[:, :1]]).wait()

    @torch.inference_mode()
    def warm_up(self, progress: Callable[[int, int], None] = lambda done, total: None) -> None:
        """Compile every kernel a step may need, then hold the decode steps as graphs where the device can.

        Compiled kernels stay in the user's cache (`kernels.gpu.cache`), so only the first start takes long.
        """
        steps: list[Callable[[], object]] = [
            *(partial(self._warm_chunk, tokens) for tokens in WARM_UP_CHUNKS),
            *(partial(self._warm_decode, length) for length in (2, self._limits.max_model_len)),
            *(partial(self._decode, self._padding(size)) for size in self._sizes),
            self._warm_sampler,
        ]
        if self._device.type == "cuda":
            steps.append(self._capture)
        for done, step in enumerate(steps):
            progress(done, len(steps))
            step()
        self.probe()

    def _enqueue(self, batch: Batch) -> Drawn | None:
        seats, new = self._rows.seat(each.request for each in batch.requests)
        self._sampler.arrive(new)
        arrays = step_arrays(batch, self._rows, seats, self._block_size)
        size = padded_size(self._sizes, arrays.num_requests) if arrays.decodes_only else None
        body = _body(arrays) if size is None else padded_decodes(arrays, size, self._rows.padding_row).ravel()
        parts = (body, arrays.last, arrays.ends, arrays.rows[list(arrays.sampling)], arrays.where, arrays.blocks)
        sent = self._transfers.upload(np.concatenate(parts))
        step, last, ends, rows, where, blocks = torch.split(sent, [len(part) for part in parts])
        if len(arrays.where):
            self._rows.block_tables.view(-1).index_copy_(0, where.long(), blocks)
        hidden = self._mixed(step, arrays) if size is None else self._decodes.run(step.view(4, size))
        if not arrays.sampling:
            return None
        everyone = arrays.decodes_only and len(arrays.sampling) == arrays.num_requests
        hidden = hidden[: arrays.num_requests] if everyone else hidden.index_select(0, last)
        logits = self._model.logits(hidden)
        prompts = [batch.requests[index].request.num_prompt_tokens for index in arrays.sampling]
        outputs = [end - prompt for end, prompt in zip(arrays.ends.tolist(), prompts)]
        return self._sampler.draw(logits, [seats[index] for index in arrays.sampling], rows, ends, outputs)

    def _decode(self, step: torch.Tensor) -> torch.Tensor:
        """Hidden states `[size, H]` of a padded batch of decodes `[4, size]`; all else is on the device."""
        rows, computed, lengths, tokens = step.unbind(0)
        size = step.shape[1]
        tables = self._rows.block_tables.index_select(0, rows)
        ids = torch.where(tokens < 0, self._rows.last_tokens.index_select(0, rows), tokens)
        query_start, context_lens, positions, slots = ops.step_inputs(computed, lengths, tables, self._block_size, size)
        # The bound of the context is part of a graph: splits of the keys follow from each request's length.
        longest = self._limits.max_model_len
        metadata = AttentionMetadata(query_start, context_lens, tables, slots, positions, 1, longest, size)
        return self._model.forward(ids, metadata, self._kv_caches, self._kv_scales)

    def _mixed(self, step: torch.Tensor, arrays: StepArrays) -> torch.Tensor:
        """Hidden states `[T, H]` of any batch."""
        count, decodes = arrays.num_requests, arrays.num_decodes
        rows, computed, lengths, tokens = torch.split(step, [count, count, count, len(arrays.tokens)])
        tables = self._rows.block_tables.index_select(0, rows)
        ids = tokens.long()
        if decodes:
            newest = self._rows.last_tokens.index_select(0, rows[:decodes])
            ids[:decodes] = torch.where(tokens[:decodes] < 0, newest, ids[:decodes])
        query_start, context_lens, positions, slots = ops.step_inputs(
            computed, lengths, tables, self._block_size, len(arrays.tokens)
        )
        metadata = AttentionMetadata(
            query_start,
            context_lens,
            tables,
            slots,
            positions,
            int(arrays.lengths.max()),
            arrays.max_context_len,
            decodes,
        )
        return self._model.forward(ids, metadata, self._kv_caches, self._kv_scales)

    def _padding(self, size: int) -> torch.Tensor:
        packed = np.zeros((4, size), dtype=np.int32)
        packed[0] = self._rows.padding_row
        return self._transfers.upload(packed)

    def _capture(self) -> None:
        self._decodes = DecodeGraphs(self._decode, self._sizes, self._padding)

    def _warm_chunk(self, tokens: int) -> None:
        """A prompt of so many tokens, on the row of padding: it writes block 0, which is empty yet."""
        self._warm([0], [min(tokens, self._limits.max_model_len)])

    def _warm_decode(self, length: int) -> None:
        """A decode of so many tokens of context beside a short prompt."""
        self._warm([length - 1, 0], [1, 2])

    def _warm(self, computed: list[int], lengths: list[int]) -> None:
        count, tokens = len(computed), sum(lengths)
        nothing = np.zeros(0, dtype=np.int32)
        arrays = StepArrays(
            rows=np.full(count, self._rows.padding_row, dtype=np.int32),
            computed=np.array(computed, dtype=np.int32),
            lengths=np.array(lengths, dtype=np.int32),
            tokens=np.zeros(tokens, dtype=np.int32),
            where=nothing,
            blocks=nothing,
            sampling=(),
            last=nothing,
            ends=nothing,
            num_decodes=count - 1,
            max_context_len=max(map(sum, zip(computed, lengths))),
        )
        hidden = self._mixed(self._transfers.upload(_body(arrays)), arrays)
        self._model.logits(hidden[: self._limits.max_num_seqs])

    def _warm_sampler(self) -> None:
        """Each kind of draw once, for a request that sits on a row only for this."""
        logits = self._model.logits(self._decode(self._padding(self._sizes[0]))[:1])
        kinds = (
            SamplingParams(temperature=0.0),
            SamplingParams(temperature=1.0, top_p=0.9, seed=0, presence_penalty=0.1),
        )
        for params in kinds:
            request = Request("warm-up", (0,), params, 0.0)
            seats, new = self._rows.seat([request])
            self._sampler.arrive(new)
            keys = self._transfers.upload(np.array([seats[0].row, 1], dtype=np.int32))
            self._sampler.draw(logits.clone(), seats, keys[:1], keys[1:], [0]).download.wait()
            self._rows.drop(["warm-up"])


def _body(arrays: StepArrays) -> np.ndarray:
    return np.concatenate((arrays.rows, arrays.computed, arrays.lengths, arrays.tokens))
