"""Where the ledger lives, and connections to it: one writer, readers that cannot write.

SQLite before 3.51.3 can corrupt a WAL database when two connections write or checkpoint at the same moment
(sqlite.org/wal.html, "the WAL-reset bug"), so the version is checked and on Linux a wheel brings its own.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import os
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import quote

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.pool import QueuePool

ENVIRONMENT = "GRIDSERVE_DATABASE_URL"
SAFE_SQLITE = (3, 51, 3)
BUSY_TIMEOUT_MS = 5000
JOURNAL_SIZE_BYTES = 64 * 1024 * 1024
PAGE_BYTES = 4096
CACHE_KIB = 32 * 1024
"""Of the writer: the index by request id is touched everywhere, and 2 MiB would be read back all the time."""
WRITER_LOCK = 0x67726964  # "grid": key of PostgreSQL's advisory lock


class LedgerError(Exception):
    """The ledger cannot be opened or used; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Location:
    """A folder with two SQLite files, or the URL of a PostgreSQL database."""

    folder: Path | None = None
    url: URL | None = None

    def __post_init__(self) -> None:
        if (self.folder is None) == (self.url is None):
            raise ValueError("a ledger lives in a folder or behind a URL, not both")

    @classmethod
    def from_environment(cls, folder: Path) -> Location:
        """The database named by `GRIDSERVE_DATABASE_URL`, else SQLite files in `folder`."""
        url = os.environ.get(ENVIRONMENT, "")
        return cls.at_url(url) if url else cls(folder)

    @classmethod
    def at_url(cls, url: str) -> Location:
        """Raises `LedgerError` for anything but PostgreSQL; the message never holds the password."""
        try:
            parsed = make_url(url)
        except Exception:  # noqa: BLE001 - SQLAlchemy's message would show the URL with its password
            raise LedgerError(f"{ENVIRONMENT} is not a database URL; write postgresql://user@host/name") from None
        if parsed.get_backend_name() not in ("postgresql", "postgres"):
            raise LedgerError(f"{ENVIRONMENT} names {parsed.get_backend_name()!r}; the ledger needs PostgreSQL")
        return cls(url=parsed.set(drivername="postgresql+psycopg"))

    @property
    def is_sqlite(self) -> bool:
        return self.folder is not None

    def file(self, database: str) -> Path:
        """`database`: ledger or telemetry."""
        assert self.folder is not None
        return self.folder / f"{database}.db"

    def __str__(self) -> str:
        return str(self.folder) if self.url is None else self.url.render_as_string(hide_password=True)


def sqlite_module() -> ModuleType:
    """The DB-API module of a safe SQLite. Raises `LedgerError` where there is none."""
    with contextlib.suppress(ImportError):
        bundled = importlib.import_module("pysqlite3.dbapi2")
        if bundled.sqlite_version_info >= SAFE_SQLITE:
            return bundled
    if sqlite3.sqlite_version_info >= SAFE_SQLITE:
        return sqlite3
    wanted = ".".join(map(str, SAFE_SQLITE))
    raise LedgerError(
        f"SQLite {sqlite3.sqlite_version} can corrupt a ledger; install pysqlite3 (it brings {wanted} or later), "
        f"or set {ENVIRONMENT} to a PostgreSQL database"
    )


def writer_engine(location: Location, database: str, max_bytes: int | None = None) -> Engine:
    """An engine that may write; one process may have it, see `writer_lock`. `max_bytes`: SQLite's limit of the file."""
    if location.url is not None:
        return _postgres_writer(location, locked=database == "ledger")
    path = location.file(database)
    path.parent.mkdir(parents=True, exist_ok=True)
    engine = _sqlite_engine(f"file:{quote(str(path))}", pool_size=1, max_overflow=0)

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _record: object) -> None:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute(f"PRAGMA journal_size_limit={JOURNAL_SIZE_BYTES}")
        connection.execute(f"PRAGMA cache_size=-{CACHE_KIB}")
        if max_bytes is not None:
            connection.execute(f"PRAGMA max_page_count={max(1, max_bytes // PAGE_BYTES)}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def reader_engine(location: Location, database: str) -> Engine:
    """An engine that cannot write, whatever is asked of it."""
    if location.url is not None:
        options = "-c default_transaction_read_only=on"
        return create_engine(location.url, pool_size=4, pool_pre_ping=True, connect_args={"options": options})
    engine = _sqlite_engine(f"file:{quote(str(location.file(database)))}?mode=ro", pool_size=4)

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _record: object) -> None:
        connection.execute("PRAGMA query_only=ON")

    return engine


def _postgres_writer(location: Location, *, locked: bool) -> Engine:
    """One connection, which holds the writer's lock for as long as it lives, and takes it anew when it is made anew."""
    assert location.url is not None
    engine = create_engine(location.url, pool_size=1, max_overflow=0, pool_pre_ping=True)
    if locked:

        @event.listens_for(engine, "connect")
        def lock(connection: Any, _record: object) -> None:
            held = connection.execute("SELECT pg_try_advisory_lock(%s)", (WRITER_LOCK,)).fetchone()[0]
            connection.commit()
            if not held:
                connection.close()
                raise LedgerError(f"another process writes to {location}; one control plane per database")

    return engine


def _sqlite_engine(uri: str, pool_size: int, max_overflow: int = 4) -> Engine:
    module = sqlite_module()

    def connect() -> Any:
        # No implicit transactions: the writer's begin is explicit, a reader's statement is its own snapshot.
        connection = module.connect(uri, uri=True, check_same_thread=False, isolation_level=None)
        connection.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
        return connection

    size = {"pool_size": pool_size, "max_overflow": max_overflow}
    return create_engine("sqlite://", module=module, creator=connect, poolclass=QueuePool, **size)


@contextlib.contextmanager
def writer_lock(location: Location) -> Iterator[None]:
    """Held by the one process that writes. Raises `LedgerError` when another one does."""
    if location.url is not None:
        yield  # the writing connection itself holds the lock
        return
    assert location.folder is not None
    location.folder.mkdir(parents=True, exist_ok=True)
    with (location.folder / "writer.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise LedgerError(f"another process writes to {location}; one control plane per folder") from None
        yield
