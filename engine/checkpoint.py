"""A model on disk, whatever its format: its shape, its weights and its tokenizer.

Imports no torch until the weights are opened: the front end, which reads the rest, starts without it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from engine.config_reading import config_from_gguf, config_from_hf
from engine.gguf_file import GgufFile
from engine.model_config import ModelConfig
from engine.safetensors_files import safetensors_files
from engine.tokenizer import Tokenizer, load_gguf_tokenizer, load_hf_tokenizer, read_json

if TYPE_CHECKING:
    from engine.weights import Weights


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """An opened model. Opening reads headers only; `open_weights` and `load_tokenizer` do the rest."""

    path: Path
    config: ModelConfig
    _gguf: GgufFile | None

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights as stored. Raises `ValueError` when files are missing."""
        if self._gguf is None:
            return sum(path.stat().st_size for path in safetensors_files(self.path))
        return sum(tensor.nbytes for tensor in self._gguf.tensors.values())

    def open_weights(self) -> Weights:
        from engine.safetensors_folder import SafetensorsWeights
        from engine.weights import GgufWeights

        return SafetensorsWeights(self.path) if self._gguf is None else GgufWeights(self._gguf, self.config)

    def load_tokenizer(self) -> Tokenizer:
        return load_hf_tokenizer(self.path) if self._gguf is None else load_gguf_tokenizer(self._gguf)


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a GGUF file or a Hugging Face folder. Raises `ValueError` when it is neither or not supported."""
    if path.is_dir():
        fields = read_json(path / "config.json")
        if not fields:
            raise ValueError(f"{path} has no config.json; give a Hugging Face model folder or a GGUF file")
        return Checkpoint(path, config_from_hf(fields), None)
    if not path.is_file():
        raise ValueError(f"{path} does not exist; give a Hugging Face model folder or a GGUF file")
    file = GgufFile(path)
    return Checkpoint(path, config_from_gguf(file.metadata, file.shapes), file)
