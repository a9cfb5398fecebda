"""How an engine is set up: what the front end hands to the engine process."""

from __future__ import annotations

from dataclasses import dataclass

from kernels.weight_format import WeightFormat

# A step's budget: large enough to reach the prefill rate, small enough that a chunk stalls decodes only briefly.
CPU_MAX_NUM_BATCHED_TOKENS = 256
CUDA_MAX_NUM_BATCHED_TOKENS = 4096
DEVICES = ("auto", "cpu", "cuda")
SPECULATIONS = ("off", "ngram")
KV_DTYPES = ("auto", "bf16", "fp8", "int8")


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """None means: chosen from the device and the model.

    Attributes:
        model: built-in name, Hugging Face folder, GGUF file or hub id.
        model_id: the name clients use.
        weight_format: 4-bit blocks where the file has them and the device computes them exactly, else bf16.
        max_model_len: longest prompt plus output in tokens.
        max_num_seqs: requests that may run at once.
        max_num_batched_tokens: token budget of a step.
        long_prefill_threshold_tokens: most tokens of one prompt in a step.
        kv_cache_bytes: memory for keys and values.
        num_threads: CPU threads of the model.
        kv_dtype: how keys and values are kept: `auto` in the dtype of the activations; `fp8` and `int8` as codes with a
            scale for each token and head, on a GPU.
        gpu_memory_fraction: most of a card's memory that weights, cache and steps may take together.
        deterministic: on a GPU, a request's tokens have the same bits whatever shares its batch, however its prompt is
            cut and whatever the clock; slower. A CPU computes so at any time in bf16 and int4.
        overlap: plan a step while the last one runs; on a GPU unless speculating when None. A CPU cannot.
        speculate: `ngram` guesses from the request's own text (`engine.speculation`); the text stays the same.
        max_draft: most tokens guessed for a request in a step.
        tensor_parallel: ranks that share the model, a process and a GPU each; on a CPU a process each. Sizes of memory
            and numbers of threads are those of one rank.
        rank_timeout_s: a step that takes longer means that a rank is lost: the engine ends, and is started again.
    """

    model: str
    model_id: str
    device: str = "auto"
    weight_format: WeightFormat | None = None
    max_model_len: int | None = None
    max_num_seqs: int = 64
    max_num_batched_tokens: int | None = None
    long_prefill_threshold_tokens: int | None = None
    block_size: int = 32
    kv_cache_bytes: int | None = None
    num_threads: int | None = None
    kv_dtype: str = "auto"
    gpu_memory_fraction: float = 0.90
    deterministic: bool = False
    overlap: bool | None = None
    speculate: str = "off"
    max_draft: int = 4
    tensor_parallel: int = 1
    rank_timeout_s: float = 60.0

    def __post_init__(self) -> None:
        if self.device not in DEVICES:
            raise ValueError(f"device must be one of {', '.join(DEVICES)}, got {self.device!r}")
        if self.kv_dtype not in KV_DTYPES:
            raise ValueError(f"kv_dtype must be one of {', '.join(KV_DTYPES)}, got {self.kv_dtype!r}")
        if self.speculate not in SPECULATIONS:
            raise ValueError(f"speculate must be one of {', '.join(SPECULATIONS)}, got {self.speculate!r}")
        if self.overlap and self.speculate != "off":
            raise ValueError("speculation plans a step from the last one's tokens: leave overlap off")
        if self.deterministic and self.tensor_parallel > 2:
            raise ValueError(
                "the order in which more than two ranks are summed changes with the batch: leave deterministic off or "
                "use a tensor_parallel of 2"
            )
        if not self.rank_timeout_s > 0.0:
            raise ValueError(f"rank_timeout_s must be above 0, got {self.rank_timeout_s}")
        if not 0.0 < self.gpu_memory_fraction <= 1.0:
            raise ValueError(f"gpu_memory_fraction must be above 0 and at most 1, got {self.gpu_memory_fraction}")
        if self.block_size < 16 or self.block_size % 16:
            raise ValueError(f"block_size must be a multiple of 16, got {self.block_size}")
        for name in (
            "max_model_len",
            "max_num_seqs",
            "max_num_batched_tokens",
            "long_prefill_threshold_tokens",
            "kv_cache_bytes",
            "num_threads",
            "max_draft",
            "tensor_parallel",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
