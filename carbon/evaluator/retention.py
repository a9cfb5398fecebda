"""Prompts kept for judging: only where a tenant opted in, bounded in number, age and size, encrypted at rest.

A prompt that may not be kept leaves a keyed hash, enough to count repetitions and useless without the key.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_BYTES = 32
NONCE_BYTES = 12
MAX_PROMPT_BYTES = 64 * 1024

_SCHEMA = """
CREATE TABLE IF NOT EXISTS prompts (
    id INTEGER PRIMARY KEY, stored_at REAL NOT NULL, prompt_class TEXT NOT NULL, digest BLOB NOT NULL UNIQUE,
    nonce BLOB NOT NULL, sealed BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS prompts_by_class ON prompts (prompt_class, stored_at);
CREATE TABLE IF NOT EXISTS hashes (digest BLOB PRIMARY KEY, seen INTEGER NOT NULL, last_at REAL NOT NULL);
"""


@dataclass(frozen=True, slots=True)
class RetentionLimits:
    max_prompts_a_class: int = 2000
    max_hashes: int = 100_000
    max_age: timedelta = timedelta(days=30)


@dataclass(frozen=True, slots=True)
class KeptPrompt:
    """`messages`: the conversation up to the answer. `known`: the right answer, where the client gave one."""

    prompt_class: str
    messages: tuple[dict[str, Any], ...]
    known: str | None = None


class PromptStore:
    """One SQLite file. `key`: 32 bytes, which never touch the file. Raises `ValueError` for a key of other length."""

    def __init__(self, path: Path, key: bytes, limits: RetentionLimits = RetentionLimits()) -> None:
        if len(key) != KEY_BYTES:
            raise ValueError(f"the retention key must have {KEY_BYTES} bytes, got {len(key)}; see make_key()")
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
        os.close(descriptor)
        self._limits = limits
        self._cipher = AESGCM(hashlib.sha256(b"gridserve prompts" + key).digest())
        self._hash_key = hashlib.sha256(b"gridserve digests" + key).digest()
        self._database = sqlite3.connect(path)
        self._database.executescript("PRAGMA secure_delete = ON; PRAGMA journal_mode = TRUNCATE;" + _SCHEMA)

    def close(self) -> None:
        self._database.close()

    def keep(self, prompt: KeptPrompt, *, opted_in: bool, now: datetime) -> bool:
        """Store a prompt of a tenant that opted in; of any other only the hash. Returns whether text was kept.

        A prompt longer than 64 KiB is not kept. Repetitions are stored once.
        """
        body = json.dumps({"messages": prompt.messages, "known": prompt.known}).encode()
        digest = hmac.digest(self._hash_key, body, "sha256")
        if not opted_in or len(body) > MAX_PROMPT_BYTES:
            self._count(digest, now)
            return False
        nonce = os.urandom(NONCE_BYTES)
        sealed = self._cipher.encrypt(nonce, body, prompt.prompt_class.encode())
        with self._database:
            self._database.execute(
                "INSERT OR IGNORE INTO prompts (stored_at, prompt_class, digest, nonce, sealed) VALUES (?, ?, ?, ?, ?)",
                (now.timestamp(), prompt.prompt_class, digest, nonce, sealed),
            )
            self._database.execute(
                "DELETE FROM prompts WHERE prompt_class = ? AND id NOT IN "
                "(SELECT id FROM prompts WHERE prompt_class = ? ORDER BY stored_at DESC, id DESC LIMIT ?)",
                (prompt.prompt_class, prompt.prompt_class, self._limits.max_prompts_a_class),
            )
        self.expire(now)
        return True

    def _count(self, digest: bytes, now: datetime) -> None:
        with self._database:
            self._database.execute(
                "INSERT INTO hashes VALUES (?, 1, ?) "
                "ON CONFLICT (digest) DO UPDATE SET seen = seen + 1, last_at = excluded.last_at",
                (digest, now.timestamp()),
            )
            self._database.execute(
                "DELETE FROM hashes WHERE digest NOT IN (SELECT digest FROM hashes ORDER BY last_at DESC LIMIT ?)",
                (self._limits.max_hashes,),
            )
        self.expire(now)

    def expire(self, now: datetime) -> None:
        oldest = (now - self._limits.max_age).timestamp()
        with self._database:
            self._database.execute("DELETE FROM prompts WHERE stored_at < ?", (oldest,))
            self._database.execute("DELETE FROM hashes WHERE last_at < ?", (oldest,))

    def counts(self) -> dict[str, int]:
        rows = self._database.execute("SELECT prompt_class, COUNT(*) FROM prompts GROUP BY prompt_class")
        return dict(rows.fetchall())

    def sample(self, prompt_class: str, count: int, skip: Sequence[int] = ()) -> list[tuple[int, KeptPrompt]]:
        """Up to `count` kept prompts of a class, drawn at random, with their ids; `skip` ids are left out.

        Raises `ValueError` when the key is not the one they were stored with.
        """
        rows = self._database.execute(
            "SELECT id, nonce, sealed FROM prompts WHERE prompt_class = ? ORDER BY RANDOM()", (prompt_class,)
        )
        left_out = set(skip)
        found: list[tuple[int, KeptPrompt]] = []
        for number, nonce, sealed in rows:
            if len(found) >= count:
                break
            if number in left_out:
                continue
            try:
                body = json.loads(self._cipher.decrypt(nonce, sealed, prompt_class.encode()))
            except InvalidTag:
                raise ValueError("the retention key does not fit the stored prompts") from None
            found.append((number, KeptPrompt(prompt_class, tuple(body["messages"]), body["known"])))
        return found

    def forget_all(self) -> None:
        """Delete every prompt and hash at once (a tenant withdrew, or a key was lost)."""
        with self._database:
            self._database.execute("DELETE FROM prompts")
            self._database.execute("DELETE FROM hashes")


def make_key() -> bytes:
    return os.urandom(KEY_BYTES)
