"""API keys: generated here, stored as SHA-256 hashes, compared in constant time.

A key file has one line for each key, `HASH  NAME`, as `sha256sum` prints it; empty lines and lines that begin with `#`
are skipped. Keys are 256 random bits, so a fast hash is enough: there is nothing to guess.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import secrets
from http import HTTPStatus
from pathlib import Path

from fastapi import Request

from serving.openai_errors import ApiError

logger = logging.getLogger(__name__)

KEY_PREFIX = "gs-"
_LINE = re.compile(r"(?P<hash>[0-9a-f]{64})\s+(?P<name>[A-Za-z0-9._-]{1,64})")
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


def generate_key() -> str:
    """A fresh key. Only its hash is ever stored."""
    return KEY_PREFIX + secrets.token_urlsafe(32)


def hash_key(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def parse_keys(text: str) -> dict[str, str]:
    """Hash by name. Raises `ValueError` with the line number of a malformed line or a repeated name."""
    keys: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None:
            raise ValueError(
                f"line {number} is not `HASH  NAME` (64 hex digits, then letters, digits, '.', '_' or '-')"
            )
        if match["name"] in keys:
            raise ValueError(f"line {number} repeats the name {match['name']!r}")
        keys[match["name"]] = match["hash"]
    return keys


def read_keys(path: Path) -> dict[str, str]:
    try:
        return parse_keys(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def write_keys(path: Path, keys: dict[str, str]) -> None:
    """Replace the file in one step; only its owner may read it."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.writelines(f"{key_hash}  {name}\n" for name, key_hash in keys.items())
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def check_name(name: str) -> str:
    if _NAME.fullmatch(name) is None:
        raise ValueError(f"{name!r} is not a key name: 1 to 64 letters, digits, '.', '_' or '-'")
    return name


class ApiKeys:
    """The keys of a file, read again when it changes, so that a revoked key ends without a restart.

    A file that has become unreadable or malformed keeps the last good keys and is reported in the log.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stamp = self._file_stamp()
        self._keys = read_keys(path)

    def owner(self, key: str) -> str | None:
        """The name of the key's owner, or `None`. All keys are compared, so the time tells nothing."""
        self._refresh()
        given = hash_key(key)
        found = None
        for name, key_hash in self._keys.items():
            if hmac.compare_digest(given, key_hash):
                found = name
        return found

    def _file_stamp(self) -> tuple[int, int, int] | None:
        try:
            status = self.path.stat()
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns, status.st_size

    def _refresh(self) -> None:
        stamp = self._file_stamp()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._keys = read_keys(self.path)
        except (OSError, ValueError) as error:
            logger.error("the key file cannot be read, the last good keys stay in force: %s", error)


def authenticate(request: Request, keys: ApiKeys | None) -> str | None:
    """The owner of the request's key; `None` where no key is asked for. Raises `ApiError` 401.

    Looks at the `Authorization` header alone: nothing a client writes into Host or the path matters.
    """
    if keys is None:
        return None
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    owner = keys.owner(key.strip()) if scheme.lower() == "bearer" else None
    if owner is None:
        raise ApiError(
            HTTPStatus.UNAUTHORIZED,
            "The API key is missing or wrong; send it as `Authorization: Bearer KEY`.",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )
    return owner
