"""Prompts to judge from a file of JSON lines: `class`, `prompt` or `messages`, and `answer` where it is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from carbon.evaluator.retention import KeptPrompt


def read_prompts(path: Path) -> dict[str, list[KeptPrompt]]:
    """Prompts by class. Raises `ValueError` naming the line that does not fit, `OSError` for a file not readable."""
    prompts: dict[str, list[KeptPrompt]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if line.strip():
            kept = _prompt(line, f"{path} line {number}")
            prompts.setdefault(kept.prompt_class, []).append(kept)
    if not prompts:
        raise ValueError(f"{path} holds no prompt")
    return prompts


def _prompt(line: str, where: str) -> KeptPrompt:
    try:
        row: Any = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict):
        raise ValueError(f"{where}: not a JSON object")
    messages = row.get("messages") or ([{"role": "user", "content": row["prompt"]}] if "prompt" in row else None)
    name = row.get("class")
    if not isinstance(name, str) or not isinstance(messages, list):
        raise ValueError(f"{where}: needs a class, and a prompt or messages")
    if not all(isinstance(message, dict) and "role" in message for message in messages):
        raise ValueError(f"{where}: every message needs a role")
    answer = row.get("answer")
    return KeptPrompt(name, tuple(messages), None if answer is None else str(answer))
