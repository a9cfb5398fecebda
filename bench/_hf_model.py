"""The model file of a benchmark as a transformers model, so that every system runs the same weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


def load_causal_lm(model: str, dtype: torch.dtype) -> Any:
    """A transformers causal language model from a GGUF file or a Hugging Face folder, in evaluation mode."""
    from transformers import AutoModelForCausalLM

    path = Path(model)
    where: dict[str, Any] = {"gguf_file": path.name} if path.suffix == ".gguf" else {}
    folder = path.parent if where else path
    loaded = AutoModelForCausalLM.from_pretrained(str(folder), dtype=dtype, local_files_only=True, **where)
    return loaded.eval()
