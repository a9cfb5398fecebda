"""`gridserve bench agreement`: how often a weight format's likeliest token is the fp32 reference's.

The fp32 decoder answers twenty prompts greedily; every format then reads those answers (teacher forcing) and its
likeliest next token is compared at each position.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from bench._prompts import PROMPTS
from kernels.metadata import AttentionMetadata

if TYPE_CHECKING:
    from engine.checkpoint import Checkpoint
    from engine.decoder import Decoder

BLOCK_SIZE = 32


@dataclass(frozen=True, slots=True)
class Agreement:
    """`kl_mean`: mean Kullback-Leibler divergence from fp32's distribution to the format's, in nats."""

    weight_format: str
    positions: int
    top1_agreement: float
    kl_mean: float


class Sequence:
    """One token sequence on a decoder with a cache of its own."""

    def __init__(self, decoder: Decoder, length: int) -> None:
        from kernels.kv_cache import allocate_kv_caches

        config = decoder.config
        self._decoder = decoder
        self._blocks = -(-length // BLOCK_SIZE)
        self._caches = allocate_kv_caches(
            config.num_layers,
            self._blocks,
            config.num_kv_heads,
            BLOCK_SIZE,
            config.head_dim,
            decoder.dtype,
            decoder.device,
        )
        self._computed = 0

    @torch.inference_mode()
    def feed(self, token_ids: list[int]) -> torch.Tensor:
        """Logits `[len(token_ids), V]` of the next tokens."""
        start, end = self._computed, self._computed + len(token_ids)
        self._computed = end
        device = self._decoder.device
        metadata = AttentionMetadata(
            query_start=torch.tensor([0, end - start], dtype=torch.int32, device=device),
            context_lens=torch.tensor([end], dtype=torch.int32, device=device),
            block_tables=torch.arange(self._blocks, dtype=torch.int32, device=device).unsqueeze(0),
            slot_mapping=torch.arange(start, end, device=device),
            positions=torch.arange(start, end, device=device),
            max_query_len=end - start,
            max_context_len=end,
            num_decodes=int(end - start == 1),
        )
        tokens, rows = torch.tensor(token_ids, device=device), torch.arange(end - start, device=device)
        return self._decoder.step_logits(tokens, metadata, self._caches, rows)


def reference_answers(checkpoint: Checkpoint, decoder: Decoder, tokens: int) -> list[tuple[list[int], list[int]]]:
    """(prompt, fp32 greedy answer of `tokens` tokens) for each prompt, through the chat template where there is one."""
    tokenizer = checkpoint.load_tokenizer()
    pairs = []
    for text in PROMPTS:
        template = tokenizer.chat_template
        message = [{"role": "user", "content": text}]
        prompt = tokenizer.encode(text) if template is None else tokenizer.encode_chat(template.render(message))
        sequence = Sequence(decoder, len(prompt) + tokens)
        answer = [int(sequence.feed(prompt)[-1].argmax())]
        while len(answer) < tokens:
            answer.append(int(sequence.feed(answer[-1:])[-1].argmax()))
        pairs.append((prompt, answer))
    return pairs


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="gridserve bench agreement", description=__doc__)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--formats", nargs="+", default=["bf16", "int8", "int4"], choices=("bf16", "int8", "int4"))
    parser.add_argument("--tokens", type=int, default=100, help="answer tokens per prompt (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures")
    gpu = parser.add_argument_group("on a GPU: random weights of published shapes, random text")
    gpu.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="(default: %(default)s)")
    gpu.add_argument("--shapes", nargs="+", help="default: all of `gridserve bench engine`")
    gpu.add_argument("--positions", type=int, default=2048, help="compared for each shape (default: %(default)s)")
    gpu.add_argument("--markdown", type=Path, metavar="FILE", help="write the table")
    gpu.add_argument("--dry-run", action="store_true", help="take every step with a tiny shape on a CPU")
    arguments = parser.parse_args(argv)
    if arguments.device == "cuda":
        from bench import _gpu_agreement, _gpu_shapes

        shapes = arguments.shapes or sorted(_gpu_shapes.SHAPES)
        if strangers := set(shapes) - set(_gpu_shapes.SHAPES):
            raise ValueError(f"no shape {', '.join(strangers)}; there are {', '.join(_gpu_shapes.SHAPES)}")
        return _gpu_agreement.run(shapes, arguments.positions, arguments.dry_run, arguments.json, arguments.markdown)

    from engine.checkpoint import open_checkpoint
    from engine.decoder import Decoder
    from engine.model_store import resolve_model
    from kernels.weight_format import WeightFormat

    checkpoint = open_checkpoint(resolve_model(arguments.model))
    reference = Decoder(checkpoint.config, checkpoint.open_weights(), WeightFormat.FP32, max_model_len=2048)
    pairs = reference_answers(checkpoint, reference, arguments.tokens)
    expected = [
        Sequence(reference, len(prompt) + len(answer)).feed(prompt + answer[:-1])[len(prompt) - 1 :]
        for prompt, answer in pairs
    ]
    rows = []
    for name in arguments.formats:
        decoder = Decoder(checkpoint.config, checkpoint.open_weights(), WeightFormat(name), max_model_len=2048)
        same, divergence, positions = 0, 0.0, 0
        for (prompt, answer), wanted in zip(pairs, expected):
            logits = Sequence(decoder, len(prompt) + len(answer)).feed(prompt + answer[:-1])[len(prompt) - 1 :]
            same += int((logits.argmax(-1) == wanted.argmax(-1)).sum())
            log_p, log_q = wanted.log_softmax(-1), logits.log_softmax(-1)
            divergence += float((log_p.exp() * (log_p - log_q)).sum())
            positions += len(answer)
        rows.append(Agreement(name, positions, same / positions, divergence / positions))
    print("| format | positions | top-1 agreement with fp32 | mean KL, nats |\n|---|---|---|---|")
    for row in rows:
        print(f"| {row.weight_format} | {row.positions} | {row.top1_agreement:.2%} | {row.kl_mean:.5f} |")
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))
    return 0
