"""The weight files of a Hugging Face folder: one `model.safetensors`, or several named by an index."""

from __future__ import annotations

from pathlib import Path

from engine.tokenizer import read_json

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


def safetensors_files(folder: Path) -> list[Path]:
    """Raises `ValueError` for an index that is none and for files that are missing."""
    index = folder / INDEX
    if index.is_file():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ValueError(f"{index} has no weight_map")
        names = sorted({str(name) for name in weight_map.values()})
        if any(Path(name).name != name for name in names):
            raise ValueError(f"{index} names files outside its folder")
    else:
        names = [SINGLE]
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise ValueError(f"{folder} lacks {', '.join(missing)}; only safetensors checkpoints are read")
    return [folder / name for name in names]
