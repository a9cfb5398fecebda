"""`gridserve bench agreement --device cuda`: the likeliest token of the GPU path beside fp32's, position by position.

Both read the same random tokens (teacher forcing). Random weights leave many near ties, so the plain-torch
definitions stand beside the kernels: what they lose is the format's, what the kernels lose beyond it is theirs.
"""

from __future__ import annotations

import json
import random
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import torch

from bench._gpu_shapes import SHAPES, TINY, RandomWeights
from bench.agreement import Agreement, Sequence
from engine.decoder import Decoder
from engine.model_config import ModelConfig
from kernels.backend import definitions_only
from kernels.weight_format import WeightFormat

CHUNK = 512


def logits_of(
    config: ModelConfig, device: torch.device, weight_format: WeightFormat, texts: list[list[int]], plain: bool
) -> list[torch.Tensor]:
    """fp32 logits `[len(text), V]` of each text, on the host."""
    with definitions_only() if plain else nullcontext():
        decoder = Decoder(config, RandomWeights(config, device), weight_format, device, CHUNK)
        return [Sequence(decoder, len(text)).feed(text).cpu() for text in texts]


def compare(config: ModelConfig, device: torch.device, positions: int) -> list[Agreement]:
    rng = random.Random(0)
    texts = [[rng.randrange(config.vocab_size) for _ in range(CHUNK)] for _ in range(-(-positions // CHUNK))]
    expected = logits_of(config, device, WeightFormat.FP32, texts, plain=True)
    rows = []
    cases = (
        ("bf16, kernels", WeightFormat.BF16, False),
        ("bf16, definitions", WeightFormat.BF16, True),
        ("int8, kernels", WeightFormat.INT8, False),
        ("int8, definitions", WeightFormat.INT8, True),
    )
    for name, weight_format, plain in cases:
        found = logits_of(config, device, weight_format, texts, plain)
        same, divergence = 0, 0.0
        for wanted, logits in zip(expected, found):
            same += int((logits.argmax(-1) == wanted.argmax(-1)).sum())
            log_p, log_q = wanted.log_softmax(-1), logits.log_softmax(-1)
            divergence += float((log_p.exp() * (log_p - log_q)).sum())
        count = len(texts) * CHUNK
        rows.append(Agreement(name, count, same / count, divergence / count))
    return rows


def run(shapes: list[str], positions: int, dry: bool, json_path: Path | None, markdown: Path | None) -> int:
    """Compare and report. Raises `ValueError` where a GPU is asked for and there is none."""
    if not dry and not torch.cuda.is_available():
        raise ValueError("no NVIDIA GPU on this machine; --dry-run takes every step with a tiny shape on a CPU")
    device = torch.device("cpu" if dry else "cuda")
    lines = ["| shape | format | positions | top-1 agreement with fp32 | mean KL, nats |", "|---|---|---|---|---|"]
    report = []
    for shape in shapes:
        for each in compare(TINY if dry else SHAPES[shape], device, CHUNK if dry else positions):
            report.append({"shape": "tiny" if dry else shape, **asdict(each)})
            lines.append(
                f"| {'tiny' if dry else shape} | {each.weight_format} | {each.positions} | {each.top1_agreement:.2%} "
                f"| {each.kl_mean:.5f} |"
            )
    text = "\n".join(lines) + "\n"
    print(text)
    if markdown is not None:
        markdown.write_text(text)
    if json_path is not None:
        json_path.write_text(json.dumps({"measured": not dry, "rows": report}, indent=1) + "\n")
    return 0
