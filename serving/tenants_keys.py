"""Keys with scopes, expiry and limits, in a JSON file that holds their hashes.

A key reads `gs_ID_SECRET`: the id finds the entry, the secret (192 random bits) is compared by its SHA-256 in constant
time. The file is read again when it changes and written in one step; when a key was last used is written now and then.
"""

from __future__ import annotations

import hmac
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
from msgspec import Struct

from serving.auth import ApiKeys, check_name, hash_key

logger = logging.getLogger(__name__)

PREFIX = "gs"
INFERENCE, METRICS, READ, WRITE, ADMIN = "inference", "metrics:read", "control:read", "control:write", "admin"
SCOPES = (INFERENCE, METRICS, READ, WRITE, ADMIN)
_NO_HASH = "0" * 64


class KeyEntry(Struct, frozen=True):
    """A key as stored. Limits are a minute's; null: none."""

    key_id: str
    name: str
    hash: str
    scopes: tuple[str, ...]
    created_unix_s: float
    expires_unix_s: float | None = None
    last_used_unix_s: float | None = None
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    joules_per_minute: float | None = None

    @property
    def is_control(self) -> bool:
        return bool({READ, WRITE, ADMIN} & set(self.scopes))


class _KeyFile(Struct):
    keys: list[KeyEntry] = msgspec.field(default_factory=list)
    version: int = 1


class KeyRing(ApiKeys):
    """Thread-safe. A file that has become unreadable keeps the last good keys. Raises `ValueError` for a malformed
    one at start; a missing one is an empty ring."""

    def __init__(self, path: Path, wall: Callable[[], float] = time.time) -> None:
        self.path = path
        self._wall = wall
        self._guard = threading.Lock()
        self._used: dict[str, float] = {}
        self._stamp = self._file_stamp()
        self._entries = self._load() if path.exists() else {}

    @property
    def entries(self) -> list[KeyEntry]:
        """All keys, oldest first, with when each was last used."""
        self._refresh()
        return [
            msgspec.structs.replace(entry, last_used_unix_s=self._used.get(entry.key_id, entry.last_used_unix_s))
            for entry in sorted(self._entries.values(), key=lambda one: one.created_unix_s)
        ]

    def owner(self, key: str) -> str | None:
        """The tenant of a live key with scope inference, or `None`."""
        entry = self.entry(key)
        return entry.name if entry is not None and INFERENCE in entry.scopes else None

    def entry(self, key: str) -> KeyEntry | None:
        """The entry of a live key, or `None`; the time it takes tells nothing of a secret."""
        self._refresh()
        key_id = key.split("_")[1] if key.count("_") == 2 else ""
        entry = self._entries.get(key_id)
        right = hmac.compare_digest(hash_key(key), entry.hash if entry is not None else _NO_HASH)
        if entry is None or not right:
            return None
        now = self._wall()
        if entry.expires_unix_s is not None and now >= entry.expires_unix_s:
            return None
        self._used[key_id] = now
        return entry

    def limits(self, name: str) -> list[KeyEntry]:
        """Keys of a tenant."""
        return [entry for entry in self._entries.values() if entry.name == name]

    def create(
        self,
        name: str,
        scopes: tuple[str, ...],
        *,
        expires_in_s: float | None = None,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        joules_per_minute: float | None = None,
    ) -> tuple[KeyEntry, str]:
        """A new key and its secret text. Raises `ValueError` for a bad name, scope, limit or expiry."""
        check_name(name)
        unknown = set(scopes) - set(SCOPES)
        if unknown or not scopes:
            raise ValueError(f"scopes must be among {', '.join(SCOPES)}, got {', '.join(sorted(unknown)) or 'none'}")
        for value in (expires_in_s, requests_per_minute, tokens_per_minute, joules_per_minute):
            if value is not None and not 0 < value < 1e12:
                raise ValueError(f"limits and expiry must be above 0, got {value:g}")
        key_id, now = secrets.token_hex(4), self._wall()
        secret = f"{PREFIX}_{key_id}_{secrets.token_hex(24)}"
        expires = now + expires_in_s if expires_in_s is not None else None
        limits = (requests_per_minute, tokens_per_minute, joules_per_minute)
        entry = KeyEntry(key_id, name, hash_key(secret), tuple(scopes), now, expires, None, *limits)
        self._change(lambda entries: entries | {key_id: entry})
        return entry, secret

    def rotate(self, key_id: str) -> tuple[KeyEntry, str]:
        """A new secret for a key; the old one ends at once. Raises `KeyError` for an unknown id."""
        secret = f"{PREFIX}_{key_id}_{secrets.token_hex(24)}"
        entry = msgspec.structs.replace(self._entries[key_id], hash=hash_key(secret))
        self._change(lambda entries: entries | {key_id: entry})
        return entry, secret

    def revoke(self, key_id: str) -> KeyEntry:
        """End a key. Raises `KeyError` for an unknown id."""
        entry = self._entries[key_id]
        self._change(lambda entries: {name: one for name, one in entries.items() if name != key_id})
        return entry

    def save_used(self) -> None:
        """Write down when keys were last used."""
        if any(self._used.get(entry.key_id) != entry.last_used_unix_s for entry in self._entries.values()):
            self._change(lambda entries: entries)

    def _change(self, change: Callable[[dict[str, KeyEntry]], dict[str, KeyEntry]]) -> None:
        with self._guard:
            self._refresh()
            entries = change(self._entries)
            kept = {
                key_id: msgspec.structs.replace(entry, last_used_unix_s=self._used.get(key_id, entry.last_used_unix_s))
                for key_id, entry in entries.items()
            }
            self._write(kept)
            self._entries, self._stamp = kept, self._file_stamp()

    def _write(self, entries: dict[str, KeyEntry]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(_KeyFile(list(entries.values()))), indent=2))
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self.path)

    def _load(self) -> dict[str, KeyEntry]:
        try:
            found = msgspec.json.decode(self.path.read_bytes(), type=_KeyFile)
        except msgspec.MsgspecError as error:
            raise ValueError(f"{self.path} is not a key file: {error}") from None
        return {entry.key_id: entry for entry in found.keys}

    def _refresh(self) -> None:
        stamp = self._file_stamp()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._entries = self._load() if stamp is not None else {}
        except (OSError, ValueError) as error:
            logger.error("the key file cannot be read, the last good keys stay in force: %s", error)


def open_keys(path: Path) -> ApiKeys:
    """The keys of a file: a `.json` file is a ring (and may not be there yet), any other the plain list of hashes."""
    return KeyRing(path) if path.suffix == ".json" else ApiKeys(path)
