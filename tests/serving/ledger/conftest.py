"""Both back ends for real: SQLite in a folder, and a PostgreSQL server of Debian's package on a free port."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from serving.ledger.engine import Location
from serving.ledger.rows import RequestRow
from serving.ledger.writer import LedgerWriter, WriterSettings

NOON_US = 1_768_478_400_000_000  # 2026-01-15T12:00:00Z
QUICK = WriterSettings(gather_s=0.002, flush_s=0.01)


class Postgres:
    """A server in a folder of its own, as a user that is not root."""

    def __init__(self, programs: Path, folder: Path) -> None:
        self._programs = programs
        self.folder = folder
        self._user = "postgres" if os.getuid() == 0 else None
        if self._user is not None:
            shutil.chown(folder, self._user)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.run("initdb", "-D", str(folder / "data"), "-A", "trust", "-U", "gridserve", "--no-sync")
        # fsync=off is for a crash of the machine; these tests crash the server.
        options = f"port={self.port}\nlisten_addresses='127.0.0.1'\nunix_socket_directories=''\nfsync=off\n"
        with (folder / "data" / "postgresql.conf").open("a") as file:
            file.write(options)

    def run(self, program: str, *arguments: str) -> None:
        command = [str(self._programs / program), *arguments]
        subprocess.run(
            command, user=self._user, cwd="/", check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def start(self) -> None:
        self.run("pg_ctl", "-D", str(self.folder / "data"), "-l", str(self.folder / "log"), "-w", "start")

    def stop(self, how: str = "immediate") -> None:
        self.run("pg_ctl", "-D", str(self.folder / "data"), "-m", how, "-w", "stop")

    def url(self, database: str) -> str:
        return f"postgresql://gridserve@127.0.0.1:{self.port}/{database}"

    def new_database(self) -> Location:
        name = f"test_{uuid.uuid4().hex}"
        engine = create_engine(
            self.url("postgres").replace("postgresql:", "postgresql+psycopg:"), isolation_level="AUTOCOMMIT"
        )
        with engine.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {name}"))
        engine.dispose()
        return Location.at_url(self.url(name))


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """The server; skips where the package is not installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        pytest.skip("no PostgreSQL server here; apt-get install postgresql")
    folder = Path(tempfile.mkdtemp(prefix="gridserve-pg-"))
    try:
        server = Postgres(found[-1].parent, folder)
        server.start()
    except subprocess.CalledProcessError as error:
        shutil.rmtree(folder, ignore_errors=True)
        pytest.skip(f"PostgreSQL cannot be started here: {error}")
    yield server
    with contextlib.suppress(subprocess.CalledProcessError):
        server.stop()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(params=["sqlite", "postgresql"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    """An empty ledger on each back end."""
    if request.param == "sqlite":
        return Location(tmp_path / "ledger")
    server: Postgres = request.getfixturevalue("postgres")
    return server.new_database()


@pytest.fixture
def sqlite_location(tmp_path: Path) -> Location:
    return Location(tmp_path / "ledger")


@pytest.fixture
def quick() -> WriterSettings:
    return QUICK


@pytest.fixture
def writer(location: Location) -> Iterator[LedgerWriter]:
    with LedgerWriter(location, QUICK) as opened:
        yield opened


@pytest.fixture
def make_request() -> Callable[..., RequestRow]:
    def make(number: int = 0, **fields: object) -> RequestRow:
        given = {"request_id": f"r{number}", "arrived_us": NOON_US + number, "model": "m", **fields}
        return RequestRow(**given)

    return make


@pytest.fixture
def noon_us() -> int:
    return NOON_US


@pytest.fixture
def child() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a Python program in a process of its own; whatever is still running is killed at the end."""
    running: list[subprocess.Popen[str]] = []

    def start(program: str, *arguments: str) -> subprocess.Popen[str]:
        root = Path(__file__).resolve().parents[3]
        process = subprocess.Popen(
            [sys.executable, "-u", "-c", program, *arguments],
            stdout=subprocess.PIPE,
            text=True,
            cwd=root,
            env=os.environ | {"PYTHONPATH": str(root)},
        )
        running.append(process)
        return process

    yield start
    for process in running:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
