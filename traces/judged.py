"""Rows of a judged-prompts file: which directive level a judge preferred, and what each level cost in time.

Columns `task`, `prompt`, `preferred_level`, `time_s_l0`, `time_s_l1`, ...: SPROUT's measurements
(boringlee24/EMNLP24_Sprout, MIT; Llama-2-13b-chat, batch 1). At batch 1 the time of an answer is close to proportional
to its tokens, so a level's length is *estimated* as the recorded length times the ratio of times.
"""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from traces.formats.registry import open_bytes
from traces.request import ShapedLength
from traces.rows import BadField, RowError, real_number, whole_number

_TIME_PREFIX = "time_s_l"


@dataclass(frozen=True, slots=True)
class JudgedRow:
    """`row`: line of the record in the file, from 1. `time_ratio`: time of each level over that of level L0."""

    row: int
    task: str
    preferred_level: str
    time_ratio: Mapping[str, float]
    prompt: str

    def shaped(self, recorded_output_tokens: int) -> tuple[ShapedLength, ...]:
        """Lengths under the levels beside L0 of an answer with this recorded length."""
        return tuple(
            ShapedLength(
                level,
                max(1, round(recorded_output_tokens * ratio)),
                "estimated",
                f"recorded length x time ratio of judged row {self.row}",
            )
            for level, ratio in self.time_ratio.items()
            if level != "L0"
        )


def read_judged_rows(path: Path) -> Mapping[str, Sequence[JudgedRow]]:
    """Rows by task, in file order. Raises `RowError` with the place of a bad row."""
    by_task: dict[str, list[JudgedRow]] = defaultdict(list)
    with open_bytes(path) as stream:
        reader = csv.DictReader(io.TextIOWrapper(stream, encoding="utf-8-sig", newline=""), strict=True)
        columns = reader.fieldnames or []
        levels = [name.removeprefix(_TIME_PREFIX) for name in columns if name.startswith(_TIME_PREFIX)]
        missing = [name for name in ("task", "prompt", "preferred_level", "time_s_l0") if name not in columns]
        if missing:
            raise ValueError(f"{path}:1:1: no column {', '.join(missing)}; a judged-prompts file has them")
        for number, fields in enumerate(reader, start=1):
            try:
                times = {
                    level: real_number(_TIME_PREFIX + level, fields[_TIME_PREFIX + level], least=1e-6)
                    for level in levels
                }
                preferred = whole_number("preferred_level", fields["preferred_level"])
            except BadField as bad:
                raise RowError(path, reader.line_num, 1, bad.column, bad.reason) from None
            ratios = {f"L{level}": time_s / times["0"] for level, time_s in times.items()}
            row = JudgedRow(number, fields["task"], f"L{preferred}", ratios, fields["prompt"])
            by_task[row.task].append(row)
    return by_task
