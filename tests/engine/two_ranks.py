"""One rank of two that serve small models together: `python two_ranks.py RENDEZVOUS RANK DEVICE`, started by tests.

Scheduling is deterministic, so each rank may run a whole engine: their steps meet at the collectives. Prints the texts
of every case as JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from engine.decoder import Decoder
from engine.model_config import ModelConfig
from engine.random_model import random_model
from engine.rank_group import ProcessGroup, RankGroup
from kernels.weight_format import WeightFormat
from tests.engine.random_engine import (
    CPU,
    device_runner,
    make_engine,
    plain_runner,
    ragged_requests,
    serve,
    small_config,
)

# An odd vocabulary: the second rank's last row is padding.
MODELS = {
    "llama, one KV head for both": small_config(architecture="llama", qk_norm=False, num_kv_heads=1, vocab_size=301),
    "qwen2, biases": small_config(architecture="qwen2", qk_norm=False, qkv_bias=True, layer_windows=(None, None)),
    "biases everywhere": small_config(architecture="llama", qkv_bias=True, output_bias=True, mlp_bias=True),
    "qwen3, head norms": small_config(),
    "tied embeddings": small_config(tie_word_embeddings=True, vocab_size=301),
}
GREEDY = {"temperature": 0.0}
DRAWN = {"temperature": 0.9, "seed": 7, "top_p": 0.9, "presence_penalty": 0.4, "logprobs": 2}


def texts(config: ModelConfig, group: RankGroup | None, device: torch.device = CPU) -> dict[str, dict[str, list[int]]]:
    """What the runner of a CPU and that of a device make of one model: through chunks, prefix hits and preemption."""
    decoder = Decoder(config, random_model(config, seed=5), WeightFormat.FP32, device, group=group)
    limits = {"max_num_batched_tokens": 24}
    vocab = config.vocab_size
    found = {}
    for name, params in (("greedy", GREEDY), ("drawn", DRAWN)):
        if device.type == "cpu":
            requests = ragged_requests(vocab_size=vocab, **params)
            found[f"plain {name}"] = serve(make_engine(plain_runner(decoder, 17), 17, **limits), requests)
        for overlap in (False, True):
            requests = ragged_requests(vocab_size=vocab, **params)
            runner = device_runner(decoder, 17)
            if device.type == "cuda":
                runner.warm_up()
            found[f"device {name} {overlap}"] = serve(make_engine(runner, 17, overlap=overlap, **limits), requests)
    return found


def main() -> None:
    rendezvous, rank = Path(sys.argv[1]), int(sys.argv[2])
    device = CPU if sys.argv[3] == "cpu" else torch.device("cuda", rank)
    torch.set_num_threads(1)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    group = ProcessGroup(rank, 2, rendezvous, device)
    assert group.smallest(5 + rank) == 5
    print(json.dumps({name: texts(config, group, device) for name, config in MODELS.items()}))
    group.close()


if __name__ == "__main__":
    main()
